"Each measure against an independent computation; an untouched encoder changed by exactly 0."
import copy
import random

import numpy as np
import pytest
import torch
from fastai.data.load import DataLoader
from helpers import data, learner, model, same, state
from scipy.linalg import orthogonal_procrustes
from torch import nn
from torch.nn.functional import cross_entropy

from sdfast.data.datasets import folder
from sdfast.data.task import unlabelled
from sdfast.errors import InputError
from sdfast.metrics.curve import RetentionCurve
from sdfast.metrics.features import (
    drift,
    knn,
    linear_cka,
    linear_probe,
    loss_barrier,
    probe_head,
    procrustes,
    retrieval,
    weight_distance,
)
from sdfast.metrics.retention import Retention
from sdfast.models import features as features_module
from sdfast.models.encoders import create_model
from sdfast.models.features import encode, extract
from sdfast.models.surgery import block_names
from sdfast.strategies import L2SP, SelfDistill, WiSEFT


@pytest.fixture
def source():
    "A model and loaders of a source task of 3 separable classes of images"
    torch.manual_seed(0)
    x, y = torch.randn(90, 1, 6, 6), torch.arange(90) % 3
    for c in range(3): x[y == c, 0, 2*c] += 2
    batch = lambda a, b: [(x[i:i + 15], y[i:i + 15]) for i in range(a, b, 15)]
    return model(), batch(0, 60), batch(60, 90)


def tuned(net, by=.1):
    "A copy of the encoder with other weights and other statistics"
    torch.manual_seed(3)
    new = copy.deepcopy(net[0])
    with torch.no_grad():
        for p in new.parameters(): p.add_(by*torch.randn_like(p))
        for n, b in new.named_buffers():
            if n.endswith('running_mean'): b.add_(.3)
    return new


def pretext(encoder): return float(sum(p.detach().abs().sum() for p in encoder.parameters()))


def test_untouched_is_exactly_unchanged(source):
    net, train, test = source
    net.train()
    r = Retention(net, train, test, valid_dl=test, others=dict(a=(train, test), b=(test, train)), pretext=pretext)
    before, rng = state(net), torch.get_rng_state()
    change = r.change(copy.deepcopy(net[0]))
    assert set(change.values()) == {0.} == set(r.change(net[0]).values())
    everything = {'source_acc', 'source_acc_bn', 'source_probe', 'source_knn', 'r1', 'r5', 'r10', 'r20', 'r50', 'other_probe', 'cka', 'procrustes', 'drift', 'weight_distance',
                  'barrier', 'pretext', 'valid_source_acc', 'valid_source_probe', 'others.a', 'others.b'}
    assert set(change) == everything | {f'layers.{n}.{k}' for n in ('conv', 'bn', 'out') for k in ('cka', 'procrustes', 'drift', 'weight_distance')}
    assert (r.reference.cka, r.reference.procrustes, r.reference.drift, r.reference.weight_distance, r.reference.barrier) == (1., 0., 0., 0., 0.)
    assert same(state(net), before) and net.training and torch.equal(rng, torch.get_rng_state())
    assert all(v != 0 for k, v in r.change(tuned(net)).items() if k.startswith(('layers', 'cka', 'proc', 'drift', 'weight', 'pretext')) and k != 'layers.bn.procrustes')


def test_measuring_disturbs_nothing(source):
    "Not even with what draws random numbers, and for an encoder that carries hooks and is in the middle of a fit"
    net, train, test = source
    seen = []
    net[0].register_forward_hook(lambda *a: seen.append(1))
    def noisy(encoder):
        torch.randn(3), random.random(), np.random.rand()
        return 0.
    r = Retention(net, train, test, pretext=noisy)
    net.train()
    before, rng = state(net), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    r(net[0]), r.held_out
    assert same(state(net), before) and net.training and not seen and all(p.requires_grad for p in net.parameters())
    assert torch.equal(rng[0], torch.get_rng_state()) and rng[1] == random.getstate() and (rng[2] == np.random.get_state()[1]).all()


