"Measures of the source on request: what `Retention` returns, by functions of features that are read apart."
import copy

import pytest
import torch
from helpers import Net, model, same, state
from torch import nn

from sdfast.errors import InputError
from sdfast.metrics import (
    EXTRA,
    Retention,
    attentive_probe,
    audit,
    choose_neighbours,
    choose_strength,
    knn,
    linear_probe,
)

TUNED = EXTRA[:2]


class Maps(nn.Module):
    "An encoder of maps"
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
    def forward(self, x): return self.bn(self.conv(x)).relu()


class Mean(nn.Linear):
    def forward(self, x): return super().forward(x.mean((2, 3)) if x.ndim == 4 else x)


@pytest.fixture(autouse=True)
def short(monkeypatch): monkeypatch.setattr('sdfast.metrics.attentive.STEPS', 30)


@pytest.fixture
def parts():
    "A source task, hard enough that settings matter: train, valid and test batches"
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(150, 1, 6, 6, generator=g), torch.arange(150) % 3
    for c in range(3): x[y == c, 0, 2*c] += .6
    def batches(start, end): return [(x[i:i + 15], y[i:i + 15]) for i in range(start, end, 15)]
    return batches(0, 60), batches(60, 105), batches(105, 150)


def read(encoder, batches):
    encoder = copy.deepcopy(encoder).eval()
    with torch.no_grad(): return torch.cat([encoder(x) for x, _ in batches]), torch.cat([y for _, y in batches])


@pytest.mark.parametrize('names', [EXTRA[:1], EXTRA[1:2], TUNED])
def test_settings_are_chosen_on_valid_clips(parts, tuned, names):
    train, valid, test = parts
    net = model()
    retention, other = Retention(net, train, test, valid_dl=valid, extra=names), tuned(net, .3)
    for encoder, scores in ((net[0], retention.reference), (other, retention(other))):
        (x, y), held_out, measured = (read(encoder, part) for part in (train, valid, test))
        want = dict(source_probe_tuned=linear_probe(x, y, *measured, choose_strength(x, y, *held_out)),
                    source_knn_tuned=knn(x, y, *measured, choose_neighbours(x, y, *held_out)))
        for name in EXTRA: assert getattr(scores, name) == (want[name] if name in names else None)
        assert scores.source_probe == linear_probe(x, y, *measured) and scores.source_knn == knn(x, y, *measured)


def test_the_measured_clips_do_not_choose(parts, monkeypatch):
    "With other labels of the test clips, the same settings are chosen"
    from sdfast.metrics import extra as module
    train, valid, test = parts
    chosen = []
    for name in ('choose_strength', 'choose_neighbours'):
        choose = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, f=choose: chosen.append(f(*args)) or chosen[-1])
    for labels in (lambda y: y, lambda y: 2 - y):
        Retention(model(), train, [(x, labels(y)) for x, y in test], valid_dl=valid, extra=TUNED).reference
    assert len(chosen) == 4 and chosen[:2] == chosen[2:]


def test_the_attentive_probe_reads_tokens(parts, tuned):
    train, valid, test = parts
    torch.manual_seed(0)
    net = nn.Sequential(Maps(), Mean(6, 3))
    retention = Retention(net, train, test, extra=['source_attentive'])
    other = tuned(net, .3)
    for encoder, found in ((net[0], retention.reference), (other, retention(other))):
        tokens = [(maps.flatten(2).transpose(1, 2), y) for maps, y in (read(encoder, part) for part in (train, test))]
        assert found.source_attentive == attentive_probe(*tokens[0], *tokens[1])
    assert retention.change(copy.deepcopy(net[0]))['source_attentive'] == 0.


def test_nothing_is_measured_unless_asked_for(parts):
    train, valid, test = parts
    scores = Retention(model(), train, test, valid_dl=valid).reference
    asked = Retention(model(), train, test, valid_dl=valid, extra='source_probe_tuned').reference
    assert not set(EXTRA) & set(scores.values)
    assert {k:v for k, v in asked.values.items() if k not in EXTRA} == scores.values


def test_measuring_changes_nothing(parts):
    train, valid, test = parts
    net = nn.Sequential(Maps(), Mean(6, 3)).train()
    before, rng = state(net), torch.get_rng_state()
    change = Retention(net, train, test, valid_dl=valid, extra=EXTRA).change(net[0])
    assert set(change.values()) == {0.} and set(EXTRA) <= set(change)
    assert same(before, state(net)) and net.training and torch.equal(rng, torch.get_rng_state())


def test_a_stored_reading_has_tokens_too(parts, tmp_path):
    train, valid, test = parts
    torch.manual_seed(0)
    net = nn.Sequential(Maps(), Mean(6, 3))
    found = [Retention(net, train, test, extra=['source_attentive'], cache=tmp_path).reference for _ in range(2)]
    assert found[0] == found[1] == Retention(net, train, test, extra=['source_attentive']).reference


def test_an_audit_has_intervals_of_them(parts, tuned):
    train, valid, test = parts
    net = model()
    found = audit(net, tuned(net, .3), train, test, valid_dl=valid, extra=TUNED, resamples=200)
    for name in TUNED:
        change = found.measures[name].change
        assert change.low < change.high
        assert found.clips[f'{name}.after'].mean() == found.measures[name].after.mean


def test_what_is_missing_is_named(parts):
    train, valid, test = parts
    with pytest.raises(InputError, match="extra measures are source_probe_tuned, .*, not 'source_tuned'"):
        Retention(model(), train, test, extra=['source_tuned'])
    for name in TUNED:
        with pytest.raises(InputError, match=f'{name} has a setting that is chosen on held-out source clips: pass '
                                             r'valid_dl \(in a Run, source_valid=True\)'):
            Retention(model(), train, test, extra=[name])
    with pytest.raises(InputError, match='source_attentive needs train_dl and test_dl'):
        Retention(nn.Sequential(Net(), nn.Linear(6, 3)), clips=[x for x, _ in test]*2, extra=['source_attentive'])
    flat = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(36, 6)), nn.Linear(6, 3))
    with pytest.raises(InputError, match='neither Sequential nor one of its blocks returns any: leave source_att'):
        Retention(flat, train, test, extra=['source_attentive']).reference


@pytest.mark.parametrize('name', TUNED)
@pytest.mark.parametrize('where', ['train_dl', 'test_dl'])
def test_clips_to_choose_on_are_no_others(parts, name, where):
    train, valid, test = parts
    shared = dict(train_dl=train, test_dl=test)[where][0]
    with pytest.raises(InputError, match=f'{name} has .*, but 15 of valid_dl are in {where}, too: take other clips'):
        Retention(model(), train, test, valid_dl=[*valid, shared], extra=[name]).reference
