"Audits of two encoders in memory: zero for an untouched one, each number by hand, collapses that averages hide."
import copy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import model
from scipy.stats import entropy
from torch import nn

from sdfast.errors import InputError
from sdfast.metrics import per_clip
from sdfast.metrics.audit import audit
from sdfast.metrics.columns import AUDIT_MEASURES
from sdfast.metrics.features import probe_head
from sdfast.metrics.per_clip import answer_divergence, kept_neighbours
from sdfast.metrics.retention import Retention

audit_module = sys.modules['sdfast.metrics.audit']  # the package has a function of this name
MEASURES = {'source_acc', 'source_acc_bn', 'source_probe', 'source_knn', 'r1', 'r5', 'r10', 'r20', 'r50',
            'cka_unbiased', 'procrustes', 'drift', 'weight_distance', 'barrier', 'kl', 'neighbours'}
pytestmark = pytest.mark.filterwarnings('ignore:.*at chance')


@pytest.fixture
def trained(source):
    "The source model with a head that knows its classes"
    net, train, test = source
    x, y = (torch.cat(part) for part in zip(*train))
    net.eval()
    with torch.no_grad(): features = net[0](x)
    return nn.Sequential(net[0], probe_head(features, y, 3)), train, test


def test_an_untouched_encoder_is_exactly_unchanged(trained, pretext):
    net, train, test = trained
    found = audit(net, copy.deepcopy(net), train, test, pretext=pretext)
    assert set(found.measures) == MEASURES | {'pretext'}
    for name, m in found.measures.items():
        assert (m.change.mean, m.change.low, m.change.high) == (0, 0, 0), name
        assert m.before.mean == m.after.mean
    compared = {m for m in found.measures if AUDIT_MEASURES[m].compares}
    assert {m:found.measures[m].after.mean for m in compared} == {m:float(m in ('cka_unbiased', 'neighbours'))
                                                                  for m in compared}
    for label, measures in found.classes.items():
        assert all((m.change.mean, m.change.low, m.change.high) == (0, 0, 0) for m in measures.values()), label
    assert [len(flips) for flips in found.flips()] == [0, 0]
    assert set(found.clips.drift) == set(found.clips.kl) == {0.}
    assert {v for layer in found.layers.values() for v in layer.values()} == {0., 1.}
    assert all(layer['weight_distance'] == layer['drift'] == 0 for layer in found.layers.values())


def test_values_are_those_of_retention(trained, tuned):
    net, train, test = trained
    encoder = tuned(net)
    found = audit(net, encoder, train, test)
    retention = Retention(net, train, test)
    before, after = retention.reference, retention(encoder)
    for m in MEASURES - {'kl', 'neighbours'}:
        change = found.measures[m]
        assert (change.before.mean, change.after.mean) == (getattr(before, m), getattr(after, m)), m
        assert change.change.mean == pytest.approx(getattr(after, m) - getattr(before, m))
        if m != 'weight_distance': assert change.after.low <= change.after.mean <= change.after.high, m
    assert found.layers == after.layers


def test_changes_are_paired(trained, tuned):
    "The interval of the change is that of differences clip by clip, narrower than that of unpaired accuracies"
    net, train, test = trained
    found = audit(net, tuned(net), train, test)
    a, b = (found.clips[f'source_probe.{when}'].to_numpy(float) for when in ('before', 'after'))
    rng = np.random.default_rng(5)
    rows = [rng.integers(0, 30, 30) for _ in range(4000)]
    low, high = np.quantile([(b[r] - a[r]).mean() for r in rows], [.025, .975])
    change = found.measures['source_probe'].change
    assert (change.low, change.high) == pytest.approx((low, high), abs=.04)


def test_divergence_and_neighbours_by_hand():
    g = torch.Generator().manual_seed(0)
    before, after = torch.randn(25, 4, generator=g), torch.randn(25, 4, generator=g)
    def shares(x): return np.exp(x)/np.exp(x).sum()
    by_hand = [entropy(shares(p.numpy()), shares(q.numpy())) for p, q in zip(before.double(), after.double())]
    np.testing.assert_allclose(answer_divergence(after, before), by_hand, rtol=1e-6)
    assert set(answer_divergence(before, before).tolist()) == {0.}

    def nearest(f, i):
        cosine = [-9 if j == i else (f[i] @ f[j]/f[i].norm()/f[j].norm()).item() for j in range(len(f))]
        return set(np.argsort(cosine)[-10:])
    kept = [len(nearest(before, i) & nearest(after, i))/10 for i in range(25)]
    np.testing.assert_allclose(kept_neighbours(after, before), kept)


