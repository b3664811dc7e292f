"Every model is `Sequential(encoder, head)` over clips, and weights load strictly or say why not."
import pickle

import pytest
import torch
from torch import nn

from sdfast.errors import InputError
from sdfast.models.encoders import FrameEncoder, create_encoder, create_model, encoder_head_split, is_model, model_stats
from sdfast.models.features import eval_mode
from sdfast.models.weights import load_encoder, save_weights


@pytest.mark.parametrize('name,frames,size,n', [('tiny', 8, 40, 96), ('r3d_18', 4, 32, 512), ('r2plus1d_18', 4, 32, 512), ('mc3_18', 4, 32, 512),
                                                ('s3d', 16, 224, 1024), ('resnet18', 3, 64, 512), ('mobilenetv3_small_050', 2, 64, 1024)])
def test_clips_to_features_to_logits(name, frames, size, n):
    assert is_model(name)
    model = create_model(name, 5).eval()
    x = torch.rand(2, frames, 3, size, size)
    with torch.no_grad(): assert model[0](x).shape == (2, n) == (2, model[0].num_features) and model(x).shape == (2, 5)
    split = encoder_head_split(model)
    assert sorted(map(id, split[0] + split[1])) == sorted(map(id, model.parameters())) and len(split[1]) == 2


def test_frame_encoder_is_the_mean_over_frames():
    net = create_encoder('resnet18').eval()
    x = torch.rand(2, 3, 3, 64, 64)
    with torch.no_grad(): torch.testing.assert_close(net(x), torch.stack([net.body(x[:, t]) for t in range(3)]).mean(0), rtol=1e-4, atol=1e-5)


def test_space_time_encoders_see_time_and_channels_where_they_are():
    from torchvision.models.video import r3d_18
    torch.manual_seed(0)
    ours = create_encoder('r3d_18').eval()
    theirs = r3d_18().eval()
    theirs.fc = nn.Identity()
    theirs.load_state_dict(ours.body.state_dict())
    x = torch.rand(1, 4, 3, 32, 32)
    with torch.no_grad(): torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)), rtol=1e-4, atol=1e-4)


def test_stats():
    assert model_stats('tiny')[0] == [0.485, 0.456, 0.406] and model_stats('r2plus1d_18')[0] == (0.43216, 0.394666, 0.37645)
    assert model_stats('vit_tiny_patch16_224')[0] == (.5, .5, .5)


@pytest.mark.parametrize('wrap', ['encoder', 'model', 'module', 'lightning', 'pth'])
def test_weights_load_from_every_wrapping(tmp_path, wrap):
    model, path = create_model('tiny', 7), tmp_path/('w.safetensors' if wrap == 'encoder' else 'w.pth')
    if wrap == 'encoder': save_weights(model[0], path)
    else:
        s = model.state_dict()
        torch.save(dict(model=dict(model=s), module={f'module.{k}':v for k, v in s.items()}, lightning=dict(state_dict=s, epoch=3), pth=s)[wrap], path)
    got = create_model('tiny', 3, init=path)
    assert all(torch.equal(a, b) for a, b in zip(got[0].state_dict().values(), model[0].state_dict().values()))


def test_wrong_weights_say_what_is_wrong(tmp_path):
    model = create_model('tiny', 7)
    s = model[0].state_dict()
    cases = {'lack 1 of': {k:v for k, v in s.items() if k != 'body.0.0.weight'}, 'have other shapes for 1': s | {'body.0.0.weight': torch.zeros(2)},
             'also have 1': s | {'body.9.weight': torch.zeros(2)}, 'no state dict': {'a': 3}}
    for word, state in cases.items():
        torch.save(state, tmp_path/'w.pth')
        with pytest.raises(InputError, match=word) as e: load_encoder(create_encoder('tiny'), tmp_path/'w.pth')
        assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='do not exist'): load_encoder(model[0], tmp_path/'no.pth')
    (tmp_path/'t.safetensors').write_text('nonsense')
    with pytest.raises(InputError, match='cannot be read'): load_encoder(model[0], tmp_path/'t.safetensors')
    with pytest.raises(InputError, match='does not take'): create_model('tiny', 2, colour=3)
    with pytest.raises(InputError, match='no weights that can be downloaded'): create_model('tiny', 2, 'pretrained')
    with pytest.raises(InputError, match='unknown model'): create_model('no_net', 2)


def test_a_hostile_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'hit'), 'w'))
    (tmp_path/'w.pth').write_bytes(pickle.dumps({'a': Evil()}))
    torch.save({'a': Evil()}, tmp_path/'v.pth')
    for f in ('w.pth', 'v.pth'):
        with pytest.raises(InputError, match='cannot be read as tensors'): load_encoder(create_encoder('tiny'), tmp_path/f)
    assert not (tmp_path/'hit').exists()


def test_eval_mode_restores_each_module():
    model = create_model('tiny', 2)
    model[0].body[0].eval()
    modes = [m.training for m in model.modules()]
    with pytest.raises(ZeroDivisionError), eval_mode(model):
        assert not any(m.training for m in model.modules())
        1/0
    assert [m.training for m in model.modules()] == modes


def test_imagenet_weights_see_what_is_there(shared):
    "Class 285 of the cat, with the padding that the weights were trained with"
    import timm
    from PIL import Image
    from torchvision.transforms import functional as T
    weights = shared/'weights/mobilenetv2_100_imagenet.pth'
    encoder = create_encoder('mobilenetv2_100', pad_type='same').eval()
    assert isinstance(load_encoder(encoder, weights), FrameEncoder)
    head = torch.load(weights, weights_only=True)
    x = T.normalize(T.center_crop(T.resize(T.to_tensor(Image.open(shared/'weights/check/cat.jpg').convert('RGB')), 256), 224), *model_stats('mobilenetv2_100'))
    with torch.no_grad(): logits = encoder(x[None, None]) @ head['classifier.weight'].T + head['classifier.bias']
    assert logits.argmax().item() == 285
    with pytest.raises(InputError, match='not of this encoder'): load_encoder(create_encoder('tiny'), weights)
    assert timm.is_model('mobilenetv2_100')