def test_a_pretext_loss_that_draws_its_views_in_train_mode(source):
    "As self-supervised ones do: the same views for each encoder, so an untouched one is changed by exactly 0, and nothing is left of it"
    net, train, test = source
    new, seen = tuned(net), []
    def contrast(encoder):
        x = torch.cat([x for x, _ in test])
        encoder.train()
        seen.append(x + torch.randn_like(x)*random.random()*np.random.rand())
        return (encoder(seen[-1]) - encoder(x)).square().mean()
    r = Retention(net, train, test, pretext=contrast)
    before, first = state(r.untouched), r.change(net[0])['pretext']
    torch.rand(3), random.random(), np.random.rand()  # a fit goes on between two measurements
    rng = torch.get_rng_state(), random.getstate()
    assert first == r.change(copy.deepcopy(net[0]))['pretext'] == 0. != r.change(new)['pretext']
    assert same(state(r.untouched), before) and all(torch.equal(x, seen[0]) for x in seen) and len(seen) == 4
    assert torch.equal(rng[0], torch.get_rng_state()) and rng[1] == random.getstate()


def test_the_reference_is_a_copy(source):
    net, train, test = source
    r = Retention(net, train, test)
    ref = r.reference.source_acc
    with torch.no_grad():
        for p in net.parameters(): p.mul_(-3)
    change = r.change(net[0])
    assert r.reference.source_acc == ref and change['weight_distance'] == pytest.approx(4) and change['cka'] < 0 < change['drift']


def test_scores_equal_a_computation_by_hand(source):
    net, train, test = source
    r = Retention(net, train, test)
    tuned = copy.deepcopy(net[0])
    with torch.no_grad():
        for p in tuned.parameters(): p.add_(.1*torch.randn_like(p))
    got = r(tuned)
    tuned.eval(), net.eval()
    with torch.no_grad():
        x, y = torch.cat([b[0] for b in test]), torch.cat([b[1] for b in test])
        assert got.source_acc == pytest.approx((net[1](tuned(x)).argmax(1) == y).float().mean().item())
        torch.testing.assert_close(got.answers, net[1](tuned(x)).softmax(1), msg='the old head\'s answers, video by video')
        assert 'answers' not in got.flat() and Retention(nn.ModuleDict(dict(encoder=net[0])), train, test, encoder='encoder')(tuned).answers is None
        f, f0 = tuned(x).double().numpy(), net[0](x).double().numpy()
    assert got.drift == pytest.approx(np.sqrt(((f - f0)**2).sum()/(f0**2).sum()))
    flat = lambda m: torch.cat([p.flatten() for p in m.parameters()])
    assert got.weight_distance == pytest.approx(((flat(tuned) - flat(net[0])).norm()/flat(net[0]).norm()).item(), rel=1e-5)


