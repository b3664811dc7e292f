"What a stage of a chain knows of the stages before."
from types import SimpleNamespace as NS

import torch
from fastai.callback.core import Callback
from helpers import learner, same, state

from sdfast.strategies import L2SP, SI, Importance, PathIntegral
from sdfast.study.stage import Carried, TaskPath


class TaskPathByHand(Callback):
    "The path integral of the gradient without what SI adds to it"
    order, run_valid = 4, False
    def __init__(self, lam, importance): self.lam, self.importance = lam, importance
    def _weights(self): return dict(self.model[0].named_parameters())
    def before_fit(self): self.sum = {n:0. for n in self._weights()}

    def before_step(self):
        self.before = {}
        for n, p in self._weights().items():
            pull = self.lam*self.importance.diag[n]*(p.detach() - self.importance.anchor[n])
            self.before[n] = p.detach().clone(), p.grad - pull

    def after_step(self):
        for n, p in self._weights().items():
            before, grad = self.before[n]
            self.sum[n] = self.sum[n] - grad*(p.detach() - before)


def test_the_path_integral_is_of_the_task_alone():
    "With SI it follows the gradient less what SI adds"
    parameters = dict(learner().model[0].named_parameters())
    importance = Importance({n:torch.rand_like(p) for n, p in parameters.items()},
                            {n:torch.randn_like(p) for n, p in parameters.items()}, 1)
    path, hand = TaskPath(), TaskPathByHand(.3, importance)
    learner([path, SI(.3, importance), hand]).fit(2)
    for n, v in hand.sum.items(): torch.testing.assert_close(path.integral[n], v, rtol=1e-4, atol=1e-6)


def test_without_a_penalty_it_is_the_path_integral():
    path, plain = TaskPath(), PathIntegral()
    learners = [learner([cb]) for cb in (path, plain)]
    for learn in learners: learn.fit(2)
    assert same(state(learners[0].model), state(learners[1].model))
    assert same(path.importance().diag, plain.importance().diag)


def test_it_does_not_change_training():
    learners = [learner([L2SP(.1), *cbs]) for cbs in ([], [TaskPath()])]
    for learn in learners: learn.fit(1)
    assert same(state(learners[0].model), state(learners[1].model))


def test_importances_add_up_over_stages():
    def source(scale, at):
        fisher = Importance(dict(w=torch.tensor([scale, 3*scale])), dict(w=torch.full((2,), at)), 5)
        return NS(model=None, batches=None, id='', path_integral=None, fisher=fisher, mas=None, si=None)
    first, second = source(1., 0.), source(100., 7.)
    assert Carried([first]).fisher is first.fisher  # after the source alone it is that of a study of one task
    both = Carried([first, second]).fisher
    assert both.diag['w'].tolist() == [1., 3.]  # tasks count alike, whatever their scale
    assert both.anchor['w'].tolist() == [7., 7.]
    assert both.n == 10
