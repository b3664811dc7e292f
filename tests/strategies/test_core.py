"Strategies in a training loop of one's own: the same numbers as in fastai, and what the loop may do."
import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import Source, data, learner, make, model, state
from strategy_helpers import needs_peft
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import BYOT, L2SP, PSKD, R3F, STRATEGIES, EMATeacher, FixedTeacher, LPFT, SelfDistill

NAMES = [pytest.param(n, marks=needs_peft) if n == 'lora' else n for n in STRATEGIES if n != 'finetune']


def plain_loop(net, strategies, dls=None, epochs=2, lr=.1):
    "Ten steps and more of plain PyTorch, validation included"
    dls = dls or data()
    opt = torch.optim.SGD(net.parameters(), lr=lr, momentum=.9)
    torch.manual_seed(1)
    for s in strategies: s.attach(net, opt, epochs=epochs, batches=dls.train)
    for _ in range(epochs):
        net.train()
        for s in strategies: s.start_epoch()
        for x, y in dls.train:
            loss = F.cross_entropy(net(x), y)
            for s in strategies:
                if hasattr(s, 'loss'): loss = loss + s.loss(y)
            loss.backward()
            opt.step()
            for s in strategies: s.after_step()
            opt.zero_grad()
        net.eval()
        for x, _ in dls.valid: net(x)  # with gradients: an evaluation is no part of a batch
    for s in strategies: s.detach()
    return net


@pytest.mark.parametrize('name', NAMES)
def test_a_plain_loop_equals_fastai(name):
    lam = {'lower_lr': 1., 'lp_ft': 1., 'layer_decay': 1., 'stoch_norm': .5, 'wise_ft': .3}.get(name, .3)
    net = model()
    learn = learner(make(name, lam, net), net=net)
    torch.manual_seed(1)
    learn.fit(2)
    other = model()
    plain_loop(other, make(name, lam, other))
    for k, v in state(net).items(): torch.testing.assert_close(other.state_dict()[k], v, rtol=1e-6, atol=1e-6)
    moved = max((a - b).abs().max() for a, b in zip(net.parameters(), model().parameters()))
    assert moved > 1e-3