def test_every_line_by_hand(source):
    net, train, test = source
    got, new, ref = Retention(net, train, test, valid_dl=train, others=dict(o=(test, train)), layers=['conv', 'out'])(tuned(net)), tuned(net).eval(), net[0].eval()
    (x, y), (xt, yt) = ((torch.cat(t) for t in zip(*dl)) for dl in (train, test))
    with torch.no_grad(): f, ft = new(x), new(xt)
    assert got.source_probe == linear_probe(f, y, ft, yt) and got.source_knn == knn(f, y, ft, yt) and got.others == dict(o=linear_probe(ft, yt, f, y)) and got.other_probe == got.others['o']
    assert got.valid_source_probe == linear_probe(f, y, f, y) and got.valid_source_acc == (net[1](f).argmax(1) == y).double().mean().item()
    # statistics anew: one pass in train mode with cumulative average, over all batches as there are fewer than sixteen
    def renewed(weights):
        m = copy.deepcopy(new)
        m.load_state_dict(weights)
        m.bn.reset_running_stats()
        m.bn.momentum = None
        m.bn.train()
        with torch.no_grad():
            for b, _ in train: m(b)
        m.eval()
        with torch.no_grad(): return net[1](m(xt))
    start, end = net[0].state_dict(), new.state_dict()
    at = (0., .25, .5, .75, 1.)
    logits = [renewed({k:(1 - a)*start[k] + a*v if v.is_floating_point() else v for k, v in end.items()}) for a in at]
    losses = [cross_entropy(l, yt).item() for l in logits]
    assert got.source_acc_bn == (logits[-1].argmax(1) == yt).double().mean().item()
    assert got.barrier == pytest.approx(max(l - (1 - a)*losses[0] - a*losses[-1] for l, a in zip(losses, at)), abs=1e-5) and got.barrier >= 0
    # layers: the mean over space of what they put out
    with torch.no_grad(): a, b = (m.conv(xt).mean((2, 3)) for m in (new, ref))
    assert got.layers['conv']['cka'] == pytest.approx(linear_cka(a, b), abs=1e-6) and got.layers['conv']['drift'] == pytest.approx(drift(a, b), rel=1e-4)
    w = lambda m: torch.cat([p.flatten() for p in m.parameters()])
    assert got.layers['out']['weight_distance'] == pytest.approx(((w(new.out) - w(ref.out)).norm()/w(ref.out).norm()).item(), rel=1e-5)
    assert got.cka == got.layers['out']['cka'] and list(got.layers) == ['conv', 'out']


def test_barrier_is_the_height_above_the_line():
    assert loss_barrier([1., 3., 2.], [0., .5, 1.]) == 1.5 and loss_barrier([1., 1.2, 2.], [0., .5, 1.]) == 0. and loss_barrier([2., 2.], [0., 1.]) == 0.
    assert np.isnan(loss_barrier([1., np.nan, 2.], [0., .5, 1.])) and np.isnan(loss_barrier([1., 3., np.inf], [0., .5, 1.]))
    at = np.linspace(0, 1, 5)
    assert loss_barrier(list(1 + at), at) == 0.


def test_a_barrier_between_two_permuted_nets():
    "Two nets that compute the same with hidden units in another order: no change at the ends, a barrier between them"
    torch.manual_seed(0)
    x = torch.randn(300, 8)
    body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    y, order = body(x).argmax(1), torch.randperm(32)
    other = copy.deepcopy(body)
    with torch.no_grad():
        for p, q in ((other[0].weight, body[0].weight[order]), (other[0].bias, body[0].bias[order]), (other[2].weight, body[2].weight[:, order])): p.copy_(q)
    dl = [(x[i:i + 50], y[i:i + 50]) for i in range(0, 300, 50)]
    head = nn.Linear(4, 4)
    with torch.no_grad(): head.weight.copy_(20*torch.eye(4)), head.bias.zero_()
    got = Retention(nn.Sequential(body, head), dl, dl)(other)
    assert got.drift < 1e-5 and got.source_acc > .9 and got.weight_distance > .5 and got.barrier > .05 and got.source_acc_bn is None


def test_procrustes_against_scipy_and_its_invariances():
    torch.manual_seed(0)
    x, y = torch.randn(40, 6).double(), torch.randn(40, 6).double()
    a, b = ((f - f.mean(0))/(f - f.mean(0)).norm() for f in (x, y))
    q, _ = orthogonal_procrustes(a.numpy(), b.numpy())
    assert procrustes(x, y) == pytest.approx(((a.numpy() @ q - b.numpy())**2).sum()) and procrustes(x, x) == 0
    turn = torch.linalg.qr(torch.randn(6, 6).double())[0]
    assert procrustes(3*x @ turn + 1, x) == pytest.approx(0, abs=1e-9) and np.isnan(procrustes(torch.ones(5, 2), torch.zeros(5, 2)))


