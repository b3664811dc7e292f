"""Merging the weights of fine-tuned encoders, after training: LiNeS, soups, Model Stock, task arithmetic, TIES.

All functions return a state dict with the names in the first encoder, and change no encoder. τ = w - w_0 is what
fine-tuning changed in a weight. Buffers are no weights: floating-point ones, such as the statistics of batch norm, are
averaged, and all others, such as counters, are those of the first encoder. Averaged statistics fit no net, so compute
them again: `encoder.load_state_dict(merged)`, then `reestimate_bn(model, dl, encoder)`.

Encoders that are merged start from the same weights w_0; heads of different tasks are not merged."""
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from numbers import Real
from pathlib import Path

import torch
from torch import nn

from ..errors import InputError
from .averages import as_real, between, is_averaged, mean_of, wide
from .layers import layer_depths
from .surgery import frozen_copy
from .weights import anchor_state, weights_before

__all__ = ['interpolate', 'lines', 'soup', 'greedy_soup', 'model_stock', 'task_arithmetic', 'ties']


# ---- one encoder

def interpolate(
    encoder:nn.Module, # After fine-tuning
    anchor:dict|nn.Module|str|Path, # State dict, encoder or file: the encoder before fine-tuning
    share:float|Mapping[str, float], # How much of τ to keep, of all entries or by name; 0 and 1 are exactly the ends
)->dict[str, torch.Tensor]: # A new state dict, with the names in `encoder`
    "`w_0 + share*τ`; buffers stay between the two ends, also where a share is above 1"
    start, end = weights_before(encoder, anchor), anchor_state(encoder)
    shares = share if isinstance(share, Mapping) else dict.fromkeys(end, share)
    lacking = [k for k in end if k not in shares]
    if lacking: raise InputError(f'interpolate needs a share for each entry of the state dict, and has none for '
                                 f'{", ".join(lacking[:3])}: make them by layer_depths(encoder)')
    weights = _weight_names(encoder)
    merged = {}
    for k, v in end.items():
        s = _number(shares[k], 'a share', 0 if k not in weights else -math.inf)
        if k not in weights: s = min(s, 1.)
        merged[k] = between(start[k], v, s) if is_averaged(v) else v
    # at 0 the other buffers are those from before as well, as in `wise_ft`
    return start if all(s == 0 for s in shares.values()) else merged


def lines(
    encoder:nn.Module, # After fine-tuning
    anchor:dict|nn.Module|str|Path, # State dict, encoder or file: the encoder before fine-tuning
    alpha:float=.5, # How much of τ the first layer keeps, at least 0
    beta:float|None=None, # How much more the last layer keeps; `None`: all of τ, as for a single task in the paper
)->dict[str, torch.Tensor]: # A new state dict, with the names in `encoder`
    """LiNeS, layer scaling: layer l of L keeps `(alpha + beta*(l - 1)/(L - 1))*τ` (Wang et al., arXiv 2410.17146).

    Layers are `encoder_layers`, from the input; what timm counts to the head keeps what the last layer does. In the
    authors' code embeddings count to the first block, and everything behind the blocks keeps `alpha`."""
    return interpolate(encoder, anchor, lines_shares(encoder, alpha, beta))


def lines_shares(encoder:nn.Module, alpha:float, beta:float|None=None)->dict[str, float]:
    "How much of τ each entry of a state dict keeps by LiNeS"
    alpha, beta = _number(alpha, 'alpha', 0), check_beta(beta)
    if beta is None: beta = max(0., 1 - alpha)
    depths = _depths(encoder, 'LiNeS')
    last = max(depths.values()) - 1
    return {k:alpha + beta*(1 - (max(d, 1) - 1)/max(last, 1)) for k, d in depths.items()}


def check_beta(beta:float|None)->float|None: return beta if beta is None else _number(beta, 'beta', 0)


def depth_shares(encoder:nn.Module, alpha:float)->dict[str, float]:
    "How much of τ each entry of a state dict keeps by WiSE-FT by depth: alpha**depth"
    return {k:alpha**d for k, d in _depths(encoder, 'WiSE-FT by depth').items()}


def _depths(encoder, who):
    depths = layer_depths(encoder)
    if max(depths.values()) < 2:
        warnings.warn(f'{who} finds one layer in {type(encoder).__name__}, so there is no depth to scale by: pass '
                      'encoder=... to name the module whose children are the layers')
    return depths


# ---- several encoders of one task

