"Strategies on encoders that return tokens, maps with channels last, tuples, dicts and output dataclasses."
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD
from torch import nn

from sdfast.errors import InputError
from sdfast.models.features import encode, extract, head_input
from sdfast.models.nets import FrameEncoder, SpaceTimeEncoder
from sdfast.models.surgery import block_names
from sdfast.strategies import (
    BSS,
    BYOT,
    DELTA,
    PSKD,
    R3F,
    CoTuning,
    EMATeacher,
    FeatureMaps,
    FixedTeacher,
    LwF,
    SelfDistill,
    channel_attention,
)

X, Y = torch.randn(4, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 2


def hugging(model, config, **kw):
    transformers = pytest.importorskip('transformers')
    sizes = dict(image_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    return getattr(transformers, model)(getattr(transformers, config)(**sizes | kw))


def vjepa2():
    return hugging('VJEPA2Model', 'VJEPA2Config', crop_size=32, patch_size=16, frames_per_clip=4, pred_hidden_size=16,
                   pred_num_attention_heads=2, pred_num_hidden_layers=1, mlp_ratio=2., pred_mlp_ratio=2.)


def swin3d():
    net = torchvision.models.video.SwinTransformer3d([2, 4, 4], 16, [1, 2], [2, 2], [2, 4, 4], stochastic_depth_prob=0.,
                                                    num_classes=1)
    net.head = nn.Identity()
    return SpaceTimeEncoder(net, 32)


def mvit():
    from torchvision.models.video.mvit import MSBlockConfig
    blocks = [MSBlockConfig(1, 16, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 1, 1]),
              MSBlockConfig(2, 16, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1])]
    net = torchvision.models.video.MViT((32, 32), 4, blocks, False, True, True, True, num_classes=1)
    net.head = nn.Identity()
    return SpaceTimeEncoder(net, 32)


def frames(name, width, **kw): return FrameEncoder(timm.create_model(name, num_classes=0, **kw), width)


# encoder and the layer that makes the output channels of a block, as (block, layer inside)
ENCODERS = dict(
    swin3d=(swin3d, 'body.features.2.0', 'mlp.3'),
    mvit=(mvit, 'body.blocks.0', 'mlp.3'),
    vit=(lambda: frames('vit_tiny_patch16_224', 32, img_size=32, embed_dim=32, depth=2, num_heads=2),
         'body.blocks.1', 'mlp.fc2'),
    dinov3=(lambda: frames('vit_small_patch16_dinov3', 32, img_size=32, embed_dim=32, depth=2, num_heads=2,
                           init_values=1.),
            'body.blocks.1', 'mlp.fc2'),
    convnext=(lambda: frames('convnext_atto', 16, depths=(1, 2, 1, 1), dims=(8, 8, 16, 16),
                             ls_init_value=1.), 'body.stages.1.blocks.0', 'mlp.fc2'),
    videomae=(lambda: hugging('VideoMAEModel', 'VideoMAEConfig', patch_size=16, num_frames=4), 'encoder.layer.1',
              'output.dense'),
    vivit=(lambda: hugging('VivitModel', 'VivitConfig', num_frames=4, tubelet_size=[2, 16, 16]), 'layers.1',
           'mlp.fc2'),
    timesformer=(lambda: hugging('TimesformerModel', 'TimesformerConfig', patch_size=16, num_frames=4),
                 'encoder.layer.1', 'output.dense'),
    vjepa2=(vjepa2, 'encoder.layer.1', 'mlp.fc2'))


def build(name):
    torch.manual_seed(0)
    encoder = ENCODERS[name][0]().eval()
    return encoder, encode(encoder, X)[0].shape[1]


def loaders():
    ds = list(zip(X, Y))
    return DataLoaders(DataLoader(ds, bs=2), DataLoader(ds, bs=2))


class Features(nn.Linear):
    "A head for an encoder whose output is tokens in a dataclass"
    def forward(self, out):
        if not torch.is_tensor(out): out = out.last_hidden_state
        return super().forward(out.mean(1) if out.ndim == 3 else out)


