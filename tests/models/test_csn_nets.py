"Channel-separated networks: sizes as published, the operations of a block, checkpoints of VMZ."
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdfast.errors import InputError
from sdfast.models.csn_nets import csn
from sdfast.models.encoders import clip_spec, create_encoder, create_model, model_stats
from sdfast.models.heads import read_head
from sdfast.models.weights import load_encoder

TINY = dict(depths=(1, 2, 1, 1))


def random_norms(net):
    "Statistics and weights of batch norm that change what goes through it"
    for m in net.modules():
        if not isinstance(m, nn.BatchNorm3d): continue
        for t in (m.running_mean, m.bias): nn.init.normal_(t, 0, .1)
        for t in (m.running_var, m.weight): nn.init.uniform_(t, .5, 1.5)
    return net


@pytest.mark.parametrize('name, millions, convolutions', [('ir_csn_152', 29.70, 155), ('ip_csn_152', 33.02, 205)])
def test_sizes_as_published(name, millions, convolutions):
    "With 400 classes, and 50 blocks of three or four convolutions, a stem and four shortcuts"
    with torch.device('meta'): model = create_model(name, 400)
    assert round(sum(p.numel() for p in model.parameters())/1e6, 2) == millions
    encoder = model[0]
    assert encoder.num_features == 2048
    convs = [m for m in encoder.modules() if isinstance(m, nn.Conv3d)]
    assert len(convs) == convolutions
    deep = [m for m in convs if m.kernel_size == (3, 3, 3)]
    assert len(deep) == 50 and all(m.groups == m.in_channels == m.out_channels for m in deep)
    assert all(m.kernel_size == (1, 1, 1) and m.groups == 1 for m in convs[1:] if m not in deep)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm3d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, .9)}


def features_by_hand(kind, x, s):
    "The features of clips from the entries of a VMZ checkpoint, operation by operation"
    def bn(x, p):
        values = [s[f'{p}.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias')]
        return F.batch_norm(x, *values, eps=1e-3)
    def deep(x, p, stride):
        if kind == 'ip':
            x = bn(F.conv3d(x, s[f'{p}.0.weight']), f'{p}.1')
            p = f'{p}.2'
        weight = s[f'{p}.weight']
        return F.conv3d(x, weight, stride=stride, padding=1, groups=len(weight))
    x = bn(F.conv3d(x.transpose(1, 2), s['stem.0.weight'], stride=(1, 2, 2), padding=(1, 3, 3)), 'stem.1').relu()
    x = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    for stage, depth in enumerate(TINY['depths'], 1):
        for block in range(depth):
            p, stride = f'layer{stage}.{block}', 2 if stage > 1 and not block else 1
            y = bn(F.conv3d(x, s[f'{p}.conv1.0.weight']), f'{p}.conv1.1').relu()
            y = bn(deep(y, f'{p}.conv2.0', stride), f'{p}.conv2.1').relu()
            y = bn(F.conv3d(y, s[f'{p}.conv3.0.weight']), f'{p}.conv3.1')
            if not block: x = bn(F.conv3d(x, s[f'{p}.downsample.0.weight'], stride=stride), f'{p}.downsample.1')
            x = (x + y).relu()
    return x.mean((2, 3, 4))


@pytest.mark.parametrize('kind', ['ir', 'ip'])
def test_features_by_hand(kind):
    torch.manual_seed(0)
    encoder = random_norms(create_encoder(f'{kind}_csn_152', **TINY)).eval()
    x = torch.randn(2, 8, 3, 64, 64)
    with torch.no_grad():
        f = features_by_hand(kind, x, {k.removeprefix('body.'):v for k, v in encoder.state_dict().items()})
        torch.testing.assert_close(encoder(x), f, rtol=1e-4, atol=1e-5)
    assert f.std(0).mean() > 1e-3


@pytest.mark.parametrize('kind', ['ir', 'ip'])
def test_a_checkpoint_of_the_authors_loads_with_strict_names(kind, tmp_path):
    name = f'{kind}_csn_152'
    theirs = create_encoder(name, **TINY)
    entries = {k.removeprefix('body.'):v for k, v in random_norms(theirs).state_dict().items()}
    head = {'fc.weight': torch.randn(400, 2048), 'fc.bias': torch.randn(400)}
    torch.save(entries | head, tmp_path/'csn.pth')
    ours = load_encoder(create_encoder(name, **TINY), tmp_path/'csn.pth')
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert torch.equal(read_head(tmp_path/'csn.pth', ours).weight, head['fc.weight'])
    other = 'ip_csn_152' if kind == 'ir' else 'ir_csn_152'
    with pytest.raises(InputError, match='not of this encoder'):
        load_encoder(create_encoder(other, **TINY), tmp_path/'csn.pth')


def test_clips_as_in_the_authors_training():
    spec = clip_spec('ir_csn_152', **TINY)
    assert (spec.frames, spec.size) == (32, 224)
    assert model_stats('ip_csn_152') == (spec.mean, spec.std) == model_stats('r2plus1d_18')


@pytest.mark.parametrize('kwargs, words', [
    (dict(depths=(3, 4)), 'four numbers of blocks, such as'), (dict(depths=(1, 1, 1, 0)), 'four numbers of blocks'),
    (dict(kind='ip'), "does not take kind='ip'"), (dict(width=2), 'does not take width=2')])
def test_other_settings_are_refused(kwargs, words):
    with pytest.raises(InputError, match=words) as e: create_encoder('ir_csn_152', **kwargs)
    assert '\n' not in str(e.value)


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="one of ir, ip, not 'xx'"): csn('xx')
