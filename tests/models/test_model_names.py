"Where a name of a model is looked up: libraries, functions of the user's, and folders that we wrote."
import json
import sys

import pytest
import torch
import torchvision
from helpers import same, state
from torch import nn

from sdfast.errors import InputError
from sdfast.models.encoders import clip_spec, create_encoder, create_model, has_weights, is_model, model_id, model_stats
from sdfast.models.fits import check_fits
from sdfast.models.model_folder import push_to_hub, save_pretrained
from sdfast.models.nets import FrameEncoder, SpaceTimeEncoder
from sdfast.models.pretrained import from_pretrained


@pytest.mark.parametrize('bare, full', [('test_resnet', 'timm:test_resnet'), ('resnet18', 'timm:resnet18')])
def test_a_prefix_says_which_library(bare, full):
    torch.manual_seed(0)
    a = create_encoder(bare)
    torch.manual_seed(0)
    assert same(state(create_encoder(full)), state(a))
    assert is_model(bare) and is_model(full) and model_stats(bare) == model_stats(full)
    assert is_model('torchvision:r3d_18') and model_stats('torchvision:r3d_18') == model_stats('r3d_18')


@pytest.mark.parametrize('name', ['resnet18', 'vgg11_bn', 'vit_b_32', 'convnext_tiny', 'mobilenet_v3_small',
                                  'googlenet', 'swin_t'])
def test_image_nets_of_torchvision_without_their_last_layer(name):
    "Their state dicts are those of the nets, without the last layer"
    kwargs = dict(init_weights=False) if name == 'googlenet' else {}
    with torch.device('meta'):
        encoder = create_encoder(f'torchvision:{name}', **kwargs)
        net = torchvision.models.get_model(name, **kwargs)
    assert isinstance(encoder, FrameEncoder)
    names = {n.removeprefix('body.') for n, _ in encoder.named_parameters()}
    left = [n for n, _ in net.named_parameters() if n not in names and 'aux' not in n]
    assert len(left) in (1, 2)
    linear = dict(net.named_parameters())[left[0]]
    assert encoder.num_features == linear.shape[1]
    size = 224
    with torch.device('meta'): f = encoder.eval()(torch.empty(1, 2, 3, size, size))
    assert f.shape == (1, encoder.num_features)


def test_weights_of_torchvision_by_the_name_of_their_enum(monkeypatch):
    asked = []
    real = torchvision.models.get_model
    def get_model(name, weights=None, **kw):
        asked.append(weights)
        with torch.device('meta'): return real(name, weights=None, **kw)
    monkeypatch.setattr(torchvision.models, 'get_model', get_model)
    known = torchvision.models.get_model_weights('r3d_18')
    for given in ('KINETICS400_V1', 'R3D_18_Weights.KINETICS400_V1', known.KINETICS400_V1):
        create_model('torchvision:r3d_18', 2, weights=given)
    create_model('torchvision:r3d_18', 2, pretrained=True)
    create_model('torchvision:r3d_18', 2, init='pretrained')
    create_model('r3d_18', 2)
    assert asked == [known.KINETICS400_V1]*5 + [None]
    with pytest.raises(InputError, match="no weights 'IMAGENET1K_V1'; it has KINETICS400_V1"):
        create_model('r3d_18', 2, weights='IMAGENET1K_V1')


FUNCTIONS = '''
import torch
from torch import nn
class Tokens(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.proj = nn.Conv3d(3, width, (2, 8, 8), (2, 8, 8))
    def forward(self, x): return self.proj(x.transpose(1, 2)).flatten(2).transpose(1, 2)
def tokens(width=6): return Tokens(width)
class Named(nn.Module):
    num_features = 4
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 4)
    def forward(self, x): return self.lin(x.mean((1, 3, 4)))
def odd(): return 3
def fails():
    class Fails(nn.Linear):
        def forward(self, x): raise RuntimeError('only on weekdays')
    return Fails(2, 2)
'''


def test_functions_of_the_users(tmp_path, monkeypatch):
    (tmp_path/'my_nets_of_a_test.py').write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p not in ('', str(tmp_path))])
    name, x = 'my_nets_of_a_test:', torch.randn(2, 4, 3, 32, 32)
    model = create_model(f'{name}tokens', 3, width=5)
    assert model[0].num_features == 5
    torch.testing.assert_close(model[0](x), model[0].body(x).mean(1))
    assert model(x).shape == (2, 3)
    assert create_encoder(f'{name}Named').num_features == 4
    assert len(model_id(f'{name}tokens')) == 16 and is_model(f'{name}tokens')
    for bad, words in {f'{name}none': "no function 'none'; it has Tokens, tokens, Named, odd, fails",
                       'no_such_module_here:f': 'there is no module', f'{name}odd': 'must return a torch.nn.Module',
                       f'{name}fails': r'only on weekdays\); give the module the attribute num_features',
                       'x y:z': 'unknown model', 'timm:no_net': 'unknown', 'torchvision:no_net': 'unknown'}.items():
        with pytest.raises(InputError, match=words) as e: create_encoder(bad)
        assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='not take pretrained=True'): create_model(f'{name}tokens', 2, 'pretrained')
    with pytest.raises(InputError, match='does not take depth=2'): create_encoder(f'{name}tokens', depth=2)


def test_which_models_come_with_weights():
    assert has_weights('hf:x') and has_weights('sdfast:x') and not has_weights('tiny') and not has_weights('timm:x')
    assert has_weights('tiny', 'w.pth') and has_weights('r3d_18', weights='KINETICS400_V1')
    assert not has_weights('hf:x', 'random')


