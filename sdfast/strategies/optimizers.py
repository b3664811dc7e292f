"Properties of an optimizer that strategies need."
import warnings
from collections.abc import Iterable
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


def warn_of_decay(
    who:str, # Name of a strategy that pulls weights to their starting point
    opt:Any, # A `Learner`'s optimizer
    params:Iterable[torch.nn.Parameter], # The weights
)->bool: # Whether there was a warning
    "Warn if the optimizer's weight decay pulls the same weights to zero"
    ours = {id(p) for p in params}
    decays = {hyper.get('wd', 0) for hyper, group in zip(opt.hypers, opt.param_lists)
              if any(id(p) in ours for p in group)} - {0, None}
    if decays:
        warnings.warn(f'{who} pulls the encoder to its starting point, but weight decay {max(decays)} pulls it to '
                      'zero: set wd=0')
    return bool(decays)
