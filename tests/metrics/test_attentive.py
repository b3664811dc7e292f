"The attentive probe: its layers against PyTorch's, and tokens of which single ones know what the mean does not."
import pytest
import torch
import torch.nn.functional as F
from scripts import load_script
from torch import nn

from sdfast.errors import InputError
from sdfast.metrics import AttentiveProbe, KeepTokens, attentive_probe, linear_probe
from sdfast.metrics.attentive import fit_attentive
from sdfast.models.encoders import create_encoder
from sdfast.models.features import outputs_of
from sdfast.models.surgery import block_names


def hidden(n, seed=0, classes=4):
    "Tokens whose mean is 0: the class is in one of them, which a large value marks"
    g = torch.Generator().manual_seed(seed)
    y, place = torch.randint(0, classes, (n,), generator=g), torch.randint(0, 9, (n,), generator=g)
    x = .3*torch.randn(n, 9, 16, generator=g)
    x[torch.arange(n), place, 0] += 4
    x[torch.arange(n), place, 1 + y] += 3
    return x - x.mean(1, keepdim=True), y


@pytest.mark.parametrize('heads', [1, 2, 4])
def test_it_is_pytorchs_attention_of_one_query(heads):
    torch.manual_seed(0)
    probe, x = AttentiveProbe(8, 3, heads), torch.randn(5, 7, 8) + 1
    with torch.no_grad():
        probe.attention.in_proj_bias.normal_()
        probe.attention.out_proj.bias.normal_()
        probe.mean, probe.scale = x.mean((0, 1)), x.std((0, 1))
    z = (x - x.mean((0, 1)))/x.std((0, 1))
    found, _ = probe.attention(probe.query.expand(5, 1, 8), z, z)
    want = probe.classify(found.squeeze(1))
    torch.testing.assert_close(probe(x), want)
    ours, theirs = (torch.autograd.grad(F.cross_entropy(out, torch.arange(5) % 3), list(probe.parameters()),
                                        allow_unused=True) for out in (probe(x), want))
    for a, b in zip(ours, theirs): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_training_is_that_of_a_plain_loop():
    x, y = hidden(70)
    torch.manual_seed(3)
    query, attention = nn.Parameter(.02*torch.randn(1, 1, 16)), nn.MultiheadAttention(16, 1, batch_first=True)
    classify = nn.Linear(16, 4)
    opt = torch.optim.AdamW([query, *attention.parameters(), *classify.parameters()], lr=2e-3, weight_decay=.01)
    z = (x - x.mean((0, 1)))/x.flatten(0, 1).std(0, correction=0)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 10)
    for _ in range(5):
        for rows in torch.randperm(70).split(64):
            found, _ = attention(query.expand(len(rows), 1, 16), z[rows], z[rows])
            opt.zero_grad()
            F.cross_entropy(classify(found[:, 0]), y[rows]).backward()
            opt.step(), rates.step()
    probe = fit_attentive(x, y, epochs=5, seed=3)
    torch.testing.assert_close(probe.query, query, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(probe.classify.weight, classify.weight, rtol=1e-3, atol=1e-5)


def test_it_finds_what_the_mean_hides():
    (x, y), (xt, yt) = hidden(300), hidden(200, 1)
    assert linear_probe(x.mean(1), y, xt.mean(1), yt) < .45
    assert attentive_probe(x, y, xt, yt) > .95


def test_it_is_deterministic_and_draws_nothing():
    (x, y), (xt, yt) = hidden(60), hidden(40, 1)
    rng = torch.get_rng_state()
    assert attentive_probe(x, y, xt, yt, epochs=5) == attentive_probe(x, y, xt, yt, epochs=5)
    assert torch.equal(rng, torch.get_rng_state())


def test_labels_may_have_gaps_and_unknown_classes(monkeypatch):
    monkeypatch.setattr('sdfast.metrics.attentive.STEPS', 30)
    (x, y), (xt, yt) = hidden(100), hidden(50, 1)
    assert attentive_probe(x, y[:, None], xt, yt) == attentive_probe(x, 3*y + 1, xt, 3*yt + 1)
    with pytest.warns(UserWarning, match='class 5 right'): assert attentive_probe(x, y, xt, yt + 5) == 0
    for wrong, match in (((x, torch.zeros(100), xt, yt), 'class numbers|at least two classes'),
                         ((x[:, 0], y, xt, yt), r'needs tokens \(N, T, C\), not features of shape \(100, 16\)'),
                         ((x, y[1:], xt, yt), '99 labels belong to 100')):
        with pytest.raises(InputError, match=match): attentive_probe(*wrong)
    x[3, 2, 1] = torch.inf
    with pytest.raises(FloatingPointError, match='tokens are not finite'): attentive_probe(x, y, xt, yt)


# ---- the tokens of an encoder

class Tokens(nn.Module):
    "Frames to tokens, in one of the forms that encoders return them in"
    def __init__(self, form):
        super().__init__()
        self.form, self.net = form, nn.Conv3d(3, 6, (1, 4, 4), (1, 4, 4))

    def forward(self, x):
        maps = self.net(x.transpose(1, 2))
        tokens = maps.flatten(2).transpose(1, 2)
        forms = dict(maps=maps, tokens=tokens, dict=dict(last_hidden_state=tokens), tuple=(tokens, tokens[:, 0]),
                     pooled=tokens.mean(1))
        return forms[self.form]


@pytest.mark.parametrize('form', ['maps', 'tokens', 'dict', 'tuple'])
def test_tokens_are_kept_whatever_form_they_have(form):
    torch.manual_seed(0)
    encoder, x = Tokens(form).eval(), torch.randn(4, 2, 3, 8, 8)
    keep = KeepTokens()
    with torch.no_grad():
        _, f, _ = keep(encoder, x)
        keep(encoder, x[:1])
        want = encoder.net(x.transpose(1, 2)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(keep.tokens, torch.cat([want, want[:1]]))
    torch.testing.assert_close(f, outputs_of(encoder, x)[1])
    assert not encoder._forward_hooks


def test_tokens_of_several_clips_follow_one_another():
    torch.manual_seed(0)
    encoder, x, keep = Tokens('tokens').eval(), torch.randn(2, 3, 2, 3, 8, 8), KeepTokens()
    with torch.no_grad():
        keep(encoder, x)
        want = torch.stack([torch.cat([encoder(clip[None])[0] for clip in video]) for video in x])
    torch.testing.assert_close(keep.tokens, want)


def test_an_encoder_that_averages_by_itself_has_those_of_its_last_block():
    torch.manual_seed(0)
    encoder, x = Tokens('pooled').eval(), torch.randn(4, 2, 3, 8, 8)
    keep, whole = KeepTokens(), KeepTokens()
    with torch.no_grad():
        for batch in (x, x[:3]):
            keep(encoder, batch)
            encoder.form = 'maps'
            whole(encoder, batch)
            encoder.form = 'pooled'
    assert keep.layer == 'net' and whole.layer == ''
    assert torch.equal(keep.tokens, whole.tokens)


NETS = 'tiny', 'r2plus1d', 'timm:test_vit', 'timm:test_resnet', 'torchvision:mobilenet_v3_small'


@pytest.mark.parametrize('name', NETS)
def test_tokens_of_the_nets_of_studies(name):
    "Their last maps or tokens, whose mean is or becomes the feature; of frames that are seen one by one all frames"
    torch.manual_seed(0)
    encoder, x = create_encoder(name, pretrained=False).eval(), torch.randn(2, 4, 3, 64, 64)
    keep = KeepTokens()
    with torch.no_grad(): _, f, maps = keep(encoder, x, block_names(encoder))
    assert keep.layer in block_names(encoder)
    assert keep.tokens.shape[0] == 2 and keep.tokens.shape[1] >= 4
    torch.testing.assert_close(keep.tokens.mean(1), maps[keep.layer])
    if name in ('tiny', 'r2plus1d'): torch.testing.assert_close(keep.tokens.mean(1), f)


@pytest.mark.parametrize('name', ['VideoMAEModel', 'VivitModel', 'TimesformerModel', 'VJEPA2Model',
                                  'VJEPA2ForVideoClassification'])
def test_tokens_of_video_transformers_are_those_of_the_library(name, tmp_path):
    transformers = pytest.importorskip('transformers')
    load_script('encoders').save_checkpoint(name, tmp_path)
    model, x = getattr(transformers, name).from_pretrained(tmp_path).eval(), torch.randn(2, 4, 3, 32, 32)
    encoder, keep = create_encoder(f'hf:{tmp_path}').eval(), KeepTokens()
    with torch.no_grad():
        keep(encoder, x)
        base = getattr(model, 'vjepa2', model)
        kwargs = dict(skip_predictor=True) if 'VJEPA2' in name else {}
        torch.testing.assert_close(keep.tokens, base(x, **kwargs).last_hidden_state)


def test_what_has_no_tokens_or_too_many(monkeypatch):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(2*3*64, 6)).eval()
    with torch.no_grad(), pytest.raises(InputError, match=r'needs tokens \(B, N, C\) or maps, and neither Sequential'):
        KeepTokens()(flat, torch.randn(4, 2, 3, 8, 8))
    monkeypatch.setattr('sdfast.metrics.attentive.MOST_BYTES', 1000)
    with torch.no_grad(), pytest.raises(InputError, match='the tokens of 8 clips take .* loaders of fewer clips'):
        KeepTokens()(Tokens('tokens').eval(), torch.randn(8, 2, 3, 8, 8))
