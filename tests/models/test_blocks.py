"The blocks of encoders at any nesting."
import pytest
import torch
from torch import nn

from sdfast.models.blocks import block_names
from sdfast.models.encoders import create_encoder


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.blocks = nn.Linear(4, 4), nn.Sequential(Block(), Block())


class Net(nn.Module):
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items(): setattr(self, name, part)


def convs(n): return nn.Sequential(*[m for _ in range(n) for m in (nn.Conv2d(4, 4, 1), nn.ReLU())])


def nets():
    stem, blocks = nn.Linear(4, 4), [Block() for _ in range(2)]
    shared = nn.Linear(4, 4)
    one, two = Block(), Block()
    one.shared = two.shared = shared
    return dict(
        list=(Net(stem=stem, blocks=nn.ModuleList(blocks)), ['stem', 'blocks.0', 'blocks.1']),
        sequence=(Net(stem=stem, blocks=nn.Sequential(*blocks)), ['stem', 'blocks.0', 'blocks.1']),
        wrapped=(nn.Sequential(nn.Identity(), Net(net=Net(stem=stem, blocks=nn.ModuleList(blocks)))),
                 ['1.net.stem', '1.net.blocks.0', '1.net.blocks.1']),
        pooled=(nn.Sequential(nn.Sequential(stem, *blocks), nn.Flatten()), ['0.0', '0.1', '0.2']),
        stages=(Net(stem=stem, stages=nn.Sequential(Stage(), Stage())),
                ['stem', *[f'stages.{s}.{b}' for s in (0, 1) for b in ('down', 'blocks.0', 'blocks.1')]]),
        nested=(Net(stem=stem, stages=nn.ModuleList([nn.ModuleList([Block()]), nn.Sequential(*blocks)])),
                ['stem', 'stages.0.0', 'stages.1.0', 'stages.1.1']),
        hugging=(Net(base_model_prefix='net', encoder=Net(embed=stem, layer=nn.ModuleList(blocks)), predictor=Block()),
                 ['encoder.embed', 'encoder.layer.0', 'encoder.layer.1']),
        shared=(Net(shared=shared, blocks=nn.ModuleList([one, two])), ['blocks.0', 'blocks.1']),
        experts=(Net(stem=stem, blocks=nn.ModuleList([Net(norm=nn.LayerNorm(4), gate=nn.Linear(4, 2),
                                                          experts=nn.ModuleList([convs(1), convs(1)]))])),
                 ['stem', 'blocks.0']),
        hand=(Net(one=convs(2), two=convs(3)), ['one', 'two']),
        flat=(Net(features=convs(6), last=nn.Linear(4, 4)), [*[f'features.{i}' for i in range(0, 12, 2)], 'last']))


def test_blocks_of_parts_that_an_encoder_names():
    "In their order, inside wrappers, too; a part without modules inside is a block itself"
    net = Net(two=Net(stem=nn.Linear(4, 4), blocks=nn.ModuleList([Block(), Block()])), one=Net(a=Block(), b=Block()),
              last=nn.LSTM(4, 4), unused=nn.Linear(4, 4))
    net.encoder_parts = (('one', 'two'), ('last',))
    names = ['one.a', 'one.b', 'two.stem', 'two.blocks.0', 'two.blocks.1', 'last']
    assert block_names(net) == names
    assert block_names(nn.Sequential(nn.Identity(), net)) == [f'1.{n}' for n in names]


@pytest.mark.parametrize('kind', list(nets()))
def test_blocks_at_any_nesting(kind):
    net, names = nets()[kind]
    assert block_names(net) == names


@pytest.mark.parametrize('name,n,some', [
    ('c3d', 16, 'body.bn5b'), ('tiny', 4, 'body.3'), ('r2plus1d', 6, 'body.conv5'),
    ('r2plus1d_18', 9, 'body.layer4.1'), ('mvit_v2_s', 19, 'body.blocks.15'), ('swin3d_t', 17, 'body.features.4.5'),
    ('s3d', 12, 'body.0.15'), ('vit_small_patch16_dinov3', 14, 'body.blocks.11'),
    ('convnext_tiny', 23, 'body.stages.3.blocks.2'), ('xcit_nano_12_p16_224', 17, 'body.blocks.11'),
    ('hrnet_w18_small', 20, 'body.stage4'), ('poolformer_s12', 17, 'body.stages.3.blocks.1')])
def test_blocks_of_nets(name, n, some):
    with torch.device('meta'): names = block_names(create_encoder(name))
    assert len(names) == n and some in names
