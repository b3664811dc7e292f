"""What every penalty shares: finding the encoder, watching it in the main forward, adding a term to the loss that is
back-propagated, and reporting that term in a column of its own.

A new penalty is a subclass of `Penalty` with a `term` method."""
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import torch
import torch.distributed as dist
from fastai.callback.core import Callback, CancelEpochException, CancelFitException
from fastai.learner import ValueMetric
from fastai.torch_core import get_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..models import load_encoder
from ..resume import Stateful

__all__ = ['find_encoder', 'frozen_copy', 'anchor_state', 'state_hash', 'keep_buffers', 'block_names', 'Penalty', 'FeaturePenalty', 'Anchored', 'Auxiliary']


def find_encoder(
    model:nn.Module, # Wrapped by DDP or not
    encoder:str|Callable|None=None, # Name of a submodule, or a function of the model; `None`: fastai's convention
)->nn.Module: # The module itself, no copy
    "The encoder of a model: `model[0]` of a `Sequential(encoder, head)`, or `model.encoder`, or what `encoder` says"
    model = get_model(model)
    children = ', '.join(f'{n} ({type(m).__name__})' for n, m in model.named_children()) or 'none'
    if callable(encoder): return encoder(model)
    if isinstance(encoder, str):
        try: return model.get_submodule(encoder)
        except AttributeError: raise ValueError(f'{type(model).__name__} has no submodule {encoder!r}; its children are {children}') from None
    if isinstance(model, nn.Sequential) and len(model) == 2: return model[0]
    if isinstance(getattr(model, 'encoder', None), nn.Module): return model.encoder
    raise ValueError(f'cannot tell which part of {type(model).__name__} is the encoder: it is neither Sequential(encoder, head) nor has it '
                     f'`encoder`. Pass encoder=NAME or a function of the model; its children are {children}')


def frozen_copy(
    module:nn.Module, # Stays as it is
)->nn.Module: # On the same device
    "A copy in eval mode that needs no gradient and carries no forward or backward hooks; compiled if the module is (`module.compile()`)"
    # handed to deepcopy as already copied: a hook may hold a tensor with a graph, which cannot be copied
    hooks = {id(h):type(h)() for m in module.modules() for h in (m._forward_hooks, m._forward_hooks_with_kwargs, m._backward_hooks)}
    copy = deepcopy(module, hooks).requires_grad_(False).eval()
    if getattr(module, '_compiled_call_impl', None) is not None: copy.compile()  # deepcopy leaves that out; what was compiled for a copy before is used again
    return copy


def anchor_state(
    encoder:nn.Module, # The encoder that is going to be trained
    anchor:dict|nn.Module|str|Path|None=None, # State dict, encoder or file of weights to hold on to; `None`: `encoder` as it stands
)->dict[str, torch.Tensor]: # On the device of `encoder`
    "A copy of the weights to hold on to, under the names that they have in `encoder`"
    if anchor is None: return {k:v.detach().clone() for k, v in encoder.state_dict().items()}
    copy = frozen_copy(encoder)
    if isinstance(anchor, (str, Path)): load_encoder(copy, anchor)
    else: copy.load_state_dict(anchor.state_dict() if isinstance(anchor, nn.Module) else anchor)
    return copy.state_dict()


