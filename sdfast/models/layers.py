"The layers of an encoder from input to output, and which of them each entry of its state dict belongs to."
from collections.abc import Iterable, Mapping

from timm.models import group_parameters
from torch import nn

from .blocks import PARTS, block_names, innermost, is_norm
from .checkpoints import plain_name

__all__ = ['encoder_layers', 'layer_depths']

HEAD = 'sdfast head'  # a name that no layer of a net has


def encoder_layers(
    encoder:nn.Module, # An encoder
)->list[list[nn.Parameter]]: # From input to output, each parameter once
    """The parameters of an encoder by layer.

    For a net of timm the layers are those of timm's `param_groups_layer_decay`, without what it counts to the head.
    Else they are `block_names`, each with the normalisation that follows it, and parameters of the encoder itself
    (tokens, positions) belong to the first, those after the blocks (a pooler) to the last.

    Of parts that work side by side (see `block_names`), layers that are equally far from the output are one layer."""
    return without_repeats(_groups(encoder))


def _groups(part):
    _, net = innermost(part, PARTS)
    if hasattr(net, PARTS): return _groups_of_parts(net)
    return _groups_of_timm(part) or _groups_of_blocks(part)


def _groups_of_parts(net):
    groups = []
    for names in net.encoder_parts:
        branches = [_all_groups(net.get_submodule(n)) for n in names]
        most = max(map(len, branches))
        aligned = [[[]]*(most - len(branch)) + branch for branch in branches]
        groups += [[p for layer in layers for p in layer] for layers in zip(*aligned)]
    inside = {id(p) for group in groups for p in group}
    return [[p for p in net.parameters() if id(p) not in inside] + groups[0], *groups[1:]]


def _all_groups(part):
    "The groups of a part that others follow: what timm counts to its head belongs to the last one"
    groups = without_repeats(_groups(part))
    inside = {id(p) for group in groups for p in group}
    return [*groups[:-1], groups[-1] + [p for p in part.parameters() if id(p) not in inside]]


def layer_depths(
    encoder:nn.Module, # An encoder
)->dict[str, int]: # By name in its state dict
    """The depth of each weight and buffer of an encoder: 1 for the last of its `encoder_layers`, larger towards the
    input, and 0 for what timm counts to the head.

    A buffer has the depth of its module's weights or, without any, of the weights next to it."""
    layers = encoder_layers(encoder)
    by_id = {id(p):d for d, params in enumerate(reversed(layers), 1) for p in params}
    weights = {plain_name(n):by_id.get(id(p), 0) for n, p in encoder.named_parameters(remove_duplicate=False)}
    names = [plain_name(k) for k in encoder.state_dict()]
    return {k:weights[n] if n in weights else _depth_beside(n, names, weights)
            for k, n in zip(encoder.state_dict(), names)}


def _depth_beside(name:str, names:list[str], weights:Mapping[str, int])->int:
    "The depth of the last weight before an entry, or of the first one, in the innermost module that has weights"
    at, module = names.index(name), name
    while module:
        module = module.rpartition('.')[0]
        prefix = f'{module}.' if module else ''
        beside = [n for n in names if n in weights and n.startswith(prefix)]
        before = [n for n in beside if names.index(n) < at]
        if beside: return weights[(before or beside[:1])[-1]]
    return 0


def _groups_of_timm(part):
    "Groups of a net of timm without those of its head; `None` for other nets"
    _, net = innermost(part, 'group_matcher')
    if not hasattr(net, 'group_matcher'): return None
    params = dict(net.named_parameters())
    numbers = group_parameters(_WithHead(net), net.group_matcher(coarse=False), reverse=True)
    groups = [[] for _ in range(numbers[HEAD])]
    for name, number in numbers.items():
        if number < len(groups): groups[number].append(params[name])
    return groups


class _WithHead:
    "A net with one more parameter that is in none of its layers"
    def __init__(self, net): self.net = net
    def named_parameters(self): return [*self.net.named_parameters(), (HEAD, None)]


def _groups_of_blocks(part):
    layers = [part.get_submodule(n) for n in block_names(part)] or [part]
    inside = {id(p) for m in layers for p in m.parameters()}
    outside = [p for p in part.parameters() if id(p) not in inside]
    behind = _behind(part, inside)
    groups = [[p for p in outside if id(p) not in behind]]
    for i, m in enumerate(layers):
        if i and not is_norm(m): groups.append([])
        groups[-1] += m.parameters()
    groups[-1] += [p for p in outside if id(p) in behind]
    return groups


def _behind(part, inside):
    "Ids of the parameters that are defined after all those in `inside`"
    ids = [id(p) for p in part.parameters()]
    last = max((i for i, p in enumerate(ids) if p in inside), default=-1)
    return set(ids[last + 1:])


def without_repeats(groups:Iterable)->list[list[nn.Parameter]]:
    "Each parameter once, in the first group that has it: weights may be tied"
    seen: set[int] = set()
    unique: list[list[nn.Parameter]] = []
    for group in groups:
        unique.append([])
        for p in group:
            if id(p) in seen: continue
            seen.add(id(p))
            unique[-1].append(p)
    return unique
