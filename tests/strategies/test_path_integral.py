"The path integral against sums written out by hand."
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from fastai.callback.training import GradientAccumulation
from helpers import data, learner, model, same

from sdfast.errors import InputError
from sdfast.strategies import PathIntegral, SelfDistill


def test_path_integral_is_minus_gradient_times_step():
    "By hand over an epoch of plain SGD with momentum; with micro-batches a step is one"
    for accumulate in (False, True):
        net, hand = model(), model()
        path = PathIntegral()
        cbs = [path, *([GradientAccumulation(24)] if accumulate else [])]
        learner(cbs, net=net, dls=data(bs=8)).fit(2)
        opt = torch.optim.SGD(hand.parameters(), lr=.1, momentum=.9)
        start = {n:p.detach().clone() for n, p in hand[0].named_parameters()}
        omega, step = {n:torch.zeros_like(p) for n, p in start.items()}, 3 if accumulate else 1
        for _ in range(2):
            hand.train()
            for i, (x, y) in enumerate(data(bs=8).train):
                (F.cross_entropy(hand(x), y)/step).backward()
                if (i + 1) % step: continue
                before = {n:p.detach().clone() for n, p in hand[0].named_parameters()}
                opt.step()
                for n, p in hand[0].named_parameters(): omega[n] -= p.grad*(p.detach() - before[n])
                opt.zero_grad()
        imp = path.importance(xi=.01)
        for n, p in hand[0].named_parameters():
            torch.testing.assert_close(imp.diag[n], omega[n].clamp(min=0)/((p.detach() - start[n])**2 + .01), rtol=2e-3,
                                       atol=1e-6)
        assert same(imp.anchor, {n:p.detach() for n, p in net[0].named_parameters()})
        assert path.steps == (4 if accumulate else 12)
    with pytest.raises(InputError, match='seen no training'): PathIntegral().importance()
    with pytest.raises(InputError, match='without penalties'): learner([PathIntegral(), SelfDistill(1.)]).fit(1)