def state_hash(
    state:dict, # Name -> tensor
)->str: # The same on every device
    "Sixteen hex digits that change when a name or a value of a state dict does"
    h = hashlib.sha256()
    for k, v in sorted(state.items()): h.update(k.encode() + str(v.dtype).encode() + v.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


@contextmanager
def keep_buffers(
    module:nn.Module, # Changed while inside
)->Iterator[nn.Module]: # A context manager that gives the module
    "A forward pass inside uses the batch's statistics where the module does, and leaves batch norm's buffers alone"
    tracking = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for m in tracking: m.track_running_stats = False
    try: yield module
    finally:
        for m in tracking: m.track_running_stats = True


class _Watch:
    "A forward hook that keeps what went into and came out of a module; pickled or copied, it is empty"
    def __init__(self): self.calls = []
    def __call__(self, module, args, kwargs, out): self.calls.append((args, kwargs, out))
    def __reduce__(self): return _Watch, ()


class Columns:
    """Mix-in for a callback that has columns in the recorder while a fit runs, and leaves nothing behind.

    fastai tells no callback of an exception other than its own; `leave` is called then, too: at once where an epoch failed, where
    the fit failed before its first one when the callback is taken off or asked for anything else."""
    _columns, _waiting = (), False

    def starts(self)->bool:
        "In `before_fit`: this is a fit, not `validate` or `get_preds`"
        if not self.learn.lock.locked(): return True
        if self._waiting: self.leave()
        return False

    def show(self, columns:dict)->None:
        "Add columns, name -> function; not for `validate` and `get_preds`, whose results must keep their length"
        self._drop()
        self._columns = [ValueMetric(f, n) for n, f in columns.items()]
        self.learn.metrics, epoch, self._waiting = self.learn.metrics + self._columns, self.learn._do_epoch, True

        def guarded():
            self._waiting = False
            try: epoch()
            except (CancelEpochException, CancelFitException): raise
            except BaseException:
                self.leave()
                raise
        self.learn._do_epoch = guarded

    def leave(self)->None:
        "Take the columns away; subclasses drop their hooks and graphs here"
        self._drop()
        self._waiting = False
        self.learn.__dict__.pop('_do_epoch', None)

    def __setattr__(self, name, value):
        if name == 'learn' and value is None and self._waiting: self.leave()  # taken off, as `fit(cbs=...)` does after an exception too
        super().__setattr__(name, value)

    def _drop(self):
        mine, self._columns = {id(c) for c in self._columns}, ()
        self.learn.metrics = type(self.learn.metrics)(m for m in self.learn.metrics if id(m) not in mine)

    def after_fit(self):
        if not self.learn.lock.locked(): self.leave()


class Penalty(Stateful, Columns, Callback):
    """Add `lam * self.term()` to the gradient of every training batch.

    `train_loss` and `valid_loss` stay the task loss; the mean of the term over the epoch's batches, before `lam`, is in a
    column of its own. Subclasses define `term` and, if they keep a state, `begin`, which is called each time an epoch
    starts to train: not for skipped epochs, `validate` or `get_preds`. The term is added before `GradientAccumulation`
    (order 6) divides and inside autocast (left at order 10)."""
    order, run_valid = 5, False
    pull = None  # `lam*term` of the batch at work, with its graph, until the batch ends
    _sum, _count = None, 0
    _stateattrs = ('_sum', '_columns', 'pull')  # not exported

    def __init__(self,
        lam:float, # Weight of the term, at least 0; at 0 training is plain fine-tuning to the bit
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
    ):
        if not lam >= 0: raise ValueError(f'lam must be a number of at least 0, not {lam}')
        # attributes of a callback must not carry a name that the model has: fastai would look there
        self.lam, self.protected = lam, encoder

    def begin(self)->None: "An epoch is about to train: `self.learn.epoch` is its number"

    def term(self)->torch.Tensor: raise NotImplementedError(f'{type(self).__name__} must define `term`')

    def module(self)->nn.Module:
        "The encoder that is being trained, without DDP around it"
        return find_encoder(self.learn.model, self.protected)

    def before_fit(self):
        if self.starts(): self.show({self.name: self.mean_term})

    def mean_term(self)->float:
        "Mean of the term over the batches of the last epoch that trained, before `lam`"
        return float('nan') if not self._count else (self._sum/self._count).item()

    def before_train(self):
        self._sum, self._count = None, 0
        self.begin()

    def after_loss(self):
        term = self.term()
        self._sum = term.detach() if self._sum is None else self._sum + term.detach()
        self._count += 1
        self.pull = self.lam*term
        self.learn.loss_grad = self.loss_grad + self.pull

    def after_batch(self): self.pull = None

    def leave(self)->None:
        self.pull = None
        super().leave()


def block_names(
    encoder:nn.Module, # Or any other net
)->list[str]: # As for `get_submodule`
    "Names of an encoder's blocks from input to output: its children that have weights, or those of its only child; of a `ModuleList` its members"
    prefix, m = '', encoder
    while len(kids := list(m.named_children())) == 1: prefix, m = f'{prefix}{kids[0][0]}.', kids[0][1]
    def members(name, k): return [x for n, c in k.named_children() for x in members(f'{name}.{n}', c)] if isinstance(k, nn.ModuleList) else [(name, k)]
    return [f'{prefix}{n}' for name, kid in kids for n, k in members(name, kid) if any(True for _ in k.parameters())]


class FeaturePenalty(Penalty):
    """A `Penalty` on what the encoder returns, taken from the main forward pass by a hook.

    `layers` also watches parts of the encoder: names of its submodules, or 'blocks' for all of `block_names`."""
    layers, _handles, _watches = None, (), None
    _stateattrs = Penalty._stateattrs + ('_handles', '_watches')

    def layer_names(self)->list[str]:
        "The submodules of the encoder that are watched; raises `ValueError` for one that it does not have"
        encoder = self.module()
        names = [] if self.layers is None else block_names(encoder) if self.layers == 'blocks' else list(self.layers)
        for n in names:
            try: encoder.get_submodule(n)
            except AttributeError: raise ValueError(f'{type(self).__name__}: the encoder has no layer {n!r}; it has {", ".join(dict(encoder.named_modules()))}') from None
        return names

    def before_train(self):
        self._unhook()  # left by a cancelled epoch
        super().before_train()
        encoder, self._watches = self.module(), {n:_Watch() for n in ['', *self.layer_names()]}
        self._handles = [encoder.get_submodule(n).register_forward_hook(w, with_kwargs=True) for n, w in self._watches.items()]

    def before_batch(self): self._clear()

    def after_batch(self):
        super().after_batch()
        self._clear()  # else the last graph stays alive

    def _clear(self):
        for w in self._watches.values(): w.calls.clear()

    def calls(self, layer:str='')->list:
        "`[(args, kwargs, out)]` of the encoder, or of one of its layers, in this batch"
        calls, who = self._watches[layer].calls, f'layer {layer!r} of the encoder' if layer else 'the encoder'
        if not calls: raise RuntimeError(f'{type(self).__name__}: {who} was not called in this forward pass; pass encoder=... to name the module that is')
        for _, _, out in calls:
            if not torch.is_tensor(out):
                raise TypeError(f'{type(self).__name__} needs {"a layer" if layer else "an encoder"} that returns a tensor, this one returned {type(out).__name__}; pass '
                                f'{"layers" if layer else "encoder"}=... to name another module')
        return calls

    def after_train(self): self._unhook()

    def leave(self)->None:
        self._unhook()
        super().leave()

    def _unhook(self):
        for h in self._handles: h.remove()
        self._handles, self._watches = (), None


class Anchored:
    """Mix-in for a `Penalty` that holds on to weights from before training: it takes them once and never again.

    They are `anchor` or, without one, the encoder as it stands when the first real fit begins to train (`lr_find` is none).
    Where that moment has passed, in a fit that starts at a later epoch or after `load_learner`, training is an error. A fit that
    goes on by `Resume` has them from there."""
    anchor, _held, _trial, _taken = None, False, False, False
    _kept = ('_held', '_trial', '_taken')
    _anchorattrs = ('anchor', '_held', '_trial')  # for `_stateattrs`: not exported

    def take(self)->dict|None:
        "`anchor_state` if this is the moment to take it, else `None`: what was taken stays"
        trial = hasattr(self.learn, 'lr_finder')
        if self._held and (trial or not self._trial): return None
        if self.anchor is None and not trial and self.late():
            raise ValueError(f'{type(self).__name__} has no weights to hold on to: an exported learner does not carry them, and a fit that starts '
                             f'at epoch {self.learn.epoch} is too late to take them. Pass anchor=STATE_DICT, ENCODER or FILE')
        self._held, self._trial, self._taken = True, trial, self._taken or not trial
        return self.snapshot()

    def snapshot(self)->dict: return anchor_state(self.module(), self.anchor)
    def late(self)->bool: return self._taken or self.learn.epoch > 0

    def after_fit(self):
        if self._trial: self._held = False
        super().after_fit()


class Auxiliary:
    """Mix-in for a `Penalty` that trains modules of its own, beside the model and thrown away with the callback.

    They learn by SGD at the learning rate and momentum of the model's last group, and step when the model does: not for
    micro-batches, nor where the gradient scaler skips."""
    aux, _aux_opt, _skipped, _aside, _saved = None, None, False, None, None
    _auxattrs = ('aux', '_aux_opt', '_aside')  # for `_stateattrs`: not exported

    def before_fit(self):
        super().before_fit()
        if hasattr(self.learn, 'lr_finder'): self._aside, self.aux = (self.aux, self._aux_opt), None  # a trial's modules are its own

    def leave(self)->None:
        if self._aside is not None: (self.aux, self._aux_opt), self._aside = self._aside, None
        super().leave()

    def state_dict(self)->dict: return super().state_dict() | ({} if self.aux is None else dict(aux=self.aux.state_dict(), aux_opt=self._aux_opt.state_dict()))

    def load_state_dict(self, state:dict)->None:
        super().load_state_dict(state)
        self._saved = state if 'aux' in state else None
        if self.aux is not None: self._restore()

    def _restore(self):
        if self._saved is None: return
        self.aux.load_state_dict(self._saved['aux'])
        self._aux_opt.load_state_dict(self._saved['aux_opt'])
        self._saved = None

    def set_auxiliary(self, make:Callable)->None:
        "Modules from the function `make`, the same whatever was drawn before, without touching the random state"
        device = next(self.module().parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
            torch.manual_seed(0)
            self.aux = make().to(device).train()
        self._aux_opt = torch.optim.SGD(self.aux.parameters(), lr=1., momentum=.9)
        self._restore()

    def before_step(self): self._skipped = False
    def after_cancel_step(self): self._skipped = True

    def after_step(self):
        if not self._skipped: self._step_aux()
        self._aux_opt.zero_grad()

    def _step_aux(self):
        # here, not in `before_step`, which micro-batches have too: what they add up is put together and unscaled once
        scaler = vars(self.learn).get('scaler')  # of `MixedPrecision`
        scale = scaler.get_scale() if scaler is not None else 1.  # as it was in this batch: `MixedPrecision` updates it later
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        for p in self.aux.parameters():
            if p.grad is None: continue
            if world > 1: dist.all_reduce(p.grad)
            p.grad.div_(world*scale)
        if scaler is not None and not all(p.grad.isfinite().all() for p in self.aux.parameters() if p.grad is not None): return
        hyper = self.opt.hypers[-1]
        for g in self._aux_opt.param_groups: g.update(lr=float(hyper['lr']), momentum=float(hyper.get('mom', 0.) or 0.))
        self._aux_opt.step()