def test_retrieval_by_a_loop():
    torch.manual_seed(0)
    x, y, xt, yt = torch.randn(60, 5), torch.randint(0, 6, (60,)), torch.randn(25, 5), torch.randint(0, 6, (25,))
    got = retrieval(x, y, xt, yt)
    assert list(got) == [1, 5, 10, 20, 50] and list(retrieval(x[:12], y[:12], xt, yt)) == [1, 5, 10]
    for k, v in got.items():
        hits = 0
        for q, label in zip(xt, yt):
            cos = [(q @ g/(q.norm()*g.norm())).item() for g in x]
            hits += any(y[i] == label for i in sorted(range(60), key=lambda i: -cos[i])[:k])
        assert v == hits/25


def test_without_labels(source):
    "Loaders that yield x alone, as a tensor or in a tuple"
    net, train, test = source
    want = Retention(net, train, test)(tuned(net))
    for clips in ([x for x, _ in test], [(x,) for x, _ in test]):
        r = Retention(net, clips=clips, pretext=pretext)
        got = r(tuned(net))
        assert (got.cka, got.procrustes, got.drift, got.layers, got.weight_distance) == (want.cka, want.procrustes, want.drift, want.layers, want.weight_distance)
        assert got.source_acc is got.barrier is got.source_probe is None and got.pretext == pretext(tuned(net)) and set(r.change(net[0]).values()) == {0.}
        learn = learner(cbs=RetentionCurve(r, clips=10), net=copy.deepcopy(net))
        learn.fit(1)
        assert learn.recorder.metric_names[-5:-1] == ['valid_loss', 'kept_cka', 'kept_drift', 'kept_weights']


def test_unlabelled_videos(clips):
    task = folder(clips, group=r'(p\d)_')
    dls = task.dls(frames=4, size=24, bs=4)
    net, other = (create_model('tiny', 2, width=8) for _ in range(2))
    paths = [p for p, _ in task.items('test')]
    got, want = (Retention(net, clips=dl).change(other[0]) for dl in (unlabelled(dls, paths), task.dl(dls, 'test')))
    assert got == want and set(got) >= {'cka', 'drift', 'layers.body.0.cka'} and len(next(iter(unlabelled(dls, paths)))) == 1


def test_what_cannot_be_measured_is_said(source):
    net, train, test = source
    with pytest.raises(InputError, match='nothing to measure'): Retention(net)
    with pytest.raises(InputError, match='both train_dl'): Retention(net, train)
    with pytest.raises(InputError, match="no layer 'x'"): Retention(net, train, test, layers=['x'])
    with pytest.raises(InputError, match='between 0 and 1'): Retention(net, train, test, path=(0., .5))
    with pytest.raises(InputError, match='without batches'): Retention(net, train, [])
    with pytest.raises(InputError, match='not the whole model'): Retention(net, train, test)(net)
    shuffled = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*(torch.cat(t) for t in zip(*train))), 15, shuffle=True)
    for bad in (shuffled, DataLoader(train, bs=1, shuffle=True)):
        with pytest.raises(InputError, match='train_dl shuffles'): Retention(net, bad, test)
        with pytest.raises(InputError, match='clips shuffles'): Retention(net, clips=bad)
        with pytest.raises(InputError, match=r"others\['o'\] shuffles"): Retention(net, others=dict(o=(train, bad)))
    with pytest.raises(InputError, match='two classes'): Retention(net, [(x, 0*y) for x, y in train], test).reference
    with pytest.raises(InputError, match='no valid_dl'): Retention(net, train, test).held_out(net[0])
    with pytest.raises(InputError, match='with test_dl or clips'): RetentionCurve(Retention(net, pretext=pretext))
    with pytest.raises(InputError, match='at least'): RetentionCurve(Retention(net, train, test), every=0)


