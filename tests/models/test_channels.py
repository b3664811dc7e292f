"The axis of the channels, where sizes do not tell; the feature of every kind of output."
import copy
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlock
from torchvision.models.video.swin_transformer import PatchEmbed3d, ShiftedWindowAttention3d

from sdfast.errors import InputError
from sdfast.models.channels import channel_axis
from sdfast.models.features import encode, to_feature, to_maps
from sdfast.models.returned import map_tensors


class Frames(nn.Module):
    "Keeps frames apart: `(B, T, C, H, W)`"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x): return self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Unit(nn.Module):
    "Features of length 1 at every place, channels last"
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x): return nn.functional.normalize(self.mix(x), dim=-1)


def swin3d():
    from torchvision.models.video.swin_transformer import partial
    attention = partial(ShiftedWindowAttention3d)
    return SwinTransformerBlock(8, 2, [2, 2, 2], [0, 0, 0], attn_layer=attention)


def dense(): return timm.models.densenet.DenseBlock(2, 8, bn_size=2, growth_rate=8)


# everything is 8 wide, long, high and deep, so that sizes do not tell: module, number of axes of its input, axis
TIES = dict(
    conv1d=(lambda: nn.Sequential(nn.Conv1d(8, 8, 1), nn.ReLU()), 3, 1),
    tokens=(lambda: timm.models.vision_transformer.Block(8, 2), 3, 2),
    torch_tokens=(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3, 2),
    convnext=(lambda: timm.models.convnext.ConvNeXtBlock(8), 4, 1),
    convnext_stage=(lambda: nn.Sequential(*[timm.models.convnext.ConvNeXtBlock(8) for _ in range(2)]), 4, 1),
    resnet=(lambda: timm.models.resnet.BasicBlock(8, 8), 4, 1),
    squeeze=(lambda: timm.models._efficientnet_blocks.InvertedResidual(8, 8, se_layer=timm.layers.SqueezeExcite), 4, 1),
    densenet=(dense, 4, 1),
    layer_norm_2d=(lambda: nn.Sequential(timm.layers.LayerNorm2d(8), nn.Conv2d(8, 8, 1)), 4, 1),
    swin=(lambda: timm.models.swin_transformer.SwinTransformerBlock(8, (8, 8), 2, window_size=4), 4, 3),
    swin3d=(swin3d, 5, 4),
    merging=(lambda: PatchMergingV2(8), 4, 3),
    embedding=(lambda: PatchEmbed3d([1, 1, 1], 8, 8, nn.LayerNorm), 5, 4),
    linear=(lambda: nn.Linear(8, 8), 4, 3),
    channels_last=(lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()), 4, 3),
    frames=(Frames, 5, 2),
    unit=(Unit, 4, 3),
    shuffle=(lambda: nn.Sequential(nn.Conv2d(8, 32, 1), nn.PixelShuffle(2)), 4, 1))


@pytest.mark.parametrize('name', TIES)
@pytest.mark.parametrize('training', [False, True])
def test_the_layers_decide_where_sizes_do_not(name, training):
    make, ndim, axis = TIES[name]
    torch.manual_seed(0)
    module, x = make().train(training), torch.randn(*[8]*ndim)
    out = module(x)
    buffers = copy.deepcopy(dict(module.named_buffers()))
    rng = torch.get_rng_state()
    seen = []
    handle = module.register_forward_hook(lambda *a: seen.append(1))
    assert channel_axis(module, out, (x,)) == axis
    assert not seen and all(torch.equal(b, buffers[n]) for n, b in module.named_buffers())
    assert module.training == training and torch.equal(rng, torch.get_rng_state())
    handle.remove()
    # places may trade places
    others = [a for a in range(1, ndim) if a != axis]
    torch.testing.assert_close(to_feature(module, out, (x,)), out.mean(others), rtol=1e-4, atol=1e-5)
    assert to_maps(module, out, (x,))[0].shape[1] == out.shape[axis]


def test_an_input_that_is_changed_in_place_keeps_its_graph():
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
    x = (torch.randn(2, 4, 4, 4, requires_grad=True)*1.)
    out = module(x)
    assert channel_axis(module, out, (x,)) == 1
    out.sum().backward()


def test_a_module_that_cannot_be_called_again_is_decided_by_its_widths():
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.used = nn.Linear(6, 5), False
        def forward(self, x):
            if self.used: raise RuntimeError
            self.used = True
            return self.lin(x)
    module = Once()
    assert channel_axis(module, module(torch.randn(2, 3, 4, 6)), (torch.randn(2, 3, 4, 6),)) == 3


@dataclass
class Output:
    last_hidden_state: torch.Tensor
    attentions: torch.Tensor|None = None


T, P = torch.arange(24.).reshape(2, 3, 4), torch.ones(2, 7)
KINDS = dict(
    tensor=T, tuple=(T, (1, 2, 3)), list=[T], nested=((T, P), None), dict=dict(logits=P, features=T), only=dict(x=T),
    ordered=OrderedDict(pooler_output=P, last_hidden_state=T), dataclass=Output(T), none=dict(x=None, y=T),
    named=namedtuple('Out', 'last_hidden_state pooler_output')(T, P), companion=(T, torch.ones(2, 4, 4)))


@pytest.mark.parametrize('kind', KINDS)
def test_tokens_in_whatever_a_module_returns(kind):
    out = KINDS[kind]
    torch.testing.assert_close(to_feature(nn.Identity(), out), T.mean(1))
    changed = map_tensors(out, lambda t: -t)
    assert type(changed) is type(out) and torch.equal(to_feature(nn.Identity(), changed), -T.mean(1))
    assert torch.equal(to_feature(nn.Identity(), out), T.mean(1))


def test_branches_side_by_side():
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    net = nn.Conv2d(3, 3, 1)
    want = torch.cat([m.mean((2, 3)) for m in maps], 1)
    torch.testing.assert_close(to_feature(net, maps), want)
    tokens = tuple(torch.randn(2, n, 4) for n in (5, 3, 2))
    torch.testing.assert_close(to_feature(nn.Identity(), tokens), torch.cat([t.mean(1) for t in tokens], 1))


@pytest.mark.parametrize('out', [None, 'text', (), (None, T), dict(logits=T), dict(a=T, b=T), torch.arange(3), 1.])
def test_anything_else_is_refused_with_advice(out):
    with pytest.raises(InputError, match='returns .*expected a tensor .*wrap it in a module whose forward returns'):
        to_feature(nn.Identity(), out)


def test_the_base_model_of_a_classifier_is_named():
    transformers = pytest.importorskip('transformers')
    config = transformers.VideoMAEConfig(image_size=16, patch_size=8, num_frames=2, hidden_size=8, num_hidden_layers=1,
                                         num_attention_heads=1, intermediate_size=8)
    net = transformers.VideoMAEForVideoClassification(config)
    with pytest.raises(InputError, match="ImageClassifierOutput with logits.*base model, 'videomae'"):
        encode(net, torch.randn(1, 2, 3, 16, 16))
    assert encode(net.videomae, torch.randn(1, 2, 3, 16, 16))[0].shape == (1, 8)
