"""What the targets of a batch are: one answer for all strategies that read targets or outputs.

The loss decides: of cross-entropy the outputs are logits of a softmax, of binary cross-entropy independent logits, of a
squared error predictions. Without a known loss, the targets decide, if they can. A strategy names in `kinds` the kinds
of targets that its term is defined for; it refuses the others by an `InputError`.

| kind | outputs | targets | loss |
|---|---|---|---|
| classes | `(B, C)` | class numbers `(B,)` or `(B, 1)` | cross-entropy, with weights, smoothing or focus |
| soft | `(B, C)` | class probabilities `(B, C)` | cross-entropy |
| multi-label | `(B, C)` | 0 or 1 for each class `(B, C)` | binary cross-entropy |
| binary | `(B, 1)` or `(B,)` | 0 or 1 | binary cross-entropy |
| regression | any | numbers | squared or absolute error |
| dense | `(B, C, ...)` | a class for each place | any |"""
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import MixHandler
from fastai.layers import NoneReduce
from fastai.losses import BaseLoss, FocalLoss, LabelSmoothingCrossEntropy
from timm import loss as timm_loss
from torch import nn

from ..errors import InputError

__all__ = ['TARGET_KINDS', 'logits_of', 'class_numbers', 'loss_family', 'target_kind', 'task_loss']

TARGET_KINDS = {
    'classes': 'class numbers', 'soft': 'class probabilities', 'multi-label': 'multi-label targets',
    'binary': 'one logit for two classes', 'regression': 'numbers to predict', 'dense': 'a target for each place'}
GUESSED = ('soft', 'multi-label', 'binary')  # kinds that are told by the values of the targets, without a loss
# kinds by what turns logits into probabilities, a softmax or a sigmoid
OF_SOFTMAX, INDEPENDENT = ('classes', 'soft'), ('multi-label', 'binary')

GIVE_LOSS = 'say what the loss is: attach(model, criterion=LOSS)'
OTHER_STRATEGY = 'take a strategy on features or weights, such as SelfDistill or L2SP'
IGNORED = -100  # the label that cross-entropy ignores

# losses by what their inputs are; classes and functions
FAMILIES: dict[str, tuple] = dict(
    softmax=(
        nn.CrossEntropyLoss, nn.NLLLoss, LabelSmoothingCrossEntropy, FocalLoss, timm_loss.LabelSmoothingCrossEntropy,
        timm_loss.SoftTargetCrossEntropy, timm_loss.JsdCrossEntropy, F.cross_entropy, F.nll_loss),
    sigmoid=(
        nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss, nn.SoftMarginLoss, timm_loss.BinaryCrossEntropy,
        timm_loss.AsymmetricLossMultiLabel, F.binary_cross_entropy_with_logits, F.multilabel_soft_margin_loss),
    distance=(
        nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.PoissonNLLLoss, F.mse_loss, F.l1_loss,
        F.smooth_l1_loss, F.huber_loss),
    probabilities=(nn.BCELoss, F.binary_cross_entropy))
# what transformers' models call their losses, in `config.problem_type`
PROBLEM_TYPES: dict[str, Callable] = dict(single_label_classification=F.cross_entropy,
                     multi_label_classification=F.binary_cross_entropy_with_logits, regression=F.mse_loss)


def logits_of(
    out:Any, # What a model returned: a tensor, or a dict or object with `logits`, such as transformers' `ModelOutput`
    who:str='this', # Who asks, for the message
)->torch.Tensor: # The logits
    "Get the logits from a model's output"
    logits = out.get('logits') if isinstance(out, Mapping) else getattr(out, 'logits', out)
    if torch.is_tensor(logits): return logits
    raise InputError(f'{who} needs a model that returns logits (B, classes), this one returned {type(out).__name__}: '
                     'wrap it in a module that returns the logits alone')