class Logits(nn.Module):
    def forward(self, out): return out.logits


def fit(encoder, width, cb, lr=0., epochs=1, head=None):
    net = nn.Sequential(encoder, head or Features(width, 2))
    learn = Learner(loaders(), net, loss_func=nn.CrossEntropyLoss(), cbs=cb, opt_func=SGD, lr=lr)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn.recorder.values[-1][-1]


@pytest.mark.parametrize('name', ENCODERS)
def test_channels_move_features_and_tokens_do_not(name):
    encoder, width = build(name)
    _, block, layer = ENCODERS[name]
    assert block in block_names(encoder)
    out = {}
    module = encoder.get_submodule(block)
    with torch.no_grad():
        hook = module.register_forward_hook(lambda m, a, o: out.update(o=o[0] if isinstance(o, tuple) else o))
        before = encode(encoder, X, [block])[1][block]
        hook.remove()
        map_, channels = out['o'].float(), before.shape[1]
        axis = 1 if name == 'convnext' else map_.ndim - 1
        assert channels == map_.shape[axis]
        want = map_.movedim(axis, 1).flatten(2).mean(2).unflatten(0, (len(X), -1)).mean(1)
        torch.testing.assert_close(before, want, rtol=1e-5, atol=1e-6)
        last = module.get_submodule(layer)
        permuted = copy.deepcopy(encoder)
        moved = permuted.get_submodule(f'{block}.{layer}')
        perm = torch.randperm(channels)
        moved.weight.copy_(last.weight[perm] + 1), moved.bias.copy_(last.bias[perm] + 1)
        after = encode(permuted, X, [block])[1][block]
    far = (before - after).square().mean().item()
    frozen = fit(permuted, width, FixedTeacher(1., anchor=encoder, layers=[block]))
    assert far > 1e-3 and frozen > .5*far


@pytest.mark.parametrize('name', ENCODERS)
def test_strategies_train_token_encoders_and_start_at_0(name):
    encoder, width = build(name)
    head = nn.Linear(width, 3)
    net = nn.Sequential(encoder, Features(width, 2))
    block = ENCODERS[name][1]
    for cb in (SelfDistill(1.), FixedTeacher(1., layers='blocks'), FixedTeacher(1., layers='blocks', normalise=True),
               EMATeacher(1., layers='blocks'), FeatureMaps(1.), LwF(1., head)):
        assert fit(encoder, width, cb) == pytest.approx(0, abs=1e-9), type(cb).__name__
    with torch.no_grad(): weights = channel_attention(net, [(X, Y)], layers=[block])
    assert len(weights[block]) == encode(encoder, X, [block])[1][block].shape[1]
    relation = torch.full((2, 3), 1/3)
    for cb in (DELTA(1., weights), BYOT(.1), BSS(1.), CoTuning(1., head, relation), R3F(1.)):
        assert fit(copy.deepcopy(encoder), width, cb, lr=.001) >= 0, type(cb).__name__
    features, labels = extract(encoder, loaders().valid)
    assert features.shape == (4, width) and torch.equal(labels, Y)


@pytest.mark.parametrize('cls', [SelfDistill, FixedTeacher])
def test_the_distance_of_tokens_is_that_of_their_means(cls):
    encoder, width = build('videomae')
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for p in other.parameters(): p.add_(.05*torch.randn_like(p))
        means = [e(X).last_hidden_state.mean(1) for e in (encoder, other)]
    if cls is FixedTeacher: got = fit(other, width, FixedTeacher(1., anchor=encoder))
    else: got = means[0].sub(means[1]).square().mean().item()
    assert got == pytest.approx(F.mse_loss(*means).item(), rel=1e-4)


