"The base class of recipes, which change how the encoder is trained, not the loss."
from collections.abc import Callable, Iterable

from torch import nn

from ..runtime.arguments import ShowArguments
from .driver import Driver

__all__ = ['Recipe']


class Recipe(ShowArguments, Driver):
    """A callback that changes how the encoder is trained and undoes the change when the fit ends.

    A subclass defines `begin`, which is called when a fit begins, and, if it changes more than by `freeze`, extends
    `undo`. `undo` is called when the fit ends; after an interrupted fit, when the callback is removed or the next fit
    begins."""
    order, run_valid = -5, False  # after `model.train()`, before DDP (order 11) checks which parameters need gradients
    _off: tuple[nn.Parameter, ...] = ()  # what `freeze` has frozen
    _dropped: tuple[nn.Parameter, ...] = ()  # what it has frozen in a model that DDP has wrapped before
    _still: tuple[nn.Module, ...] = ()  # what `set_eval` has put into eval mode
    _stateattrs = Driver._stateattrs + ('_still',)
    _argument_attrs = dict(encoder='protected')

    def __init__(self,
        encoder:str|Callable|None=None, # Which part of the model to change, see `find_encoder`
    ): self.protected = encoder

    def begin(self)->None: "Called when a fit or `lr_find` begins, but not for `validate` and `get_preds`"

    def release(self)->None: "Restore what is changed during the batches of an epoch only, such as the optimizer's step"

    def undo(self)->None:
        "Restore the learner as it was before `begin`"
        self.release()
        self.thaw()
        self.restore_modes()

    def set_eval(self, modules:Iterable[nn.Module])->None:
        "Put `modules` (without their children) into eval mode until `restore_modes`"
        training = [m for m in modules if m.training]
        for m in training: m.training = False
        self._still = tuple(dict.fromkeys((*self._still, *training)))

    def restore_modes(self)->None:
        "Give modules that `set_eval` has changed the model's mode, which not every trainer sets again"
        for m in self._still: m.training = self.loop.model.training
        self._still = ()

    def freeze(self, params:Iterable[nn.Parameter])->None:
        "Keep `params` unchanged until `thaw`"
        params = list(params)
        if self.loop.wrapped:
            # DDP waits for the gradients of these parameters: they are dropped before the step
            self._dropped = tuple({id(p):p for p in (*self._dropped, *params)}.values())
            return
        off = [p for p in params if p.requires_grad]
        for p in off: p.requires_grad_(False)
        # fastai's `zero_grad` leaves gradients of zero, with which its optimizers still apply momentum and weight decay
        for p in params: p.grad = None
        self._off = (*self._off, *off)

    def thaw(self)->None:
        "Make parameters that `freeze` has frozen trainable again"
        for p in self._off: p.requires_grad_(True)
        self._off, self._dropped = (), ()

    def before_step(self)->None:
        super().before_step()
        for p in self._dropped: p.grad = None

    def attached(self)->None: self.begin()
    def detached(self)->None: self.undo()

    def before_fit(self):
        if self.learn.lock.locked(): return  # `validate` and `get_preds`
        self.meet()
        left = self._off  # parameters that an interrupted fit left frozen
        self.undo()
        known = {id(p) for params in self.opt.param_lists for p in params}
        if {id(p) for p in left} - known: self._renew_opt()
        self.begin()

    def after_fit(self):
        if not self.learn.lock.locked(): self.undo()

    def _renew_opt(self):
        "Recreate the optimizer: one that was created while parameters were frozen lacks them"
        hypers = self.opt.hypers
        self.learn.create_opt()
        for k in hypers[0]: self.opt.set_hyper(k, [h[k] for h in hypers])

    def __setattr__(self, name, value):
        # `fit(cbs=...)` removes its callbacks, which sets `learn` to None, after an interrupt too
        if name == 'learn' and value is None and self.learn is not None: self.undo()
        super().__setattr__(name, value)