def class_numbers(
    y:torch.Tensor, # Class numbers `(B,)`, or `(B, 1)` as columns of tables give them
)->torch.Tensor: # `(B,)`, int64
    "Class numbers of any integer type as one plain vector"
    y = y.as_subclass(torch.Tensor)
    return (y.flatten() if y.ndim == 2 and y.shape[1] == 1 else y).long()


def bare_loss(criterion:Any)->Any:
    "A loss without what fastai and functools wrap around it, MixUp included"
    while True:
        owner = getattr(criterion, '__self__', None)
        if isinstance(owner, MixHandler): criterion = owner.old_lf
        elif isinstance(owner, nn.Module): criterion = owner
        elif isinstance(criterion, (BaseLoss, partial)): criterion = criterion.func
        else: return criterion


def loss_family(
    criterion:Any, # A loss: a function or an object
)->str|None: # 'softmax', 'sigmoid', 'distance' or 'probabilities'; `None` for a loss that is not known
    "What a loss takes the model's outputs for"
    loss = bare_loss(criterion)
    for family, losses in FAMILIES.items():
        if any(loss is known or inspect.isclass(known) and isinstance(loss, known) for known in losses): return family
    return None


def loss_name(criterion:Any)->str:
    loss = bare_loss(criterion)
    return getattr(loss, '__name__', type(loss).__name__)


def check_mean(who:str, criterion:Any, outputs:Any=None, targets:Any=None)->None:
    "Refuse a loss that is not a mean over the batch; of one that does not say so, by its value for this batch twice"
    loss = bare_loss(criterion)
    given = criterion.keywords.get('reduction') if isinstance(criterion, partial) else None
    reduction = given or getattr(loss, 'reduction', None)
    if reduction is None and loss_family(loss) is None and not _is_mean(loss, outputs, targets): reduction = 'sum'
    if reduction in (None, 'mean'): return
    raise InputError(f'{who} needs a loss that is a mean over the batch, not reduction={reduction!r}: its term is '
                     "a mean, too; take reduction='mean' and a larger learning rate")


def _is_mean(loss, outputs, targets):
    if loss is None or not torch.is_tensor(outputs) or not torch.is_tensor(targets): return True
    z, y = outputs.detach(), targets.as_subclass(torch.Tensor)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try: once, twice = loss(z, y), loss(torch.cat([z, z]), torch.cat([y, y]))
        except Exception: return True  # its own check of what it is given
    return torch.allclose(once.float(), twice.float(), rtol=1e-2)


def _family_by_behaviour(criterion, outputs, targets):
    "The family of a loss that is not known, from its `activation` (fastai's convention) or from what it does"
    z = outputs.detach().float()
    activation = getattr(criterion, 'activation', None)
    if callable(activation):
        p = activation(z)
        of = dict(softmax=z.softmax(-1), sigmoid=z.sigmoid(), distance=z)
        return next((name for name, want in of.items() if torch.is_tensor(p) and torch.allclose(p, want)), None)
    if not torch.is_tensor(targets) or targets.is_floating_point(): return None
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # a softmax does not change if the same number is added to all logits
        try: before, after = criterion(z, targets), criterion(z + 1, targets)
        except Exception: return None  # a loss of other outputs than logits
    return 'softmax' if torch.allclose(before, after, rtol=1e-3, atol=1e-5) else 'other'


