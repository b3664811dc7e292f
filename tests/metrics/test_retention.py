"Each score against an independent computation; an untouched encoder changed by exactly 0."
import copy
import random

import numpy as np
import pytest
import torch
from fastai.data.load import DataLoader
from helpers import data, model, same, state
from torch import nn
from torch.nn.functional import cross_entropy

from sdfast.data.task import Task, unlabelled
from sdfast.errors import InputError
from sdfast.metrics.features import drift, knn, linear_cka, linear_probe
from sdfast.metrics.retention import Retention
from sdfast.models.encoders import create_model

EVERYTHING = {'source_acc', 'source_acc_bn', 'source_probe', 'source_knn', 'r1', 'r5', 'r10', 'r20', 'r50',
              'other_probe', 'cka_unbiased', 'procrustes', 'drift', 'weight_distance', 'barrier', 'pretext', 'kl',
              'valid_source_acc', 'valid_source_probe', 'others.a', 'others.b'}
BY_LAYER = ('cka_unbiased', 'procrustes', 'drift', 'weight_distance')


# an untouched encoder

def test_untouched_is_exactly_unchanged(source, pretext):
    net, train, test = source
    net.train()
    r = Retention(net, train, test, valid_dl=test, others=dict(a=(train, test), b=(test, train)), pretext=pretext)
    before, rng = state(net), torch.get_rng_state()
    change = r.change(copy.deepcopy(net[0]))
    assert set(change.values()) == {0.}
    assert set(r.change(net[0]).values()) == {0.}
    assert set(change) == EVERYTHING | {f'layers.{n}.{k}' for n in ('conv', 'bn', 'out') for k in BY_LAYER}
    ref = r.reference
    assert (ref.cka_unbiased, ref.procrustes, ref.drift, ref.weight_distance, ref.barrier) == (1., 0., 0., 0., 0.)
    assert same(state(net), before)
    assert net.training
    assert torch.equal(rng, torch.get_rng_state())


def test_a_tuned_encoder_changes_in_every_measure(source, tuned, pretext):
    net, train, test = source
    change = Retention(net, train, test, pretext=pretext).change(tuned(net))
    del change['layers.bn.procrustes']
    moved = ('layers', 'cka_unbiased', 'proc', 'drift', 'weight', 'pretext')
    assert all(v != 0 for k, v in change.items() if k.startswith(moved))


def test_measuring_disturbs_nothing(source):
    "Not even a pretext loss that draws random numbers, nor an encoder that carries hooks during a fit"
    net, train, test = source
    seen = []
    net[0].register_forward_hook(lambda *a: seen.append(1))
    def noisy(encoder):
        torch.randn(3), random.random(), np.random.rand()
        return 0.
    r = Retention(net, train, test, valid_dl=test, pretext=noisy)
    net.train()
    before = state(net)
    rng = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    r(net[0])
    r.held_out(net[0])
    assert same(state(net), before)
    assert net.training
    assert not seen
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(rng[0], torch.get_rng_state())
    assert rng[1] == random.getstate()
    assert (rng[2] == np.random.get_state()[1]).all()


def test_a_pretext_loss_that_draws_its_views_in_train_mode(source, tuned):
    "As self-supervised losses do: each encoder sees the same views, so an untouched one is changed by exactly 0"
    net, train, test = source
    new, seen = tuned(net), []
    def contrast(encoder):
        x = torch.cat([x for x, _ in test])
        encoder.train()
        seen.append(x + torch.randn_like(x)*random.random()*np.random.rand())
        return (encoder(seen[-1]) - encoder(x)).square().mean()
    r = Retention(net, train, test, pretext=contrast)
    before, first = state(r.untouched), r.change(net[0])['pretext']
    torch.rand(3), random.random(), np.random.rand()  # a fit continues between two measurements
    rng = torch.get_rng_state(), random.getstate()
    assert first == 0.
    assert r.change(copy.deepcopy(net[0]))['pretext'] == 0.
    assert r.change(new)['pretext'] != 0.
    assert same(state(r.untouched), before)
    assert len(seen) == 4
    assert all(torch.equal(x, seen[0]) for x in seen)
    assert torch.equal(rng[0], torch.get_rng_state())
    assert rng[1] == random.getstate()


def test_the_reference_is_a_copy(source):
    net, train, test = source
    r = Retention(net, train, test)
    ref = r.reference.source_acc
    with torch.no_grad():
        for p in net.parameters(): p.mul_(-3)
    change = r.change(net[0])
    assert r.reference.source_acc == ref
    assert change['weight_distance'] == pytest.approx(4)
    assert change['cka_unbiased'] < 0 < change['drift']