def test_references_are_kept_by_content(source, tmp_path, monkeypatch):
    net, train, test = source
    calls, inside = [], features_module.encode
    monkeypatch.setattr(features_module, 'encode', lambda *a: calls.append(1) or inside(*a))
    def build(net, test=test): return len(calls), Retention(net, train, test, cache=tmp_path), len(calls)
    _, first, n = build(net)
    assert n == 6  # batches: four of train, two of test
    before, second, after = build(net)
    assert before == after and second.reference == first.reference and set(second.change(net[0]).values()) == {0.}
    before, _, after = build(net, [(x + (i == 1), y) for i, (x, y) in enumerate(test)])
    assert after - before == 1  # one batch is new
    other = nn.Sequential(tuned(net), net[1])
    before, third, after = build(other)
    assert after - before == 6 and third.reference.source_acc == Retention(other, train, test).reference.source_acc
    for file in tmp_path.rglob('*.safetensors'): file.write_bytes(file.read_bytes()[:-9])  # cut off: found out and computed anew
    before, fourth, after = build(net)
    assert after - before == 6 and fourth.reference == first.reference and not list(tmp_path.rglob('*.tmp'))


def curve(net=None, **kwargs):
    net, batches = net or model(), list(data(seed=5).valid)
    return RetentionCurve(Retention(net, batches, batches), **kwargs)


@pytest.mark.parametrize('cbs', [[], [lambda: SelfDistill(3.), lambda: L2SP(.1)], [lambda: WiSEFT(.5)]], ids=['plain', 'penalties', 'wise'])
def test_a_curve_leaves_training_as_it_is(cbs):
    "Weights, statistics, optimizer and random states to the bit, with dropout"
    def fit(extra):
        net = model(dropout=.3)
        learn = learner(cbs=[c() for c in cbs] + [c(net) for c in extra], net=net)
        learn.fit(3)
        return state(learn.model), torch.get_rng_state(), random.getstate(), learn
    a, b = fit([]), fit([lambda net: curve(net)])
    assert same(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2] == b[2]
    got, names = b[3].retention_curve.history, b[3].recorder.metric_names
    assert [d['epoch'] for d in got] == [0, 1, 2] and got[2]['drift'] > 0 and got[0].keys() >= {'source_acc', 'cka', 'procrustes', 'layers.conv.cka', 'layers.out.weight_distance'}
    assert [row[list(names).index('kept_cka') - 1] for row in b[3].recorder.values] == [d['cka'] for d in got]
    assert not [n for n in a[3].recorder.metric_names if n.startswith('kept')]


def test_a_curve_is_retention_on_its_sample():
    net = model()
    cb = curve(net, clips=16)
    learn = learner(cbs=cb, net=net)
    learn.fit(2)
    last, whole = cb.history[-1], cb.retention(learn.model[0]).flat()  # the sample is all 16 clips
    for k, v in last.items():
        if k != 'epoch': assert v == pytest.approx(whole[k], rel=1e-4), k
    some = curve(model(), clips=5)
    rows, clips = some.retention.sample(5)
    x = torch.cat([x for x, _ in data(seed=5).valid])
    assert rows.tolist() == [0, 4, 8, 11, 15] and torch.equal(clips, x[rows].as_subclass(torch.Tensor)) and some.retention.sample(5)[1] is clips
    assert len(some.retention.sample(9, size=3*36*4)[0]) == 3  # as many as fit into so many bytes


def test_a_curve_in_all_kinds_of_fits():
    net = model()
    cb = curve(net, every=2)
    learn = learner(cbs=cb, net=net)
    assert cb.n is None
    learn.fit(4)
    assert [d['epoch'] for d in cb.history] == [1, 3] and np.isnan(learn.recorder.values[0][-1])
    assert cb.affordable() == int(.05*(3*48 + 16)) == len(cb._sample[0])
    history = cb.history
    learn.validate(), learn.get_preds()
    assert cb.history is history and not learn.metrics
    learn.fit(1)
    assert [d['epoch'] for d in cb.history] == [0]


