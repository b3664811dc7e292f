"""Base classes of strategies, which are fastai callbacks.

A `Penalty` adds `lam * term()` to the loss that is back-propagated. A `FeaturePenalty` also records what the encoder
returns in the forward pass.

A new penalty is a subclass with one method:

    class SmallFeatures(FeaturePenalty):
        def term(self): return sum(f.square().mean() for f in self.features())
"""
import warnings
from collections.abc import Callable, Sequence
from numbers import Real

import torch
from torch.utils.hooks import RemovableHandle

from ..errors import InputError
from ..models.blocks import count_trainable
from ..models.features import to_feature
from ..models.surgery import block_names
from ..runtime.arguments import ShowArguments
from ..runtime.resume import Resumable
from .budgeted import Budgeted
from .columns import Columns
from .driver import Driver
from .hooks import Recorder, Versions, check_graph
from .targets import GUESSED, check_kind, check_mean, check_same, loss_family

__all__ = ['Penalty', 'FeaturePenalty']


class Penalty(ShowArguments, Budgeted, Resumable, Columns, Driver):
    """Add `lam * self.term()` to the loss that each training batch back-propagates.

    A subclass defines `term`, the penalty of the current batch: a scalar tensor with a graph. It may also define
    `begin`, which is called before each training epoch (not for skipped epochs, `validate` or `get_preds`). Both can
    use the batch and the model's output, `self.loop.args`, `self.loop.targets` and `self.loop.outputs`, and the
    encoder, `self.module()`.

    `train_loss` and `valid_loss` stay the task loss. The mean of the term over the epoch's batches, without the factor
    `lam`, is a column of the recorder, named after the callback. The term is added inside autocast (which ends at order
    10) and before `GradientAccumulation` (order 6) divides the loss.

    `_state` names the attributes that `Resume` must restore, `_stateattrs` those that an exported learner must not
    have."""
    order: float = 5
    run_valid = False
    pull: torch.Tensor|None = None  # `lam*term` of the current batch, with its graph, until the batch ends
    kinds: tuple[str, ...] = ()  # kinds of targets, see `targets`, that a term of outputs or targets is defined for
    needs_mean: bool = False  # whether the term has the task's loss, which must then be a mean over the batch
    _kind: str|None = None  # that of this epoch's targets
    _warned: tuple[str, ...] = ()  # topics of past warnings: each appears once
    _versions: Versions|None = None  # of the inputs of the current batch, for `unchanged_inputs`
    _sum: torch.Tensor|None = None  # sum of this epoch's terms
    _count = 0  # their number
    _stateattrs: tuple[str, ...] = Driver._stateattrs + Budgeted._budgetattrs + (
        '_sum', '_kind', '_versions', '_columns', 'pull')
    _argument_attrs = dict(encoder='protected')

    def __init__(self,
        lam:float, # Weight of the term, at least 0; with 0 training equals plain fine-tuning bit for bit
        encoder:str|Callable|None=None, # Which part of the model to protect, see `find_encoder`
    ):
        if not isinstance(lam, Real) or not 0 <= lam < float('inf'):
            raise InputError(f'lam must be a number of at least 0, not {lam!r}')
        self.lam: float = lam
        # not `self.encoder`: fastai warns if a callback has an attribute that the model has too
        self.protected = encoder

    def begin(self)->None: "Called before each training epoch, number `self.loop.epoch`"

    def term(self)->torch.Tensor: raise NotImplementedError(f'{type(self).__name__} must define `term`')

    def target_kind(self)->str:
        "The kind of the batch's targets; raises `InputError` for one that is not in `kinds`"
        who, loop = type(self).__name__, self.loop
        if self._kind is None:
            self._kind = check_kind(who, self.kinds, loop.outputs, loop.targets, loop.criterion)
            if self.needs_mean: check_mean(who, loop.criterion, loop.outputs, loop.targets)
        elif self._kind in GUESSED and loss_family(loop.criterion) is None:
            check_same(who, self._kind, loop.targets)
        return self._kind

    def loss(self,
        targets:torch.Tensor|None=None, # The batch's targets, for strategies that need them
        numbers:torch.Tensor|None=None, # Those of its clips in the training data, for strategies that need them
    )->torch.Tensor: # Scalar, to be added to the task's loss
        "`lam*term` of the batch that the model has just seen, in a loop of your own; see `attach`"
        loop = self._attached_loop('loss')
        if not loop.started: raise InputError(f'{type(self).__name__}.loss: call start_epoch() before the first batch')
        loop.targets, loop.numbers = targets, numbers
        try: return self.add_to(torch.zeros((), device=next(loop.model.parameters()).device))
        finally:
            loop.end_batch()
            self.after_batch()

    def _warn_once(self, topic, text):
        if topic in self._warned: return
        warnings.warn(f'{type(self).__name__}{text}')
        self._warned = (*self._warned, topic)

    def warn_if_frozen(self)->None:
        "For `before_train` of strategies that act on the encoder's weights: say if none of them trains"
        if not self.lam or count_trainable(self.module().parameters()): return
        self._warn_once('frozen', ' has no effect, as all parameters of the encoder are frozen: unfreeze some')

    def see_inputs(self)->None:
        "For `before_batch` of strategies that call `unchanged_inputs`"
        self._versions = Versions(self.loop.inputs)

    def unchanged_inputs(self)->tuple[tuple, dict]:
        "What the model was called with in this batch; raises `InputError` if the model has changed it in place"
        if self._versions is not None: self._versions.check_inputs(type(self).__name__, 'the model')
        return self.loop.args, self.loop.kwargs

    def add_to(self, loss:torch.Tensor)->torch.Tensor:
        "The loss to back-propagate: `loss` and `lam*term` of the current batch"
        term = self.term()
        self._count_term(term.detach())
        self.pull = self.lam*term
        return loss + self.pull

    def epoch_state(self)->dict: return super().epoch_state() | dict(sum=self._sum, count=self._count)

    def load_epoch_state(self, state:dict)->None:
        super().load_epoch_state(state)
        self._count = state['count']
        if state['sum'] is not None: self._sum = state['sum'].to(next(self.loop.model.parameters()).device)

    def attached(self)->None: self._sum, self._count = None, 0
    def detached(self)->None: self.leave()
    def columns(self)->dict[str, Callable]: return {f'{self.name}{self.mark()}': self.mean_term} | super().columns()

    def mean_term(self)->float:
        "Mean of the term, without the factor `lam`, over the last training epoch; nan before the first"
        if self._sum is None: return float('nan')
        return (self._sum/self._count).item()

    def before_fit(self):
        if not self.starts(): return
        self.meet()
        self.show(self.columns())

    def before_train(self):
        self._sum, self._count, self._kind = None, 0, None
        self.begin()
        self.begin_budget()

    def after_train(self): self.end_budget()

    def after_loss(self): self.learn.loss_grad = self.add_to(self.loss_grad)

    def _count_term(self, term):
        self._sum = term if self._sum is None else self._sum + term
        self._count += 1

    def after_batch(self): self.pull = None

    def leave(self)->None:
        self.pull = None
        super().leave()