def target_kind(
    outputs:torch.Tensor, # The model's logits or predictions, batch first
    targets:torch.Tensor|None, # What they are compared with; `None` if not known
    criterion:Any=None, # The loss that compares them; `None` if not known
    advice:str=GIVE_LOSS, # What to do where it cannot be told
)->str: # A key of `TARGET_KINDS`
    """Tell the kind of a batch's targets, see the table above.

    Raises `InputError` where loss, targets and outputs do not fit each other, or leave open what is meant."""
    family = None if criterion is None else loss_family(criterion)
    if family is None and criterion is not None: family = _family_by_behaviour(criterion, outputs, targets)
    if family == 'probabilities':
        raise InputError(f'the loss {loss_name(criterion)} takes probabilities, where logits are needed: let the model '
                         'return logits, and take BCEWithLogitsLoss')
    if family == 'other':
        raise InputError(f'the loss {loss_name(criterion)} of class numbers is no function of the softmax of the '
                         'logits, so that the model\'s probabilities are not known: give it a method `activation` that '
                         'maps logits to probabilities, as losses of fastai have')
    if targets is None and family is None: raise InputError(f'the targets are needed: call loss(targets), or {advice}')
    if targets is not None and not torch.is_tensor(targets):
        raise InputError(f'expected one tensor of targets, not {type(targets).__name__}')
    if outputs.ndim > 2 or targets is not None and targets.ndim > 2: return 'dense'
    wide = outputs.ndim == 2 and outputs.shape[1] > 1
    if family == 'distance': return 'regression'
    if family == 'sigmoid': return 'multi-label' if wide else 'binary'
    if family == 'softmax': return _kind_of_softmax(wide, targets, criterion)
    assert targets is not None
    return _kind_by_targets(outputs, targets.as_subclass(torch.Tensor), wide, advice)


def _kind_of_softmax(wide, targets, criterion):
    if not wide:
        raise InputError(f'the loss {loss_name(criterion)} of one logit is always 0, as its softmax is 1: take '
                         'BCEWithLogitsLoss, or a head with two outputs')
    return 'soft' if targets is not None and targets.is_floating_point() else 'classes'


def _kind_by_targets(outputs, y, wide, advice):
    numbers = y.is_floating_point()
    if y.numel() == len(outputs) and wide and not numbers and y.dtype != torch.bool: return 'classes'
    if y.numel() != outputs.numel():
        raise InputError(f'targets {tuple(y.shape)} of {y.dtype} do not fit outputs {tuple(outputs.shape)}; {advice}')
    of_two = is_of_two(y)
    if not wide:
        if of_two: return 'binary'
        if numbers: return 'regression'
        raise InputError(f'targets of {y.dtype} other than 0 and 1 do not fit a model of one output; {advice}')
    if is_distribution(y): return 'soft'
    if of_two: return 'multi-label'
    if numbers and bool((y < 0).any() or (y > 1).any()): return 'regression'
    raise InputError(f'targets {tuple(y.shape)} of {y.dtype} can mean several things; {advice}')


def is_of_two(y:torch.Tensor)->bool:
    "Whether all targets are 0 or 1"
    return bool(((y == 0) | (y == 1)).all())


def is_distribution(y:torch.Tensor)->bool:
    "Whether the rows are class probabilities"
    y = y.float()
    return bool((y >= 0).all() and ((y.sum(-1) - 1).abs() < 1e-3).all())


def check_kind(
    who:str, # Who asks, for the message
    kinds:Sequence[str], # The kinds it supports
    outputs:Any, # What the model returned
    targets:Any, # What it is compared with
    criterion:Any=None, # The loss, if known
    advice:str=GIVE_LOSS, # What to do where the kind cannot be told
    instead:str=OTHER_STRATEGY, # What to do where the kind is not supported
)->str: # One of `kinds`
    "`target_kind`, if it is one of `kinds`; raises `InputError` otherwise"
    logits = logits_of(outputs, who)
    try: kind = target_kind(logits, targets, criterion, advice)
    except InputError as e: raise InputError(f'{who}: {e}') from None
    if kind in kinds: return kind
    found = TARGET_KINDS[kind] + ('' if criterion is None else f' (loss {loss_name(criterion)})')
    raise InputError(f'{who} is defined for {" and ".join(TARGET_KINDS[k] for k in kinds)}, not for {found}: '
                     f'{instead}')


def check_same(who:str, kind:str, y:torch.Tensor, advice:str=GIVE_LOSS)->None:
    "Refuse targets of another kind than that of earlier batches, where only the targets say what they are"
    if kind in GUESSED and not (is_distribution if kind == 'soft' else is_of_two)(y):
        raise InputError(f'{who}: first targets looked like {TARGET_KINDS[kind]}, these do not; {advice}')