@pytest.mark.parametrize('name, frames, size, words', [
    ('mvit_v2_s', 8, 224, 'clips of 8 frames, expected 16: pass frames=16'),
    ('mvit_v2_s', 16, 40, 'frames of 40x40 pixels, expected 224x224: pass size=224'),
    ('vit_tiny_patch16_224', 2, 112, 'expected 224x224: pass size=224'),
    ('torchvision:vit_b_32', 2, 112, 'expected 224x224: pass size=224'),
    ('levit_128s', 2, 64, 'it was trained with size=224'),
    ('s3d', 2, 40, 'the model cannot take clips of 2 frames of 40x40 pixels')])
def test_clips_that_do_not_fit_are_found_without_computing(name, frames, size, words):
    with torch.device('meta'): encoder = create_encoder(name)
    with pytest.raises(InputError, match=words) as e: check_fits(encoder, frames, size)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name, frames, size, kw', [
    ('tiny', 8, 40, {}), ('r2plus1d', 16, 112, {}), ('mvit_v2_s', 16, 224, {}), ('swin3d_t', 8, 64, {}),
    ('vit_tiny_patch16_224', 2, 64, dict(img_size=64)), ('vit_tiny_patch16_224', 2, 64, dict(dynamic_img_size=True))])
def test_clips_that_fit_pass(name, frames, size, kw):
    encoder = create_encoder(name, **kw)
    before = state(encoder)
    check_fits(encoder, frames, size)
    assert encoder.training and same(state(encoder), before)


def test_a_clip_that_a_net_cannot_take_is_one_line_in_training_too():
    with torch.device('meta'): encoder = create_encoder('mvit_v2_s')
    assert isinstance(encoder, SpaceTimeEncoder)
    with pytest.raises(InputError, match='expected 16: pass frames=16'): encoder(torch.zeros(1, 4, 3, 224, 224))


# ---- the layout of the hub

@pytest.mark.parametrize('with_head', [True, False])
def test_a_saved_model_is_made_again(with_head, tmp_path):
    model = create_model('tiny', 3, width=2)
    saved = save_pretrained(model if with_head else model[0], tmp_path/'m')
    assert {f.name for f in saved.iterdir()} == {'config.json', 'model.safetensors'}
    again = from_pretrained(saved)
    assert isinstance(again, nn.Sequential) == with_head
    assert same(state(again), state(model if with_head else model[0]))
    encoder = create_encoder(f'sdfast:{saved}')
    assert same(state(encoder), state(model[0]))
    assert model_stats(f'sdfast:{saved}') == tuple(map(tuple, model_stats('tiny')))
    other = create_model(f'sdfast:{saved}', 5, init='random')[0]
    assert not same(state(other), state(model[0])) and len(model_id(f'sdfast:{saved}')) == 16
    assert same(state(from_pretrained(save_pretrained(encoder, tmp_path/'n'))), state(model[0]))


def test_a_saved_video_transformer_needs_no_other_folder(tmp_path):
    transformers = pytest.importorskip('transformers')
    sizes = dict(image_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    net = transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(num_frames=4, **sizes))
    net.save_pretrained(tmp_path/'hf')
    encoder = create_encoder(f'hf:{tmp_path/"hf"}').eval()
    save_pretrained(encoder, tmp_path/'ours')
    (tmp_path/'hf').rename(tmp_path/'gone')
    again, x = from_pretrained(tmp_path/'ours').eval(), torch.randn(1, 4, 3, 32, 32)
    assert torch.equal(again(x), encoder(x)) and again.clips == encoder.clips
    assert clip_spec(f'sdfast:{tmp_path/"ours"}') == encoder.clips
    with pytest.raises(InputError, match='config.json is not of sdfast: for a model of transformers write hf:'):
        from_pretrained(tmp_path/'gone')


def test_what_cannot_be_saved_says_why(tmp_path):
    with pytest.raises(InputError, match='a Linear has no name'): save_pretrained(nn.Linear(2, 2), tmp_path)
    model = create_model('tiny', 2, width=2)
    with pytest.raises(InputError, match='only a linear layer'):
        save_pretrained(nn.Sequential(model[0], nn.ReLU()), tmp_path)
    assert not list(tmp_path.iterdir())


def test_pushing_uploads_the_folder(monkeypatch):
    import huggingface_hub
    calls = []
    class Api:
        def __init__(self, token=None): calls.append(token)
        def create_repo(self, repo_id, **kw): calls.append((repo_id, kw))
        def file_exists(self, repo_id, name): return False
        def upload_folder(self, repo_id, folder_path, commit_message):
            from pathlib import Path
            folder = Path(folder_path)
            calls.append({f.name for f in folder.iterdir()})
            calls.append(json.loads((folder/'config.json').read_text())['model'])
            return 'https://hub/commit/1'
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    assert push_to_hub(create_model('tiny', 2, width=2), 'me/net', private=True, token='t') == 'https://hub/commit/1'
    assert calls == ['t', ('me/net', dict(private=True, exist_ok=True)),
                     {'config.json', 'model.safetensors', 'README.md'}, 'tiny']
    monkeypatch.setattr(Api, 'create_repo', lambda *a, **k: 1/0)
    with pytest.raises(InputError, match='me/net cannot be uploaded: division by zero'):
        push_to_hub(create_model('tiny', 2, width=2), 'me/net')
