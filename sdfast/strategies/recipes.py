"""Ways to forget less that add no term to the loss: what is frozen, and how fast each layer learns.

Each is a fastai callback that undoes what it did to the learner when the fit ends; after an interrupt when the next fit begins,
when the callback is taken off, or by `undo()`. They compose with each other and with the penalties."""
import warnings
from collections.abc import Callable
from functools import partial

import torch
from fastai.torch_core import get_model
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel

from ..models.surgery import batch_norms, find_encoder
from .base import Recipe, unwrap_optimizer

__all__ = ['FrozenBN', 'LinearProbe', 'LPFT', 'layer_groups', 'LayerDecay', 'LowerLR']



class FrozenBN(Recipe):
    "The encoder's batch norm normalises with the statistics it came with, and keeps them"
    def __init__(self,
        affine:bool=False, # Freeze its weight and bias too
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
    ):
        super().__init__(encoder)
        self.affine = affine

    def begin(self)->None:
        if self.affine: self.freeze(p for m in batch_norms(self.module()) for p in m.parameters())

    def before_train(self):
        for m in batch_norms(self.module()): m.eval()

    def before_batch(self): self.before_train()  # a callback may have changed modes in the middle of an epoch


class LinearProbe(Recipe):
    """Only the head trains. The encoder is in eval mode and none of its weights or buffers changes.

    fastai's `freeze` is another thing: it trains batch norm, moves its statistics and leaves dropout on."""
    def __init__(self,
        encoder:str|Callable|None=None, # Which part of the model to freeze, see `find_encoder`
    ): super().__init__(encoder)

    def probing(self)->bool: return True

    def begin(self)->None: self.freeze(self.module().parameters())

    def before_train(self):
        if self.probing(): self.freeze(self.module().parameters())
        else: self.thaw()
        self.before_batch()

    def before_batch(self):
        if self.probing(): self.module().eval()


class LPFT(LinearProbe):
    "A linear probe for the first epochs of a fit, then the whole model (Kumar et al., ICLR 2022)"
    def __init__(self,
        probe_epochs:int, # Epochs of the fit that train the head alone
        encoder:str|Callable|None=None, # Which part of the model to freeze, see `find_encoder`
    ):
        super().__init__(encoder)
        if isinstance(probe_epochs, bool) or not isinstance(probe_epochs, int) or probe_epochs < 0:
            raise ValueError(f'probe_epochs must be a whole number of at least 0, not {probe_epochs!r}')
        self.probe_epochs = probe_epochs

    def probing(self)->bool: return self.learn.epoch < self.probe_epochs

    def begin(self)->None:
        if self.probe_epochs >= self.learn.n_epoch and not hasattr(self.learn, 'lr_finder'):
            warnings.warn(f'LPFT({self.probe_epochs}) in a fit of {self.learn.n_epoch} epochs never trains the encoder: fit for more epochs')

    def before_train(self):
        if not self._wrapped(): super().before_train()

    def before_step(self):
        if self._wrapped() and self.probing():
            for p in self.module().parameters(): p.grad = None

    def _wrapped(self):
        # DDP puts together the gradients of what needed one when it wrapped the model: there they are dropped instead
        return isinstance(self.learn.model, DistributedDataParallel)


def layer_groups(
    model:nn.Module, # Wrapped by DDP or not
    encoder:str|Callable|None=None, # Which part of the model is layered, see `find_encoder`
)->list[list[nn.Parameter]]: # From input to head, the last group being all that is not in the encoder
    """The parameters of a model by layer; a splitter for fastai's `Learner`.

    A layer is a child of the encoder, or of what it merely wraps, with the normalisation that follows it. Parameters
    of the encoder's own (tokens, positions) belong to the first."""
    model = get_model(model)
    part = inner = find_encoder(model, encoder)
    def children(m): return [c for c in m.children() if next(c.parameters(), None) is not None]
    while len(blocks := children(inner)) == 1 and children(blocks[0]): inner = blocks[0]
    inside, seen = {id(p) for m in blocks for p in m.parameters()}, set()
    groups = [[p for p in part.parameters() if id(p) not in inside]]
    for i, m in enumerate(blocks):
        if i and not isinstance(m, (_NormBase, nn.GroupNorm, nn.LayerNorm)): groups.append([])
        groups[-1] += m.parameters()
    groups.append(model.parameters())
    return [[p for p in g if not (id(p) in seen or seen.add(id(p)))] for g in groups]  # tied weights count once, where they come first


