"""Strategy by situation: right, or refused in one line. experiments/correctness.py makes a table of it.

Right means: the same weights as in the ordinary way to compute the same, see `situations`."""
from functools import lru_cache

import pytest
import torch
from helpers import learner
from situations import SITUATIONS, loaders
from strategy_helpers import needs_peft
from torch import nn

from sdfast.strategies import STRATEGIES, Importance, channel_attention, empirical_fisher, mas_importance

NAMES = [pytest.param(n, marks=needs_peft) if n == 'lora' else n for n in STRATEGIES]
STRENGTH = dict(lp_ft=1., stoch_norm=.5, pskd=.5, r3f=1e5)
# situations without batch norm -> strategies that equal plain fine-tuning there, and say so in a warning
NO_EFFECT = {name: ('finetune', 'frozen_bn', 'stoch_norm') for name in ('tokens', 'channels last')}


class Source:
    "What strategies need of the source model, whose head has two classes more"
    def __init__(self, net, dls):
        torch.manual_seed(7)
        width, classes = net.top.in_features, dls.train.dataset[0]
        self.net, self.batches = net, list(loaders(3).valid)
        self.head = nn.Linear(width, 5)
        self.dls, self.classes = dls, classes

    @property
    def fisher(self): return empirical_fisher(self.net, list(self.dls.valid))
    @property
    def mas(self): return mas_importance(self.net, list(self.dls.valid))
    @property
    def attention(self): return channel_attention(self.net, list(self.dls.valid))
    @property
    def si(self):
        weights = {n:p.detach().clone() for n, p in self.net.encoder.named_parameters()}
        return Importance({n:torch.full_like(p, .5) for n, p in weights.items()}, weights, 1)


def trained(make, dls, strategy, loss):
    "The weights after two epochs"
    torch.manual_seed(0)
    net = make()
    with torch.random.fork_rng(): cbs = STRATEGIES[strategy].callbacks(STRENGTH.get(strategy, .3), Source(net, dls))
    learn = learner(cbs, dls=dls, net=net, lr=.05)
    if loss is not None: learn.loss_func = loss
    learn.fit(2)
    return [p.detach() for p in net.parameters()]


@lru_cache
def plain(situation):
    "The weights after plain fine-tuning in the ordinary way"
    return trained(SITUATIONS[situation].net, loaders(SITUATIONS[situation].classes), 'finetune', None)


@pytest.mark.parametrize('situation', SITUATIONS)
@pytest.mark.parametrize('strategy', NAMES)
def test_right_or_refused(strategy, situation, record_property):
    s = SITUATIONS[situation]
    try: other = trained(s.other, loaders(s.classes, s.target), strategy, s.loss)
    except ValueError as e:  # `InputError` is one
        text = str(e).split('\n\t')[-1]  # without the line that fastai adds
        assert '\n' not in text and len(text) > 20
        record_property('outcome', 'refused')
        return
    ordinary = trained(s.net, loaders(s.classes), strategy, None)
    assert len(ordinary) == len(other)
    for a, b in zip(ordinary, other): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    if strategy in NO_EFFECT.get(situation, ('finetune',)): return record_property('outcome', 'right')
    assert not all(torch.equal(a, b) for a, b in zip(ordinary, plain(situation)))
    record_property('outcome', 'right')
