"""What every penalty shares: finding the encoder, watching it in the main forward, adding a term to the loss that is
back-propagated, and reporting that term in a column of its own.

A new penalty is a subclass of `Penalty` with a `term` method."""
from collections.abc import Callable, Iterable

import torch
from fastai.callback.core import Callback, CancelEpochException, CancelFitException
from fastai.learner import ValueMetric
from fastai.optimizer import Lookahead, OptimWrapper
from torch import nn

from ..models.surgery import block_names, find_encoder
from ..runtime.resume import Stateful

__all__ = ['Penalty', 'FeaturePenalty']



class Recorder:
    "A forward hook that keeps what went into and came out of a module; pickled or copied, it is empty"
    def __init__(self): self.calls = []
    def __call__(self, module, args, kwargs, out): self.calls.append((args, kwargs, out))
    def __reduce__(self): return Recorder, ()


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


class FeaturePenalty(Penalty):
    """A `Penalty` on what the encoder returns, taken from the main forward pass by a hook.

    `layers` also watches parts of the encoder: names of its submodules, or 'blocks' for all of `block_names`."""
    layers, _handles, _recorders = None, (), None
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
        encoder, self._recorders = self.module(), {n:Recorder() for n in ['', *self.layer_names()]}
        self._handles = [encoder.get_submodule(n).register_forward_hook(w, with_kwargs=True) for n, w in self._recorders.items()]

    def before_batch(self): self._clear()

    def after_batch(self):
        super().after_batch()
        self._clear()  # else the last graph stays alive

    def _clear(self):
        for w in self._recorders.values(): w.calls.clear()

    def calls(self, layer:str='')->list:
        "`[(args, kwargs, out)]` of the encoder, or of one of its layers, in this batch"
        calls, who = self._recorders[layer].calls, f'layer {layer!r} of the encoder' if layer else 'the encoder'
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
        self._handles, self._recorders = (), None


def unwrap_optimizer(opt):
    "The optimizer that takes the step, out of fastai's wrappers"
    while isinstance(opt, (Lookahead, OptimWrapper)): opt = opt.opt
    return opt


class Recipe(Callback):
    "A callback that changes how the encoder is trained: `begin` when a real fit begins, `undo` when it has ended, however it ended"
    order, run_valid = -5, False  # behind `model.train()`, before DDP (order 11) looks at what needs a gradient
    protected, _off = None, ()

    def __init__(self, encoder:str|Callable|None=None): self.protected = encoder

    def module(self)->nn.Module:
        "The encoder that is being trained, without DDP around it"
        return find_encoder(self.learn.model, self.protected)

    def begin(self)->None: "A fit begins, `lr_find` included, but not `validate` or `get_preds`"

    def undo(self)->None: self.thaw()

    def freeze(self, params:Iterable[nn.Parameter])->None:
        "`params` stay as they are until `thaw`"
        params = list(params)
        off = [p for p in params if p.requires_grad]
        for p in off: p.requires_grad_(False)
        # fastai's `zero_grad` leaves zeros, and on zeros its optimizers still apply momentum and weight decay
        for p in params: p.grad = None
        self._off = (*self._off, *off)

    def thaw(self)->None:
        for p in self._off: p.requires_grad_(True)
        self._off = ()

    def before_fit(self):
        if self.learn.lock.locked(): return  # `validate` and `get_preds`
        left = self._off  # by an interrupted fit
        self.undo()
        if {id(p) for p in left} - {id(p) for ps in self.opt.param_lists for p in ps}: self._renew_opt()
        self.begin()

    def after_fit(self):
        if not self.learn.lock.locked(): self.undo()

    def _renew_opt(self):
        "An optimizer that was made while parameters were frozen has left them out"
        hypers = self.opt.hypers
        self.learn.create_opt()
        for k in hypers[0]: self.opt.set_hyper(k, [h[k] for h in hypers])

    def __setattr__(self, name, value):
        if name == 'learn' and value is None and self.learn is not None: self.undo()  # `fit(cbs=...)` takes its callbacks off after an interrupt too
        super().__setattr__(name, value)
