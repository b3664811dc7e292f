"SlowFast and X3D give the features of pytorchvideo's nets, at the clips of their training and at others."
import sys

import pytest
import torch
from pretraining import needs_pytorchvideo
from torch import nn

from sdfast.errors import InputError
from sdfast.models.encoders import clip_spec, create_encoder, create_model, model_stats
from sdfast.models.features import encode
from sdfast.models.fits import check_fits
from sdfast.models.heads import read_head
from sdfast.models.slowfast_nets import slow_frames
from sdfast.models.surgery import block_names, frozen_copy
from sdfast.models.weights import load_encoder

SMALL = {'slowfast_r50': dict(model_depth=18, stem_dim_outs=(16, 2)), 'x3d_s': dict(width_factor=1., depth_factor=1.)}
WITHOUT_SOFTMAX = dict(head_activation=None)


def keyed(net):
    "A net whose weights and statistics are far from their initial values, the classifier's too"
    torch.manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm3d):
            for t in (m.running_mean, m.bias): nn.init.normal_(t, 0, .1)
            for t in (m.running_var, m.weight): nn.init.uniform_(t, .5, 1.5)
        if isinstance(m, nn.Linear): nn.init.normal_(m.weight, 0, .05)
    return net.eval()


def theirs(name, frames, size):
    "pytorchvideo's own net, with a pooling for clips of this shape"
    needs_pytorchvideo()
    if name.startswith('x3d'):
        from pytorchvideo.models.x3d import create_x3d
        return keyed(create_x3d(input_clip_length=frames, input_crop_size=size, **SMALL[name], **WITHOUT_SOFTMAX))
    from pytorchvideo.models.slowfast import create_slowfast
    window = size//32
    kernels = (frames//4, window, window), (frames, window, window)
    return keyed(create_slowfast(head_pool_kernel_sizes=kernels, **SMALL[name]))


def logits_of(net, name, x):
    "What pytorchvideo's net says of clips `(B, T, 3, H, W)`"
    x = x.transpose(1, 2)
    if name.startswith('x3d'): return net(x)
    n = x.shape[2]
    return net([x[:, :, torch.linspace(0, n - 1, n//4).long()], x])


@pytest.mark.parametrize('name, frames, size', [
    ('slowfast_r50', 8, 64), ('slowfast_r50', 8, 96), ('x3d_s', 8, 64), ('x3d_s', 8, 96), ('x3d_s', 12, 64)])
def test_features_are_what_the_classifier_gets(name, frames, size, tmp_path):
    """Also of clips that are larger than those of training, 8x64x64, whose windows are averaged.

    SlowFast of longer clips is refused by pytorchvideo: its pathways have windows of different number."""
    net = theirs(name, 8, 64)
    torch.save(dict(model_state=net.state_dict(), epoch=3), tmp_path/'net.pyth')
    encoder = load_encoder(create_encoder(name, frames=8, size=64, **SMALL[name]), tmp_path/'net.pyth').eval()
    head = read_head(tmp_path/'net.pyth', encoder, 400)
    x = torch.randn(2, frames, 3, size, size)
    with torch.no_grad():
        f, logits = encoder(x), logits_of(net, name, x)
        assert f.shape == (2, encoder.num_features)
        torch.testing.assert_close(head(f), logits, rtol=1e-4, atol=1e-4*logits.abs().max().item())
    assert (logits[0] - logits[1]).abs().mean() > 1e-3*logits.abs().mean()


@pytest.mark.parametrize('name', SMALL)
def test_smaller_clips_are_averaged_as_a_whole(name):
    "As a net with a pooling for these clips does, while pytorchvideo's net for larger ones fails"
    small, large = theirs(name, 4, 32), theirs(name, 8, 64)
    small.load_state_dict(large.state_dict())
    encoder = create_encoder(name, frames=8, size=64, **SMALL[name]).eval()
    own = {k:v for k, v in large.state_dict().items() if not k.startswith(encoder.head_name.removeprefix('body.'))}
    encoder.body.load_state_dict(own)
    x = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        with pytest.raises(RuntimeError): logits_of(large, name, x)
        want = logits_of(small, name, x)
        torch.testing.assert_close(small.blocks[-1].proj(encoder(x)), want, rtol=1e-4,
                                   atol=1e-4*want.abs().max().item())


@pytest.mark.parametrize('name, millions, n, frames, size', [
    ('slowfast_r50', 34.57, 2304, 32, 224), ('slowfast_r101', 62.83, 2304, 32, 224),
    ('slowfast_16x8_r101', 53.77, 2304, 64, 224), ('x3d_xs', 3.79, 2048, 4, 160), ('x3d_s', 3.79, 2048, 13, 160),
    ('x3d_m', 3.79, 2048, 16, 224), ('x3d_l', 6.15, 2048, 16, 312)])
def test_published_nets(name, millions, n, frames, size):
    "Parameters with 400 classes, and clips"
    needs_pytorchvideo()
    with torch.device('meta'): model = create_model(name, 400)
    assert round(sum(p.numel() for p in model.parameters())/1e6, 2) == millions
    spec = clip_spec(name)
    assert (model[0].num_features, spec.frames, spec.size) == (n, frames, size)
    assert model_stats(name) == (spec.mean, spec.std) == ((.45,)*3, (.225,)*3)


@pytest.mark.nightly
@pytest.mark.parametrize('name, hub', [('slowfast_r50', 'slowfast_r50'), ('slowfast_r101', 'slowfast_r101'),
                                       ('slowfast_16x8_r101', 'slowfast_16x8_r101_50_50'), ('x3d_xs', 'x3d_xs'),
                                       ('x3d_s', 'x3d_s'), ('x3d_m', 'x3d_m'), ('x3d_l', 'x3d_l')])
def test_checkpoints_of_the_hubs_nets_load(name, hub, tmp_path):
    "Whole nets at their own size; X3D's softmax is left out"
    needs_pytorchvideo()
    from importlib import import_module
    module = import_module(f'pytorchvideo.models.hub.{name.partition("_")[0]}')
    net = keyed(getattr(module, hub)())
    if name.startswith('x3d'): net.blocks[-1].activation = None
    torch.save(dict(model_state=net.state_dict()), tmp_path/'net.pyth')
    encoder = load_encoder(create_encoder(name), tmp_path/'net.pyth').eval()
    x = torch.randn(1, encoder.clips.frames, 3, encoder.clips.size, encoder.clips.size)
    with torch.no_grad():
        logits = logits_of(net, name, x)
        ours = read_head(tmp_path/'net.pyth', encoder, 400)(encoder(x))
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4*logits.abs().max().item())


def test_frames_of_the_slow_pathway_are_those_of_the_reference():
    assert slow_frames(32) == [0, 4, 8, 13, 17, 22, 26, 31]
    assert slow_frames(4) == [0]
    assert len(slow_frames(64)) == 16


def test_what_a_stage_returned_is_not_overwritten_by_the_next():
    needs_pytorchvideo()
    encoder = create_encoder('slowfast_r50', **SMALL['slowfast_r50']).eval()
    seen = {}
    for i, stage in enumerate(encoder.body.blocks[:5]):
        stage.register_forward_hook(lambda m, a, out, i=i: seen.update({i: (out, [t.clone() for t in out])}))
    with torch.no_grad(): encoder(torch.randn(1, 8, 3, 64, 64))
    assert len(seen) == 5
    for now, then in seen.values(): assert all(map(torch.equal, now, then))


@pytest.mark.parametrize('name', SMALL)
def test_features_of_every_block_and_a_copy(name):
    needs_pytorchvideo()
    encoder, x = create_encoder(name, **SMALL[name]).eval(), torch.randn(2, 8, 3, 32, 32)
    names = block_names(encoder)
    f, maps = encode(encoder, x, names)
    assert list(maps) == names and all(len(m) == 2 and m.ndim == 2 for m in maps.values())
    with torch.no_grad(): assert torch.equal(frozen_copy(encoder)(x), f)


def test_dropout_is_off_unless_asked_for():
    needs_pytorchvideo()
    for name, small in SMALL.items():
        assert create_encoder(name, **small).body.blocks[-1].dropout is None
        assert create_encoder(name, dropout_rate=.3, **small).body.blocks[-1].dropout.p == .3


def test_clips_that_the_pathways_cannot_share_are_refused():
    needs_pytorchvideo()
    encoder = create_encoder('slowfast_r50', **SMALL['slowfast_r50'])
    with pytest.raises(InputError, match='6 frames, expected a multiple of 4: pass frames=32'):
        encoder(torch.zeros(1, 6, 3, 32, 32))
    with pytest.raises(InputError, match='expected a multiple of 4'): check_fits(encoder, 10, 64)
    check_fits(encoder, 8, 100)


@pytest.mark.parametrize('name, kwargs, words', [
    ('slowfast_r50', dict(frames=6), 'multiple of 4, not 6'), ('slowfast_r50', dict(model_depth=7), '7 is not in'),
    ('x3d_m', dict(size=8), "Crop size doesn't match"), ('x3d_m', dict(wide=3), 'does not take wide=3'),
    ('slowfast_r50', dict(pretrained=True), 'no weights that can be downloaded')])
def test_other_settings_are_refused(name, kwargs, words):
    needs_pytorchvideo()
    with pytest.raises(InputError, match=words) as e: create_encoder(name, **kwargs)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', SMALL)
def test_without_pytorchvideo_the_error_says_what_to_install(name, monkeypatch):
    for module in ('pytorchvideo', 'pytorchvideo.models', 'pytorchvideo.models.slowfast', 'pytorchvideo.models.x3d'):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install 'sdfast\[encoders\]'$") as e: create_encoder(name)
    assert '\n' not in str(e.value)
    assert model_stats(name) == ((.45,)*3, (.225,)*3)
