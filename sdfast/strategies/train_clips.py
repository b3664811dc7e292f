"What an encoder makes of the clips that a fit trains on: for strategies that look at them before training."
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from fastai.torch_core import get_model, no_random
from torch import nn

from ..errors import InputError
from ..models.calls import call_on
from ..models.features import extract, to_feature
from ..models.modes import eval_mode
from ..models.probes import probe_head
from .hooks import unrecorded
from .targets import class_numbers, is_distribution, is_of_two

if TYPE_CHECKING:
    from .distill import FixedTeacher

__all__ = ['train_outputs']

ABSENT = -1e4  # the logit of a class that no clip has: its probability is 0 in float32, and finite


class InModel(nn.Module):
    """A module that maps a batch to what `read` makes of the encoder's calls in the model, averaged over its calls.

    The whole model runs, as it may transform its input before it calls the encoder, and `read` computes within it, as
    the model of a trainer may enter autocast by itself."""
    def __init__(self,
        model:nn.Module, # Without DDP around it
        encoder:nn.Module, # A part of it
        read:Callable, # Function of the encoder, its positional and keyword arguments and what it returned
    ):
        super().__init__()
        self.model, self.encoder, self.read = model, encoder, read

    def forward(self, x:torch.Tensor)->torch.Tensor:
        found: list = []
        def seen(*call): found.append(self.read(*call))
        handle = self.encoder.register_forward_hook(seen, with_kwargs=True)
        try:
            with unrecorded(self.model): call_on(self.model, x)
        finally: handle.remove()
        return sum(found)/len(found)


def train_outputs(
    strategy:Any, # A strategy in a fit
    read:Callable, # As for `InModel`
    advice:str, # What to do without the training data
)->tuple[torch.Tensor, torch.Tensor]: # `(N, ...)` float32 and targets `(N, ...)`, on the CPU, of all processes
    "Read all clips that are trained on, in eval mode, without augmentation and without drawing a random number"
    loop = strategy.loop
    if loop.batches is None: raise InputError(f'{type(strategy).__name__}: {advice}')
    with no_random():  # creating loaders draws random numbers
        loader = loop.unaugmented
        outputs, y = extract(InModel(get_model(loop.model), strategy.module(), read), loader)
    if dist.is_available() and dist.is_initialized() and loop.divided:
        parts: list = [None]*dist.get_world_size()
        dist.all_gather_object(parts, (outputs, y))
        outputs, y = (torch.cat(t) for t in zip(*parts))
    return outputs, y


def base_probe(
    strategy:'FixedTeacher', # In a fit, with its teacher
)->nn.Module: # From features to logits, frozen
    """Fit a linear probe of the task that is being learned on the features of the encoder before training.

    Classes that no clip has, such as those of earlier tasks where a head grows, get no probability."""
    who, teacher = type(strategy).__name__, strategy.teacher
    assert teacher is not None  # the caller has made it
    def features(module, args, kwargs, out): return to_feature(teacher, teacher(*args, **kwargs), args, kwargs)
    with eval_mode(teacher):
        x, y = train_outputs(strategy, features, 'without the training data no probe can be fitted: pass head=MODULE '
                                                 'from features to logits, or attach(..., batches=LOADER)')
    present, y = numbers_of(who, y).unique(return_inverse=True)
    try:
        with no_random(): head = probe_head(x, y, len(present))  # a layer draws its first weights
    except InputError as e: raise InputError(f'{who}: {e}: pass head=MODULE from features to logits') from None
    weight = next(teacher.parameters())
    n = int(present.max()) + 1
    state = dict(weight=torch.zeros(n, x.shape[1]), bias=torch.full((n,), ABSENT))
    for name, rows in head.state_dict().items(): state[name][present] = rows.cpu()
    return Probe.of(state).to(weight.device, torch.promote_types(weight.dtype, torch.float32))


def numbers_of(
    who:str, # Who asks, for the message
    y:torch.Tensor, # Targets
)->torch.Tensor: # `(N,)`
    "The class numbers that targets are; they may also be 0 and 1 as floats, or rows of zeros with a single 1"
    y = y.as_subclass(torch.Tensor)
    if y.ndim == 2 and y.shape[1] > 1 and is_of_two(y) and is_distribution(y): return y.argmax(1)
    if not y.is_floating_point() or is_of_two(y): y = class_numbers(y)
    if y.ndim == 1 and not y.is_floating_point(): return y
    raise InputError(f'{who} fits a probe on class numbers, not on targets {tuple(y.shape)} of {y.dtype}: pass '
                     'head=MODULE from features to logits')


class Probe(nn.Linear):
    "A linear head of features in any precision; frozen"
    @classmethod
    def of(cls, state:dict)->'Probe':
        "With the weights of a state dict"
        n, width = state['weight'].shape
        # without first weights, which would be drawn
        probe = nn.utils.skip_init(cls, width, n, device=state['weight'].device, dtype=state['weight'].dtype)
        probe.load_state_dict(state)
        return probe.requires_grad_(False).eval()  # type: ignore[return-value]

    def forward(self, x:torch.Tensor)->torch.Tensor: return super().forward(x.to(self.weight.dtype))