def soup(
    encoders:Sequence[nn.Module], # Fine-tuned from the same weights; others than the first may be state dicts or files
    weights:Sequence[float]|None=None, # Of each encoder, relative to the others; `None`: equal
)->dict[str, torch.Tensor]: # A new state dict, with the names in the first encoder
    "A model soup: the mean of encoders, such as those of several seeds (Wortsman et al., ICML 2022)"
    states = _states(encoders, 'soup', 1)
    return _soup(states, _weights_of(weights, len(states)))


def greedy_soup(
    encoders:Sequence[nn.Module], # Fine-tuned from the same weights; others than the first may be state dicts or files
    measure:Callable[[nn.Module], float], # Accuracy of an encoder on held-out clips; it may recompute statistics before
)->tuple[dict[str, torch.Tensor], list[int]]: # A new state dict, and the numbers of the encoders in it
    """The greedy model soup: encoders are added from the best to the worst, each only if the mean does not get worse by
    it (Wortsman et al., ICML 2022)."""
    states = _states(encoders, 'greedy_soup', 1)
    part = frozen_copy(encoders[0])

    def score(chosen):
        part.load_state_dict(_soup([states[i] for i in chosen], [1.]*len(chosen)))
        value = float(measure(part))
        if not math.isnan(value): return value
        raise InputError(f'measure of greedy_soup gives nan for the mean of encoders {", ".join(map(str, chosen))}: '
                         'leave out encoders that cannot be measured')

    alone = [score([i]) for i in range(len(states))]
    first, *others = sorted(range(len(states)), key=lambda i: -alone[i])
    chosen, best = [first], alone[first]
    for i in others:
        value = score([*chosen, i])
        if value >= best: chosen, best = [*chosen, i], value
    return _soup([states[i] for i in chosen], [1.]*len(chosen)), chosen


def model_stock(
    encoders:Sequence[nn.Module], # Two or more of one task; others than the first may be state dicts or files
    anchor:dict|nn.Module|str|Path, # State dict, encoder or file: the encoder before fine-tuning
)->dict[str, torch.Tensor]: # A new state dict, with the names in the first encoder
    """Model Stock: for each weight tensor, `t*mean + (1 - t)*w_0` with t = K c/((K - 1) c + 1), where c is the cosine
    between the τ of two of the K encoders, its mean over pairs (Jang et al., arXiv 2403.19522).

    A negative cosine counts as 0: nothing that the encoders have in common is left but w_0."""
    states, start = _states(encoders, 'model_stock', 2), weights_before(encoders[0], anchor)
    merged, K = _soup(states, [1.]*len(states)), len(states)
    for k in _weight_names(encoders[0]) & set(merged):
        taus = [as_real(wide(s[k]) - wide(start[k])).flatten() for s in states]
        c = sum(_cosine(a, b) for a, b in combinations(taus, 2))/math.comb(K, 2)
        c = min(max(c, 0.), 1.)
        merged[k] = between(start[k], merged[k], K*c/((K - 1)*c + 1))
    return merged


# ---- encoders of several tasks

def task_arithmetic(
    encoders:Sequence[nn.Module], # One for each task; others than the first may be state dicts or files
    anchor:dict|nn.Module|str|Path, # State dict, encoder or file: the encoder before fine-tuning
    lam:float|Sequence[float]=.3, # Weight of each τ, or of all; 0 is exactly `anchor`, below 0 a task is unlearned
)->dict[str, torch.Tensor]: # A new state dict, with the names in the first encoder
    "Task arithmetic: `w_0 + sum lam_i*τ_i` (Ilharco et al., ICLR 2023)"
    states, start = _states(encoders, 'task_arithmetic', 1), weights_before(encoders[0], anchor)
    given = list(lam) if isinstance(lam, Sequence) else [lam]*len(states)
    if len(given) != len(states):
        raise InputError(f'task_arithmetic needs a lam for each of {len(states)} encoders, or one for all, not '
                         f'{len(given)}')
    lams = [_number(v, 'lam') for v in given]
    merged = _buffers(states, start, lams)
    for k in _weight_names(encoders[0]) & set(merged):
        tau = sum(v*(wide(s[k]) - wide(start[k])) for v, s in zip(lams, states))
        merged[k] = (wide(start[k]) + tau).to(start[k].dtype)
    return merged