# scores by hand

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
        logits = net[1](tuned(x))
        f, f0 = tuned(x).double().numpy(), net[0](x).double().numpy()
    assert got.source_acc == pytest.approx((logits.argmax(1) == y).float().mean().item())
    torch.testing.assert_close(got.answers, logits.softmax(1), msg="the old head's answers, video by video")
    assert 'answers' not in got.flat()
    assert got.drift == pytest.approx(np.sqrt(((f - f0)**2).sum()/(f0**2).sum()))
    def flat(m): return torch.cat([p.flatten() for p in m.parameters()])
    distance = (flat(tuned) - flat(net[0])).norm()/flat(net[0]).norm()
    assert got.weight_distance == pytest.approx(distance.item(), rel=1e-5)


def test_no_answers_without_a_head(source):
    net, train, test = source
    named = nn.ModuleDict(dict(encoder=net[0]))
    assert Retention(named, train, test, encoder='encoder')(net[0]).answers is None


@pytest.fixture
def all_clips(source):
    "Train and test clips of the source, each as one batch"
    return [[torch.cat(t) for t in zip(*dl)] for dl in source[1:]]


def test_probes_and_neighbours_by_hand(source, tuned, all_clips):
    net, train, test = source
    got = Retention(net, train, test, valid_dl=train, others=dict(o=(test, train)))(tuned(net))
    (x, y), (xt, yt) = all_clips
    new = tuned(net).eval()
    with torch.no_grad(): f, ft = new(x), new(xt)
    assert got.source_probe == linear_probe(f, y, ft, yt)
    assert got.source_knn == knn(f, y, ft, yt)
    assert got.others == dict(o=linear_probe(ft, yt, f, y))
    assert got.other_probe == got.others['o']
    assert got.valid_source_probe == linear_probe(f, y, f, y)
    assert got.valid_source_acc == (net[1](f).argmax(1) == y).double().mean().item()


def test_accuracy_and_barrier_with_recomputed_statistics_by_hand(source, tuned, all_clips):
    "One pass in train mode with cumulative average, over all batches as there are fewer than sixteen"
    net, train, test = source
    got, new = Retention(net, train, test)(tuned(net)), tuned(net).eval()
    xt, yt = all_clips[1]

    def logits(weights):
        m = copy.deepcopy(new)
        m.load_state_dict(weights)
        m.bn.reset_running_stats()
        m.bn.momentum = None
        m.bn.train()
        with torch.no_grad():
            for b, _ in train: m(b)
        m.eval()
        with torch.no_grad(): return net[1](m(xt))

    def between(a): return {k:(1 - a)*start[k] + a*v if v.is_floating_point() else v for k, v in end.items()}
    start, end = net[0].state_dict(), new.state_dict()
    at = (0., .25, .5, .75, 1.)
    found = [logits(between(a)) for a in at]
    losses = [cross_entropy(z, yt).item() for z in found]
    assert got.source_acc_bn == (found[-1].argmax(1) == yt).double().mean().item()
    highest = max(loss - (1 - a)*losses[0] - a*losses[-1] for loss, a in zip(losses, at))
    assert got.barrier == pytest.approx(highest, abs=1e-5)
    assert got.barrier >= 0


def test_layers_by_hand(source, tuned, all_clips):
    "A layer's features are the mean of its output over space"
    net, train, test = source
    got = Retention(net, train, test, layers=['conv', 'out'])(tuned(net))
    new, ref, xt = tuned(net).eval(), net[0].eval(), all_clips[1][0]
    with torch.no_grad(): a, b = (m.conv(xt).mean((2, 3)) for m in (new, ref))
    assert list(got.layers) == ['conv', 'out']
    assert got.layers['conv']['cka_unbiased'] == pytest.approx(linear_cka(a, b), abs=1e-6)
    assert got.layers['conv']['drift'] == pytest.approx(drift(a, b), rel=1e-4)
    def flat(m): return torch.cat([p.flatten() for p in m.parameters()])
    distance = (flat(new.out) - flat(ref.out)).norm()/flat(ref.out).norm()
    assert got.layers['out']['weight_distance'] == pytest.approx(distance.item(), rel=1e-5)
    assert got.cka_unbiased == got.layers['out']['cka_unbiased']


def test_a_barrier_between_two_permuted_nets():
    "Two nets that compute the same with hidden units in another order: equal at both ends, a barrier between them"
    torch.manual_seed(0)
    x = torch.randn(300, 8)
    body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    y, order = body(x).argmax(1), torch.randperm(32)
    other, head = copy.deepcopy(body), nn.Linear(4, 4)
    with torch.no_grad():
        other[0].weight.copy_(body[0].weight[order])
        other[0].bias.copy_(body[0].bias[order])
        other[2].weight.copy_(body[2].weight[:, order])
        head.weight.copy_(20*torch.eye(4))
        head.bias.zero_()
    dl = [(x[i:i + 50], y[i:i + 50]) for i in range(0, 300, 50)]
    got = Retention(nn.Sequential(body, head), dl, dl)(other)
    assert got.drift < 1e-5
    assert got.source_acc > .9
    assert got.weight_distance > .5
    assert got.barrier > .05
    assert got.source_acc_bn is None