def test_flips_by_hand(trained, tuned):
    net, train, test = trained
    encoder = tuned(net, .4).eval()
    found = audit(net, encoder, train, test)
    x, y = (torch.cat(part) for part in zip(*test))
    with torch.no_grad(): before, after = (net[1](e(x)).argmax(1) for e in (net[0], encoder))
    lost, gained = found.flips()
    assert list(lost.index) == [i for i in range(30) if before[i] == y[i] != after[i]] != []
    assert list(gained.index) == [i for i in range(30) if before[i] != y[i] == after[i]]
    assert list(found.clips['answer.after']) == [str(i) for i in after.tolist()]
    with pytest.raises(InputError, match="'r3' was not measured"): found.flips('r3')


class Marked(nn.Module):
    "An encoder whose features are the clip itself; `forget` turns those of a class into those of another"
    def __init__(self, forget=None):
        super().__init__()
        self.scale, self.forget = nn.Parameter(torch.ones(())), forget

    def forward(self, x):
        if self.forget is None: return x*self.scale
        old, new = self.forget
        is_old = x.argmax(1) == old
        swapped = x.clone()
        swapped[:, [old, new]] = x[:, [new, old]]
        return torch.where(is_old[:, None], swapped, x)*self.scale


def test_a_class_that_an_average_hides():
    "One of 30 classes collapses: the average falls by 3 points, its class by 100"
    y = torch.arange(30).repeat(10)
    x = nn.functional.one_hot(y, 30).float() + .05*torch.randn(300, 30, generator=torch.Generator().manual_seed(0))
    data = [(x, y)]
    head = nn.Linear(30, 30)
    with torch.no_grad(): head.weight.copy_(torch.eye(30)), head.bias.zero_()
    found = audit(nn.Sequential(Marked(), head), Marked((7, 8)), data, data)
    assert found.measures['source_acc'].change.mean == pytest.approx(-1/30)
    assert found.classes['7']['source_acc'].change.mean == -1
    others = [m['source_acc'].change.mean for c, m in found.classes.items() if c != '7']
    assert set(others) == {0.}
    assert found.classes['7']['source_acc'].change.high < -.6
    assert found.classes['9']['source_acc'].change.low == pytest.approx(-(1 - .025**.1))


def test_groups(trained, tuned):
    net, train, test = trained
    groups = [f'g{i//5}' for i in range(30)]
    found = audit(net, tuned(net), train, test, groups=groups)
    assert found.groups == 6
    assert found.measures['drift'].after.n == 6
    with pytest.raises(InputError, match='groups name 3 clips, and 30 are measured on'):
        audit(net, tuned(net), train, test, groups=[1, 2, 3])


def test_without_labels(trained, tuned):
    net, _, test = trained
    clips = [x for x, _ in test]
    found = audit(net, tuned(net), clips=clips)
    assert set(found.measures) == {'cka_unbiased', 'procrustes', 'drift', 'weight_distance', 'kl', 'neighbours'}
    assert found.classes == {}
    assert list(found.clips) == ['drift', 'kl', 'neighbours']
    assert found.measures['kl'].after.mean == pytest.approx(found.clips.kl.mean())
    with pytest.raises(InputError, match='test_dl or clips'): audit(Retention(net, pretext=lambda e: 0.), net[0])


def test_several_encoders_share_the_readings_of_the_first(trained, tuned):
    net, train, test = trained
    retention = Retention(net, train, test)
    one, two = (audit(retention, tuned(net, by)) for by in (.1, .3))
    assert one.measures['drift'].after.mean < two.measures['drift'].after.mean
    assert two.measures['drift'] == audit(net, tuned(net, .3), train, test).measures['drift']


def test_many_clips_are_measured_in_parts(trained, tuned, monkeypatch):
    "Neighbours do not depend on the parts; the interval of CKA is that of fewer clips, and wider"
    net, train, test = trained
    whole = audit(net, tuned(net), train, test)
    monkeypatch.setattr(per_clip, 'ROWS', 7)
    monkeypatch.setattr(audit_module, 'MOST_GRAM', 20)
    parts = audit(net, tuned(net), train, test)
    assert parts.measures['neighbours'] == whole.measures['neighbours']
    wide, narrow = (found.measures['cka_unbiased'].after for found in (parts, whole))
    assert wide.mean == narrow.mean and wide.high - wide.low > narrow.high - narrow.low


def test_class_names_are_those_of_the_loader(trained, tuned):
    net, train, test = trained
    class Named(list): dataset = SimpleNamespace(classes=['run', 'walk', 'sit'])
    found = audit(net, tuned(net), Named(train), Named(test))
    assert set(found.classes) == {'run', 'walk', 'sit'} == set(found.clips.label)


def test_one_group_of_an_untouched_encoder():
    "Equal outputs need no interval"
    net = model()
    data = [(torch.randn(20, 1, 6, 6), torch.arange(20) % 3)]
    found = audit(net, net[0], data, data, groups=['a']*20)
    assert {(m.change.mean, m.change.low, m.change.high) for m in found.measures.values()} == {(0., 0., 0.)}