def test_an_encoder_that_is_not_finite_is_an_error_of_its_own(source):
    net, train, test = source
    r, bad = Retention(net, train, test), copy.deepcopy(net[0])
    with torch.no_grad(): bad.out.weight[0, 0] = float('nan')
    with pytest.raises(FloatingPointError, match='not finite'): r(bad)


def test_a_curve_looks_at_no_labels_of_other_clips(source):
    net, train, test = source
    cb = RetentionCurve(Retention(net, train, test, clips=train), clips=10)
    learner(cbs=cb, net=copy.deepcopy(net)).fit(1)
    assert 'source_acc' not in cb.history[0] and 'cka' in cb.history[0]


def test_a_curve_pays_for_each_clip_of_a_video():
    net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), nn.Linear(5, 3))
    dl = [(torch.rand(6, 4, 1, 3, 2, 2), torch.arange(6) % 3) for _ in range(3)]  # 18 videos of 4 clips
    r = Retention(net, dl, dl)
    assert len(r.sample(12, 2**28)[0]) == 3 and len(r.sample(12)[0]) == 12


def test_in_the_middle_of_a_fit_with_adapters(source):
    pytest.importorskip('peft', reason="LoRA needs PEFT: pip install -e '.[peers]'")
    from fastai.callback.core import Callback

    from sdfast.strategies import LoRA
    net, train, test = source
    r, found = Retention(net, train, test), []
    class Measure(Callback):
        def after_train(self): found.append(r(self.learn.model[0]).flat())
    learn = learner(cbs=[LoRA(r=2), Measure(), RetentionCurve(r, clips=10)], net=copy.deepcopy(net))
    learn.fit(1)
    assert 'source_probe' in found[0] and 'barrier' not in found[0] and np.isnan(found[0]['weight_distance']) and r(learn.model[0]).barrier is not None


def test_a_last_batch_of_one_clip(source):
    net, train, test = source
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6))
    r = Retention(nn.Sequential(encoder, nn.Linear(6, 3)), [*train, (train[0][0][:1], train[0][1][:1])], test)
    assert set(r.change(copy.deepcopy(encoder)).values()) == {0.}


def test_layers_of_all_kinds_of_encoders():
    "Lists of blocks, channels last, tuples; what is not called is said"
    class Swin(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.blocks, self.spare, self.last = nn.Conv2d(1, 4, 1), nn.ModuleList([nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)) for _ in range(2)]), nn.Linear(2, 2), nn.GRU(4, 5, batch_first=True)
        def forward(self, x):
            m = self.embed(x).permute(0, 2, 3, 1)
            for b in self.blocks: m = b(m)
            return self.last(m.flatten(1, 2))[0].mean(1)
    torch.manual_seed(0)
    net, x = Swin(), torch.rand(3, 1, 6, 7)
    names = block_names(net)
    assert names == ['embed', 'blocks.0', 'blocks.1', 'spare', 'last']
    with torch.no_grad():
        maps = encode(net, x, ['embed', 'blocks.0', 'last'])[1]
        m = net.blocks[0](net.embed(x).permute(0, 2, 3, 1))
        torch.testing.assert_close(maps['blocks.0'], m.mean((1, 2)))
        torch.testing.assert_close(maps['embed'], net.embed(x).mean((2, 3)))
        assert maps['last'].shape == (3, 5)
        with pytest.raises(InputError, match="'spare' was not called"): encode(net, x, names)


