"Every model is `Sequential(encoder, head)` over clips."
import pytest
import torch

from sdfast.errors import InputError
from sdfast.models.encoders import create_encoder, create_model, encoder_head_split, is_model, model_stats
from sdfast.models.nets import FrameEncoder
from sdfast.models.weights import load_encoder

# name, frames and side of a clip, features
MODELS = [
    ('tiny', 8, 40, 96),
    ('r3d_18', 4, 32, 512),
    ('r2plus1d_18', 4, 32, 512),
    ('mc3_18', 4, 32, 512),
    ('s3d', 16, 224, 1024),
    ('resnet18', 3, 64, 512),
    ('mobilenetv3_small_050', 2, 64, 1024),
]


@pytest.mark.parametrize('name,frames,size,n', MODELS)
def test_clips_to_features_to_logits(name, frames, size, n):
    assert is_model(name)
    model = create_model(name, 5).eval()
    x = torch.rand(2, frames, 3, size, size)
    with torch.no_grad():
        assert model[0](x).shape == (2, n) == (2, model[0].num_features)
        assert model(x).shape == (2, 5)
    split = encoder_head_split(model)
    assert sorted(map(id, split[0] + split[1])) == sorted(map(id, model.parameters())) and len(split[1]) == 2


def test_stats():
    assert model_stats('tiny')[0] == [0.485, 0.456, 0.406]
    assert model_stats('r2plus1d_18')[0] == (0.43216, 0.394666, 0.37645)
    assert model_stats('vit_tiny_patch16_224')[0] == (.5, .5, .5)


def test_imagenet_weights_see_what_is_there(shared):
    "Class 285 of the cat, with the padding that the weights were trained with"
    import timm
    from PIL import Image
    from torchvision.transforms import functional as T
    weights = shared/'weights/mobilenetv2_100_imagenet.pth'
    encoder = create_encoder('mobilenetv2_100', pad_type='same').eval()
    assert isinstance(load_encoder(encoder, weights), FrameEncoder)
    head = torch.load(weights, weights_only=True)
    image = T.to_tensor(Image.open(shared/'weights/check/cat.jpg').convert('RGB'))
    x = T.normalize(T.center_crop(T.resize(image, 256), 224), *model_stats('mobilenetv2_100'))
    with torch.no_grad(): logits = encoder(x[None, None]) @ head['classifier.weight'].T + head['classifier.bias']
    assert logits.argmax().item() == 285
    with pytest.raises(InputError, match='not of this encoder'): load_encoder(create_encoder('tiny'), weights)
    assert timm.is_model('mobilenetv2_100')


@pytest.mark.parametrize('name, size, option', [
    ('ghostnet_050', 32, 'drop_rate'), ('swin_tiny_patch4_window7_224', 224, 'drop_path_rate'), ('swin3d_t', 32, None)])
def test_dropout_is_off_unless_asked_for(name, size, option):
    "So that a copy in eval mode has the same features"
    def differ(encoder):
        for m in encoder.train().modules():
            if hasattr(m, 'running_mean'): m.eval()
        x = torch.randn(2, 2, 3, size, size, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        with torch.no_grad(): return not torch.allclose(encoder(x), encoder.eval()(x), rtol=1e-4, atol=1e-5)
    assert not differ(create_encoder(name))
    if option: assert differ(create_encoder(name, **{option: .5}))