def ties(
    encoders:Sequence[nn.Module], # One for each task; others than the first may be state dicts or files
    anchor:dict|nn.Module|str|Path, # State dict, encoder or file: the encoder before fine-tuning
    lam:float=1., # Weight of the merged τ; 0 is exactly `anchor`
    keep:float=.2, # Share of the weights whose τ is kept, above 0 and at most 1
)->dict[str, torch.Tensor]: # A new state dict, with the names in the first encoder
    """TIES merging (Yadav et al., NeurIPS 2023): of each τ the largest entries in absolute value are kept, over all
    weights together. For each weight the sign of their sum is elected, and τ is the mean of those that have this sign.

    Tied weights count once. Where a sum is 0, the sign that most weights have is taken, as in the authors' code, which
    keeps one entry more."""
    states, start = _states(encoders, 'ties', 1), weights_before(encoders[0], anchor)
    lam, keep = _number(lam, 'lam'), _number(keep, 'keep')
    if not 0 < keep <= 1: raise InputError(f'keep must be a share above 0 and at most 1, not {keep:g}')
    groups = _tied_names(encoders[0], set(start))
    names = [group[0] for group in groups]
    taus = torch.stack([_largest(torch.cat([_tau(s[n], start[n]) for n in names]), keep) for s in states])
    merged, tau = _buffers(states, start, [lam/len(states)]*len(states)), lam*_elect(taus)
    for group, part in zip(groups, tau.split([as_real(start[n]).numel() for n in names])):
        before = as_real(start[group[0]])
        after = (wide(before) + part.view_as(before)).to(before.dtype)
        for n in group: merged[n] = torch.view_as_complex(after) if start[n].is_complex() else after.clone()
    return merged


def _tau(w, start):
    "τ as a vector, in single precision unless the weights are in double"
    return as_real(wide(w) - wide(start)).flatten().to(torch.promote_types(as_real(w).dtype, torch.float32))


def _largest(tau, keep):
    "τ with all but the largest share of its entries set to 0"
    n = max(1, round(keep*len(tau)))
    return torch.where(tau.abs() >= tau.abs().kthvalue(len(tau) - n + 1).values, tau, 0)


def _elect(taus):
    "The mean of the τ that have the elected sign, for each weight"
    sign = taus.sum(0).sign()
    sign = torch.where(sign == 0, sign.sum().sign(), sign)
    agree = (taus.sign() == sign) & (taus != 0)
    return torch.where(agree, taus, 0).sum(0)/agree.sum(0).clamp(min=1)


# ---- parts

def _weight_names(encoder):
    "The names of parameters, all names of tied ones included"
    return {n for n, p in encoder.named_parameters(remove_duplicate=False) if is_averaged(p)}


def _tied_names(encoder, known):
    "The names of each parameter; several where weights are tied"
    found: dict[int, list[str]] = {}
    for n, p in encoder.named_parameters(remove_duplicate=False):
        if n in known and is_averaged(p): found.setdefault(id(p), []).append(n)
    return list(found.values())


def _states(encoders, who, least):
    "A copy of the state dict of each encoder, with the names in the first"
    encoders = list(encoders)
    if len(encoders) < least:
        raise InputError(f'{who} needs at least {least} fine-tuned encoder{"s" if least > 1 else ""}, not '
                         f'{len(encoders)}')
    first = encoders[0]
    if not isinstance(first, nn.Module):
        raise InputError(f'{who} needs a module as the first encoder, to know its layers, not {type(first).__name__}: '
                         'load the weights into an encoder first')
    return [anchor_state(first, e, f'the weights of encoder {i} for {who}') for i, e in enumerate(encoders)]


def _soup(states, weights):
    return {k:mean_of([s[k] for s in states], weights) if is_averaged(v) else v for k, v in states[0].items()}


def _buffers(states, start, lams):
    "A soup of `start` and `states` with the weights `lams`, as far as they are above 0 and sum to at most 1"
    positive = [max(v, 0.) for v in lams]
    total = sum(positive)
    return _soup([states[0], start, *states], [0., max(0., 1 - total), *positive]) if total else start


def _weights_of(weights, n):
    if weights is None: return [1.]*n
    given = [_number(w, 'a weight of a soup', 0) for w in weights]
    if len(given) == n and sum(given) > 0: return given
    raise InputError(f'the soup of {n} encoders needs {n} weights of at least 0 that are not all 0, not {given}')


def _cosine(a, b):
    size = (a.norm()*b.norm()).item()
    return (a @ b).item()/size if size else 0.


def _number(value, what, least=-math.inf):
    "A finite number, at least `least`"
    if isinstance(value, Real) and not isinstance(value, bool) and least <= value < math.inf: return value
    at_least = '' if least == -math.inf else f' of at least {least:g}'
    raise InputError(f'{what} must be a finite number{at_least}, not {value!r}')