def test_frames_tokens_and_clips_are_averaged_in_layers():
    "Layers that see frames one by one, tokens, and several clips of a video"
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mix, self.out = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 5)
        def forward(self, x):
            b, t = x.shape[:2]
            m = self.conv(x.flatten(0, 1)).flatten(2).transpose(1, 2)
            return self.out(self.mix(m).mean(1)).unflatten(0, (b, t)).mean(1)
    torch.manual_seed(0)
    net, x = Frames(), torch.rand(2, 3, 4, 3, 5, 5)  # two videos of three clips of four frames
    with torch.no_grad():
        f, maps = encode(net, x, ['conv', 'mix', 'out'])
        want = net.conv(x.flatten(0, 2))
        torch.testing.assert_close(maps['conv'], want.mean((2, 3)).unflatten(0, (2, 12)).mean(1))
        tokens = net.mix(want.flatten(2).transpose(1, 2))
        torch.testing.assert_close(maps['mix'], tokens.mean(1).unflatten(0, (2, 12)).mean(1))
        torch.testing.assert_close(f, maps['out'])
    assert not net.conv._forward_hooks


def test_cka_equals_its_definition_and_ignores_rotation_and_scale():
    torch.manual_seed(0)
    for n, f, g in ((50, 8, 6), (10, 30, 40)):  # both ways to compute it
        x, y = torch.randn(n, f), torch.randn(n, g)
        h = np.eye(n) - 1/n
        hsic = lambda a, b: np.trace(h @ a.numpy().astype(float) @ a.numpy().T @ h @ b.numpy().astype(float) @ b.numpy().T)
        assert linear_cka(x, y) == pytest.approx(hsic(x, y)/np.sqrt(hsic(x, x)*hsic(y, y)), rel=1e-5)
        q = torch.linalg.qr(torch.randn(f, f))[0]
        assert linear_cka(x, 3*x @ q + 2) == pytest.approx(1, abs=1e-5) and linear_cka(x, x) == 1.
    assert np.isnan(linear_cka(torch.ones(5, 2), torch.zeros(5, 2))) and linear_cka(torch.ones(5, 2), torch.ones(5, 2)) == 1


def test_drift_and_weight_distance():
    a = torch.tensor([[3., 4.]])
    assert drift(a, a) == drift(0*a, 0*a) == weight_distance(dict(w=0*a), dict(w=0*a)) == 0 and drift(2*a, a) == pytest.approx(1)
    assert weight_distance(dict(w=torch.tensor([3., 4.]), b=torch.zeros(1)), dict(w=torch.zeros(2) + 3., b=torch.zeros(1))) == pytest.approx(1/np.sqrt(18))


def test_probe_and_neighbours():
    torch.manual_seed(0)
    y, yt = torch.arange(60) % 3, torch.arange(30) % 3
    x, xt = (3*torch.eye(4)[k] + torch.randn(len(k), 4) for k in (y, yt))
    assert linear_probe(x, y, xt, yt) == linear_probe(x, y, xt, yt) > .8
    # neighbours by hand
    z, zt = (v/v.norm(dim=1, keepdim=True) for v in (x, xt))
    near = (zt @ z.T).topk(5).indices
    assert knn(x, y, xt, yt) == pytest.approx((y[near].mode(1).values == yt).float().mean().item())
    assert knn(x[:2], y[:2], xt, yt) > 0  # fewer clips than neighbours
    for classes in (3, 2):
        keep, keept = y < classes, yt < classes
        head = probe_head(x[keep], y[keep], classes)
        with torch.no_grad(): acc = (head(xt[keept]).argmax(1) == yt[keept]).float().mean().item()
        assert acc == pytest.approx(linear_probe(x[keep], y[keep], xt[keept], yt[keept])) and head.weight.shape == (classes, 4)


def test_extract_averages_clips_of_a_video(source):
    net = nn.Sequential(nn.Flatten(), nn.Linear(2*3*4*4, 5))
    x, y = torch.rand(3, 2, 2, 3, 4, 4), torch.arange(3)
    f, labels = extract(net, [(x, y)])
    with torch.no_grad(): torch.testing.assert_close(f, torch.stack([net(x[:, i]) for i in range(2)]).mean(0))
    assert torch.equal(labels, y)