class ScaledLR(Recipe):
    """Each parameter learns at `rate(lr, depth)`, where `lr` is what the optimizer's group says, by a scheduler or not.

    Only the step itself sees the other rates: it takes the optimizer's groups apart by depth and puts them together again.
    So schedulers, `lr_find`, `freeze` and checkpoints find the groups they know, and nothing can compound. The recorder
    shows `lr`."""
    _stepping, _depths = None, {}
    _stateattrs = ('_stepping', '_depths')  # not exported

    def rate(self, lr:float, depth:int)->float: raise NotImplementedError
    def depths(self)->dict[int, int]:
        "By `id` of a parameter; 0, the head's, for what is not there"
        return {}

    def begin(self)->None:
        others = [cb for cb in self.learn.cbs if isinstance(cb, ScaledLR) and cb is not self]
        if others: raise ValueError(f'{type(self).__name__} and {others[0]} both set learning rates: keep one, and scale the lr of the fit for the other')

    def before_train(self):
        self._release()
        core = unwrap_optimizer(self.opt)
        self._depths, self._stepping = self.depths(), core
        core.step = partial(self._step, core, core.step)

    def _step(self, core, step, *args, **kwargs):
        groups = []
        for g in core.param_groups:
            by_depth = {}
            for p in g['params']: by_depth.setdefault(self._depths.get(id(p), 0), []).append(p)
            groups += [{**g, 'params':ps, 'lr':self.rate(g['lr'], d)} for d, ps in by_depth.items()]
        if isinstance(core, torch.optim.Optimizer): apart = dict(param_groups=groups)
        else: apart = dict(param_lists=[g.pop('params') for g in groups], hypers=groups)
        whole = {k:vars(core)[k] for k in apart}
        try:
            vars(core).update(apart)
            return step(*args, **kwargs)
        finally: vars(core).update(whole)

    def _release(self):
        if self._stepping is not None: vars(self._stepping).pop('step', None)
        self._stepping = None

    def after_train(self): self._release()

    def undo(self)->None:
        self._release()
        super().undo()


class LayerDecay(ScaledLR):
    "The head learns at lr, a layer of the encoder at `lr*decay**d`, d being 1 for the topmost of `layer_groups` (Clark et al., ELECTRA, ICLR 2020)"
    def __init__(self,
        decay:float=.75, # Factor from layer to layer; at 1 training is plain fine-tuning to the bit
        encoder:str|Callable|None=None, # Which part of the model is layered, see `find_encoder`
    ):
        super().__init__(encoder)
        if not 0 < decay <= 1: raise ValueError(f'decay must be above 0 and at most 1, not {decay}; to train nothing but the head take LinearProbe()')
        self.decay = decay

    def depths(self)->dict[int, int]: return {id(p):d for d, ps in enumerate(reversed(layer_groups(self.learn.model, self.protected))) for p in ps}
    def rate(self, lr:float, depth:int)->float: return lr*self.decay**depth


class LowerLR(ScaledLR):
    "Plain fine-tuning at `lr/(1 + lam)`: the control for every method that may forget less only because it moves less"
    def __init__(self,
        lam:float, # At least 0; at 0 training is plain fine-tuning to the bit
    ):
        super().__init__()
        if not 0 <= lam < float('inf'): raise ValueError(f'lam must be a number of at least 0, not {lam}')
        self.lam = lam

    def rate(self, lr:float, depth:int)->float: return lr/(1 + self.lam)
