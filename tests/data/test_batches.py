"What of a batch are clips and labels: for tuples, dicts and tensors, whoever asks."
from collections import UserDict, namedtuple

import pytest
import torch
from helpers import data, model
from torch import nn

from sdfast.data.batches import Batches, split_batch
from sdfast.errors import InputError
from sdfast.metrics import Retention
from sdfast.models import call_on, extract, reestimate_bn
from sdfast.strategies import channel_attention, fisher_information

X, Y = torch.randn(4, 1, 6, 6), torch.tensor([0, 1, 2, 0])
Pair = namedtuple('Pair', 'x y')


@pytest.mark.parametrize('batch', [
    (X, Y), [X, Y], Pair(X, Y), (X, Y, torch.arange(4)), (X, Y[:, None][:, 0], ['a']*4), dict(pixel_values=X, labels=Y),
    dict(pixel_values_videos=X, labels=Y), dict(x=X, y=Y), dict(video=X, label=Y, video_name=['a']*4, audio=None),
    dict(clips=X, targets=Y), UserDict(inputs=X, target=Y), (dict(video=X), Y), (X, dict(labels=Y)),
    (dict(pixel_values=X), dict(labels=Y))])
def test_clips_and_labels(batch):
    x, y = split_batch(batch)
    assert x is X and torch.equal(y, Y)


@pytest.mark.parametrize('batch', [X, (X,), [X], dict(x=X), dict(pixel_values=X, labels=None)])
def test_clips_alone(batch): assert split_batch(batch)[0] is X and split_batch(batch)[1] is None


@pytest.mark.parametrize('batch,error', [
    (dict(a=X, b=Y), 'a dict with a, b, none of which is known as clips'), ({}, 'a dict with nothing'),
    (dict(x=X, video=X), 'several names, x, video'), (dict(x=X, y=Y, label=Y), 'labels under several names, label, y'),
    ((X, torch.randn(4, 2, 8000), Y), r'3 things, of which the second, of shape \(4, 2, 8000\)'),
    ((X, ['a']*4, Y), 'the second, list'), ((), 'not tuple'), (7, 'not int'), (('a', Y), 'not str first'),
    (dict(x=['a']*4), 'none of which')])
def test_what_is_not_clear_is_refused(batch, error):
    with pytest.raises(InputError, match=f'{error}.*pass split=FUNCTION'): split_batch(batch)


def test_a_function_decides():
    assert split_batch(dict(a=X, b=Y), lambda batch: (batch['a'], batch['b']))[1] is Y
    loader = Batches([dict(a=X, b=Y)], lambda batch: (batch['a'], batch['b']))
    assert len(loader) == 1 and [y is Y for _, y in loader] == [True]
    with pytest.raises(AttributeError): loader.nothing


# ---- whoever reads batches

def pairs(part='valid'): return [(torch.Tensor(x), torch.Tensor(y).long()) for x, y in getattr(data(), part)]
def dicts(part='valid'): return [dict(pixel_values=x, labels=y) for x, y in pairs(part)]
def odd(part='valid'): return [dict(a=x, b=y) for x, y in pairs(part)]
def split(batch): return batch['a'], batch['b']


class Keywords(nn.Module):
    "An encoder that is called with keywords"
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, *, pixel_values, mask=None): return self.net(pixel_values)


def test_retention_reads_dicts_and_calls_with_keywords():
    net, tuned = model(), model(1)
    want = Retention(net, pairs('train'), pairs(), barrier_at=(.5,))(tuned[0]).flat()
    ways = {
        'dicts':Retention(net, dicts('train'), dicts(), barrier_at=(.5,)),
        'function':Retention(net, odd('train'), odd(), barrier_at=(.5,), split=split)}
    for way, retention in ways.items(): assert retention(tuned[0]).flat() == pytest.approx(want, nan_ok=True), way
    keywords = nn.Sequential(Keywords(net[0]), net[1])
    found = Retention(keywords, dicts('train'), dicts(), barrier_at=(.5,))(Keywords(tuned[0])).flat()
    same = {k for k in want if not k.startswith('layers')}
    assert {k:found[k] for k in same} == pytest.approx({k:want[k] for k in same}, nan_ok=True)
    with pytest.raises(InputError, match='train_dl yields a dict with a, b'): Retention(net, odd('train'), odd())
    x, y = extract(Keywords(net[0]), dicts())
    assert torch.equal(x, extract(net[0], pairs())[0]) and len(y) == 16


def test_clips_without_labels_may_be_tensors():
    net = model()
    want = Retention(net, clips=[x for x, _ in pairs()])(model(1)[0]).flat()
    assert Retention(net, clips=[dict(x=x) for x, _ in pairs()])(model(1)[0]).flat() == pytest.approx(want, nan_ok=True)


def test_importance_attention_and_statistics_read_dicts():
    net = model()
    for a, b in zip(fisher_information(net, pairs()).diag.values(), fisher_information(net, dicts()).diag.values()):
        assert torch.equal(a, b)
    want, found = channel_attention(net, pairs()), channel_attention(net, dicts())
    assert all(torch.equal(want[k], found[k]) for k in want)
    one, two = reestimate_bn(model(), pairs()), reestimate_bn(model(), dicts())
    assert torch.equal(one[0].bn.running_mean, two[0].bn.running_mean)


def test_a_forward_without_a_name_for_clips_is_refused():
    class Anything(nn.Module):
        def forward(self, **inputs): return inputs
    with pytest.raises(InputError, match='names no argument for clips'): call_on(Anything(), X)