def check_numbers(who:str, y:torch.Tensor, n:int, ignored:bool=True)->None:
    "Refuse class numbers outside of 0 to n - 1; `ignored`: allow cross-entropy's -100. Only for tensors on CPUs"
    if y.device.type != 'cpu': return  # there, waiting for the device costs time, and it refuses them itself
    wrong = y[((y < 0) | (y >= n)) & ~((y == IGNORED) & ignored)]
    if len(wrong):
        raise InputError(f'{who}: the label {wrong[0].item()} is not one of the {n} classes, 0 to {n - 1}: number the '
                         'classes from 0, as the head does')


def task_loss(
    outputs:Any, # Logits, of the model or of another head for the same task
    targets:torch.Tensor, # The batch's targets
    kind:str, # Their kind
    criterion:Callable|None=None, # The task's own loss; `None`: plain cross-entropy, binary for independent logits
)->torch.Tensor: # Scalar
    "The task's own loss of other logits"
    if criterion is not None: return criterion(outputs, targets)
    if kind in INDEPENDENT:
        return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs).view_as(outputs))
    return F.cross_entropy(outputs, class_numbers(targets) if kind == 'classes' else targets.to(outputs))


def clip_losses(
    outputs:Any, # Logits, or what the model returned
    targets:torch.Tensor, # The batch's targets
    kind:str, # Their kind
    criterion:Callable|None=None, # As for `task_loss`
)->torch.Tensor: # `(B,)`
    "The loss of each clip; raises `InputError` for a loss that cannot give it"
    if criterion is None and kind in INDEPENDENT: criterion = nn.BCEWithLogitsLoss()
    elif criterion is None: criterion = nn.CrossEntropyLoss()
    if loss_family(criterion) == 'sigmoid': targets = targets.to(logits_of(outputs)).view_as(logits_of(outputs))
    elif kind == 'classes': targets = class_numbers(targets)
    try:
        with NoneReduce(criterion) as each: losses = each(outputs, targets)
    except TypeError: losses = _one_by_one(criterion, outputs, targets)
    n = len(targets)
    if losses is not None and losses.ndim and losses.numel() % n == 0: return losses.reshape(n, -1).mean(1)
    raise InputError(f'the loss {loss_name(criterion)} does not give the loss of each clip: take one that is a mean '
                     "over clips, or has reduction='none' as those of PyTorch, and no MixUp")


def _one_by_one(criterion, outputs, targets):
    "The loss of each clip alone, if their mean is that of the batch"
    if not torch.is_tensor(outputs) or isinstance(getattr(criterion, '__self__', None), Callback): return None
    losses = torch.stack([criterion(z[None], y[None]) for z, y in zip(outputs, targets)])
    same = losses.ndim == 1 and torch.allclose(losses.mean(), criterion(outputs, targets), rtol=1e-3)
    return losses if same else None


def two_classes(logits:torch.Tensor)->torch.Tensor:
    "Independent logits `(...)` as `(..., 2)`: a softmax of these is the sigmoid, and its complement"
    return torch.stack([logits, torch.zeros_like(logits)], -1)


def mixed_labels(who:str, targets:torch.Tensor, criterion:Any)->list[tuple]:
    "`[(share, class numbers)]`: two parts of a batch that MixUp or CutMix mixes, else one whose share is 1"
    owner = getattr(criterion, '__self__', None)
    if isinstance(owner, MixHandler):
        share = owner.lam.view(-1, 1)
        return [(share, class_numbers(targets)), (1 - share, class_numbers(owner.yb1[0]))]
    if isinstance(owner, Callback):
        raise InputError(f'{who}: {type(owner).__name__} replaces the loss, so that it is not known which labels its '
                         "batches have: take fastai's MixUp or CutMix, or none")
    return [(1., class_numbers(targets))]