# loaders

@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: (x,)], ids=['tensor', 'tuple'])
def test_without_labels(source, tuned, pretext, wrap):
    net, train, test = source
    want = Retention(net, train, test)(tuned(net))
    r = Retention(net, clips=[wrap(x) for x, _ in test], pretext=pretext)
    got = r(tuned(net))
    for measure in BY_LAYER: assert getattr(got, measure) == getattr(want, measure)
    assert got.layers == want.layers
    assert got.source_acc is None
    assert got.source_probe is None
    assert got.barrier is None
    assert got.pretext == pretext(tuned(net))
    assert set(r.change(net[0]).values()) == {0.}


def test_unlabelled_videos(clips):
    task = Task.from_folder(clips, group=r'(p\d)_')
    dls = task.dls(frames=4, size=24, bs=4)
    net, other = (create_model('tiny', 2, width=8) for _ in range(2))
    paths = [p for p, _ in task.items('test')]
    loaders = unlabelled(dls, paths), task.dl(dls, "test")
    got, want = (Retention(net, clips=dl).change(other[0]) for dl in loaders)
    assert got == want
    assert set(got) >= {'drift', 'procrustes', 'layers.body.0.drift'}
    assert len(next(iter(unlabelled(dls, paths)))) == 1


def test_a_last_batch_of_one_clip(source):
    net, train, test = source
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6))
    longer = [*train, (train[0][0][:1], train[0][1][:1])]
    r = Retention(nn.Sequential(encoder, nn.Linear(6, 3)), longer, test)
    assert set(r.change(copy.deepcopy(encoder)).values()) == {0.}


# samples

def test_a_sample_is_spread_evenly():
    batches = list(data(seed=5).valid)
    r = Retention(model(), batches, batches)
    rows, clips = r.sample(5)
    x = torch.cat([x for x, _ in batches])
    assert rows.tolist() == [0, 4, 8, 11, 15]
    assert torch.equal(clips, x[rows].as_subclass(torch.Tensor))
    assert r.sample(5)[1] is clips
    assert len(r.sample(9, size=3*36*4)[0]) == 3  # as many as fit into so many bytes


def test_a_sample_pays_for_each_clip_of_a_video():
    net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), nn.Linear(5, 3))
    dl = [(torch.rand(6, 4, 1, 3, 2, 2), torch.arange(6) % 3) for _ in range(3)]  # 18 videos of 4 clips
    r = Retention(net, dl, dl)
    assert len(r.sample(12, 2**28)[0]) == 3
    assert len(r.sample(12)[0]) == 12


# errors

def test_what_it_refuses(source):
    net, train, test = source
    with pytest.raises(InputError, match='nothing to measure'): Retention(net)
    with pytest.raises(InputError, match='both train_dl'): Retention(net, train)
    with pytest.raises(InputError, match="no layer 'x'"): Retention(net, train, test, layers=['x'])
    with pytest.raises(InputError, match='between 0 and 1'): Retention(net, train, test, barrier_at=(0., .5))
    with pytest.raises(InputError, match='without batches'): Retention(net, train, [])
    with pytest.raises(InputError, match='not the whole model'): Retention(net, train, test)(net)
    one_class = [(x, 0*y) for x, y in train]
    with pytest.raises(InputError, match='two classes'): Retention(net, one_class, test).reference
    with pytest.raises(InputError, match='no valid_dl'): Retention(net, train, test).held_out(net[0])


@pytest.mark.parametrize('library', ['torch', 'fastai'])
def test_loaders_that_shuffle_are_refused(source, library):
    net, train, test = source
    clips = torch.utils.data.TensorDataset(*(torch.cat(t) for t in zip(*train)))
    if library == 'torch': bad = torch.utils.data.DataLoader(clips, 15, shuffle=True)
    else: bad = DataLoader(train, bs=1, shuffle=True)
    with pytest.raises(InputError, match='train_dl shuffles'): Retention(net, bad, test)
    with pytest.raises(InputError, match='clips shuffles'): Retention(net, clips=bad)
    with pytest.raises(InputError, match=r"others\['o'\] shuffles"): Retention(net, others=dict(o=(train, bad)))


def test_features_that_are_not_finite_are_an_error(source):
    net, train, test = source
    r, bad = Retention(net, train, test), copy.deepcopy(net[0])
    with torch.no_grad(): bad.out.weight[0, 0] = float('nan')
    with pytest.raises(FloatingPointError, match='not finite'): r(bad)
