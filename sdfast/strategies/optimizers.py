"Properties of an optimizer that strategies need."
from typing import Any

import torch
from fastai.optimizer import Lookahead, OptimWrapper, momentum_step, sgd_step

__all__ = ['unwrap_optimizer', 'momenta']


def unwrap_optimizer(
    opt:Any, # An optimizer of fastai or PyTorch, perhaps wrapped by `Lookahead` or `OptimWrapper`
)->Any: # fastai's or PyTorch's
    "The optimizer that takes the step, without fastai's wrappers"
    while isinstance(opt, (Lookahead, OptimWrapper)): opt = opt.opt
    return opt


def momenta(
    opt:Any, # A `Learner`'s optimizer
)->list[float]|None: # One number for each parameter group
    "The momentum of each group if `opt` is SGD, with heavy-ball momentum or none; `None` for any other optimizer"
    core = unwrap_optimizer(opt)
    if isinstance(core, torch.optim.SGD):
        if any(g['nesterov'] or g['dampening'] for g in core.param_groups): return None
        return [g['momentum'] for g in core.param_groups]
    steps = getattr(core, 'cbs', ())
    if momentum_step in steps: return [h['mom'] for h in opt.hypers]
    if sgd_step in steps: return [0.]*len(opt.hypers)
    return None