class FeaturePenalty(Penalty):
    """A `Penalty` on the encoder's output, which forward hooks record, so that no second forward pass is needed.

    In `term`, `self.features()` gives the features of the encoder's calls in this batch (see `to_feature`), and
    `self.calls()` what it was called with and returned. `layers` also records parts of the encoder: names of its
    submodules, or 'blocks' for all of `block_names`; pass the name of one to both methods."""
    layers: str|Sequence[str]|None = None  # names of submodules to record, too, or 'blocks'
    _handles: Sequence[RemovableHandle] = ()
    _recorders: dict[str, Recorder]|None = None  # by name of the layer, '' for the encoder; while an epoch trains
    _stateattrs = Penalty._stateattrs + ('_handles', '_recorders')

    def layer_names(self)->list[str]:
        "The submodules of the encoder that are recorded; raises `ValueError` for one that the encoder lacks"
        if self.layers is None: return []
        encoder = self.module()
        names = block_names(encoder) if self.layers == 'blocks' else list(self.layers)
        known = dict(encoder.named_modules())
        for n in names:
            try: encoder.get_submodule(n)
            except AttributeError:
                raise ValueError(f'{type(self).__name__}: the encoder has no layer {n!r}; '
                                 f'it has {", ".join(known)}') from None
        return names

    def before_train(self):
        self._unhook()  # a cancelled epoch may have left hooks
        super().before_train()
        self.warn_if_frozen()
        encoder = self.module()
        wanted = None if self._loop is None else self._loop.recording
        self._recorders = {n:Recorder(wanted) for n in ['', *self.layer_names()]}
        self._handles = [h for n, recorder in self._recorders.items() for h in recorder.hook(encoder.get_submodule(n))]

    def before_batch(self): self._clear()

    def after_batch(self):
        super().after_batch()
        self._clear()  # otherwise the last graph stays in memory

    def _clear(self):
        for recorder in self._recorders.values(): recorder.clear()

    def calls(self, layer:str='')->list:
        "`[(args, kwargs, out)]` of the encoder, or of one of its layers, in this batch"
        assert self._recorders is not None  # set in `before_train`
        calls = self._recorders[layer].calls
        if not calls:
            advice = 'leave it out of layers=[...]' if layer else 'pass encoder=... to name a module that is called'
            raise InputError(f'{self.what(layer)} was not called in this forward pass; {advice}')
        for call in calls: self._check_call(call, layer)
        return calls

    def recorded(self)->list[str]:
        "The names of the layers that are recorded; of 'blocks' only those that the encoder calls"
        assert self._recorders is not None  # set in `before_train`
        return [n for n, r in self._recorders.items() if n and (r.calls or self.layers != 'blocks')]

    def features(self, layer:str='')->list[torch.Tensor]:
        "`(B, F)` for each call of the encoder, or of one of its layers, in this batch"
        module, what = self.module().get_submodule(layer), self.what(layer)
        return [to_feature(module, out, args, kwargs, what) for args, kwargs, out in self.calls(layer)]

    def what(self, layer:str='')->str:
        "The encoder or one of its layers in messages"
        return f'{type(self).__name__}: {f"layer {layer!r} of the encoder" if layer else "the encoder"}'

    def _check_call(self, call, layer):
        who = type(self).__name__
        check_graph(call, self.module(), layer, who)
        if not layer and call.output.changed():
            raise InputError(f"{who}: the model changes the encoder's output in place: use operations after it "
                             'that are not in place, such as ReLU(inplace=False)')

    def check_inputs(self)->None:
        "Raise `InputError` if the encoder has changed its inputs in place, so that another net cannot have the same"
        assert self._recorders is not None  # set in `before_train`
        for call in self._recorders[''].calls: call.inputs.check_inputs(type(self).__name__, 'the encoder')

    def after_train(self):
        super().after_train()
        self._unhook()

    def leave(self)->None:
        self._unhook()
        super().leave()

    def _unhook(self):
        for h in self._handles: h.remove()
        self._handles, self._recorders = (), None
