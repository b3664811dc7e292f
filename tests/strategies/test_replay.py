"Replay against a loop by hand, and what it leaves alone."
import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import data, learner, model, same, state
from strategy_helpers import assert_close_states, loop_by_hand, sgd, source, source_head
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import Replay, SelfDistill


def test_replay_equals_a_hand_written_loop():
    net, head, batches = model(), source_head().requires_grad_(False), list(data(n=20, bs=8, seed=5).valid)
    hand = copy.deepcopy(net)
    step = iter(batches*10)
    def term(x, y):
        x, y = next(step)
        e = hand[0]
        # the statistics of this batch, and no buffer moved
        h = F.batch_norm(e.conv(x), None, None, e.bn.weight, e.bn.bias, True)
        return .7*F.cross_entropy(head(e.out(h.relu().flatten(1))), y)
    want = loop_by_hand(hand, 3, sgd(hand), term)  # 6 target batches an epoch, 2 source batches: cycles
    weight = head.weight.detach().clone()
    learn = learner(Replay(.7, batches, head), net=net)
    learn.fit(3)
    assert_close_states(state(net), want)
    assert torch.equal(head.weight, weight) and learn.recorder.metric_names[-2] == 'replay'


def test_replay_is_unseen_by_other_penalties_and_draws_nothing():
    def run(cbs):
        learn = learner(cbs, net=model(dropout=.3))
        learn.create_opt()
        torch.manual_seed(3), random.seed(3), np.random.seed(3)
        learn.fit(2)
        columns = [dict(zip(learn.recorder.metric_names[1:], v)) for v in learn.recorder.values]
        return state(learn.model), [c.get('self_distill')
                                    for c in columns], torch.rand(1), np.random.rand(), random.random()
    def noise(x): return x + torch.randn_like(x)*random.random()*np.random.rand()
    class Noisy:
        def __iter__(self): return ((noise(x), y) for x, y in source())
    cb = Replay(0., Noisy(), source_head())
    plain, alone = run([]), run([cb])
    assert same(plain[0], alone[0]) and plain[1:] == alone[1:]
    a, b = run([SelfDistill(2.)]), run([Replay(0., Noisy(), source_head()), SelfDistill(2.)])
    assert same(a[0], b[0]) and a[1:] == b[1:] and a[1][-1] > 0
    calls = []
    learn = learner([Replay(1., source(), source_head())])
    learn.model[0].register_forward_hook(lambda *a: calls.append(1))
    learn.fit(1)
    assert len(calls) == 6 + 2


def test_replay_draws_anew_for_each_batch():
    "Nor is the state outside what it draws from: that need not move between batches"
    seen = []
    class Noise:
        def __iter__(self):
            for _ in range(3):
                seen.append((torch.rand(1).item(), np.random.rand(), random.random()))
                yield torch.randn(4, 1, 6, 6), torch.zeros(4).long()
    learn = learner(Replay(1., Noise(), source_head()))
    learn.fit(2)
    assert len(seen) == 12 and all(len(set(s)) == 12 for s in zip(*seen))


def test_replay_needs_batches():
    with pytest.raises(InputError, match='no batches'): learner(Replay(1., [], source_head())).fit(1)
    with pytest.raises(InputError, match='repeatedly'):
        learner(Replay(1., iter(list(data(n=16).train)), source_head())).fit(1)


def test_a_negative_strength_is_refused():
    with pytest.raises(ValueError, match='at least 0'): Replay(-1, [], nn.Linear(2, 2))