def test_slices_of_ldifs_have_length_1():
    encoder, width = build('vit')
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for p in other.parameters(): p.add_(.05*torch.randn_like(p))
    names = block_names(encoder)
    kept = {}
    def features(e):
        hooks = [e.get_submodule(n).register_forward_hook(lambda m, a, o, n=n: kept.update({n:o})) for n in names]
        with torch.no_grad(): e(X)
        for h in hooks: h.remove()
        return [kept[n].mean(1) for n in names]
    want = [((s/s.norm(dim=1)[:, None] - t/t.norm(dim=1)[:, None])**2).mean()
            for s, t in zip(features(encoder), features(other))]
    got = fit(other, width, FixedTeacher(1., anchor=encoder, layers='blocks', normalise=True))
    assert got == pytest.approx(torch.stack(want).mean().item(), rel=1e-4)


def test_keyword_arguments_in_a_loop_of_ones_own():
    "As in fastai, with an output dataclass; the term by hand"
    torch.manual_seed(0)
    net = hugging('VideoMAEForVideoClassification', 'VideoMAEConfig', patch_size=16, num_frames=4, num_labels=2)
    start = copy.deepcopy(net.videomae).eval()
    opt = torch.optim.SGD(net.parameters(), lr=.01)
    strategies = [FixedTeacher(1.), FixedTeacher(1., layers='blocks'), PSKD(.5), R3F(1.)]
    for s in strategies: s.attach(net, opt, encoder='videomae', epochs=2)
    for _ in range(2):
        for s in strategies: s.start_epoch()
        for x, y in loaders().train:
            loss = F.cross_entropy(net(pixel_values=x).logits, y)
            terms = [s.loss(y) for s in strategies]
            with torch.no_grad():
                means = [e(pixel_values=x).last_hidden_state.mean(1) for e in (net.videomae, start)]
            assert terms[0].item() == pytest.approx(F.mse_loss(*means).item(), rel=1e-4, abs=1e-9)
            (loss + sum(terms)).backward()
            opt.step(), opt.zero_grad()
            for s in strategies: s.after_step()
    assert all(torch.isfinite(t) for t in terms) and terms[0] > 0
    for s in strategies: s.detach()


def test_an_encoder_that_returns_logits_is_refused_with_the_name_of_its_base():
    net = hugging('VideoMAEForVideoClassification', 'VideoMAEConfig', patch_size=16, num_frames=4, num_labels=2)
    with pytest.raises(InputError, match="FixedTeacher: the encoder .*logits.*its base model, 'videomae', or wrap it"):
        fit(net, 16, FixedTeacher(1.), head=Logits())


@pytest.mark.parametrize('part', ['hf.fc_norm', 'hf.videomae.encoder.layer.1'])
def test_a_part_behind_most_weights_protects_nothing_and_is_refused(part):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.hf = hugging('VideoMAEForVideoClassification', 'VideoMAEConfig', patch_size=16, num_frames=4,
                              tubelet_size=2, num_labels=2)
        def forward(self, x): return self.hf(pixel_values=x).logits
    net = Model()
    def train(encoder): return FixedTeacher(1.).attach(net, encoder=encoder).start_epoch()
    with pytest.raises(InputError, match='before it move freely: pass encoder= the whole encoder, and layers='):
        train(part)
    train('hf.videomae')
    net.hf.videomae.requires_grad_(False)
    net.get_submodule(part).requires_grad_(True)
    train(part)


def test_blocks_that_are_not_called_are_left_out():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(12, 12) for _ in range(3)])
        def forward(self, x): return self.blocks[1](self.blocks[0](x.flatten(2)[:, :, :12])).mean(1)
    torch.manual_seed(0)
    assert fit(Spare(), 12, FixedTeacher(1., layers='blocks')) == 0
    with pytest.raises(InputError, match="layer 'blocks.2' of the encoder was not called.*leave it out of layers"):
        fit(Spare(), 12, FixedTeacher(1., layers=['blocks.2']))


def test_heads_of_maps_get_maps_and_linear_heads_get_features():
    maps, f = torch.randn(2, 6, 3, 4, 4), torch.randn(2, 6)
    pool = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 2))
    plain = nn.Sequential(nn.Dropout(), nn.Linear(6, 2))
    assert head_input(pool, maps, f) is maps and head_input(plain, maps, f) is f
    assert head_input(nn.Linear(6, 2), maps, f) is f
