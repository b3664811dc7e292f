"The blocks of an encoder, from input to output, however they are nested."
from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ['block_names']

NORMS = _NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm
AFTER = {'predictor', 'decoder', 'pooler'}  # children of transformers' models that get the features
WRAPPED = .5 # a module wraps a list of blocks if its other weights are less than this share of the list's
PARTS = 'encoder_parts' # attribute of encoders that say themselves what they consist of
FLAT = 6 # a sequence of this many single layers is a list of blocks, if it is a child of the encoder


def block_names(
    encoder:nn.Module, # An encoder or any other net
)->list[str]: # Names for `get_submodule`
    """Names of an encoder's blocks, in the order of their definition, which is that from input to output in most nets.

    They are the children that have weights, of the innermost module that has more than one. Lists of blocks are
    replaced by the blocks: a `ModuleList`, a `Sequential` of modules with several layers each, and stages that consist
    of such a list and little else. A module that several blocks share is part of the blocks.

    An encoder with the attribute `encoder_parts` has the blocks of these parts: a tuple in the order from input to
    output, each entry a tuple of the names of modules that work side by side."""
    prefix, module = innermost(encoder, PARTS)
    if hasattr(module, PARTS): return [f'{prefix}{name}' for name in _blocks_of_parts(module)]
    children = _weighted(module)
    top = not isinstance(module, nn.Sequential)
    blocks = [b for n, c in children for b in _members(n, c, top)]
    inside = {id(m) for _, block in blocks for m in list(block.modules())[1:]}
    return [f'{prefix}{name}' for name, block in blocks if id(block) not in inside]


def innermost(
    module:nn.Module, # A net, perhaps in wrappers
    stop:str='', # Attribute at which to stop
)->tuple[str, nn.Module]: # Prefix of the names of its children, and the net
    "The net inside wrappers: modules whose weights are all in one child"
    prefix = ''
    while not (stop and hasattr(module, stop)):
        children = _weighted(module)
        if len(children) != 1 or not _weighted(children[0][1]): break
        (name, module), = children
        prefix += f'{name}.'
    return prefix, module


def is_norm(
    module:nn.Module, # A layer, or a module with several
)->bool: # `False` without weights
    "Whether a module only normalises or scales, in classes of the user's own too: its weights are vectors"
    if isinstance(module, NORMS): return True
    params = list(module.parameters())
    return bool(params) and all(p.ndim < 2 for p in params)


def params_before(
    model:nn.Module, # The whole model, wrapped by DDP or not
    part:nn.Module, # A part of it
)->list[nn.Parameter]: # In the order of their definition
    "The parameters of a model that are defined before those of a part of it"
    inside, before = {id(p) for p in part.parameters()}, []
    for p in model.parameters():
        if id(p) in inside: break
        before.append(p)
    return before


def count_trainable(
    params:Iterable[nn.Parameter], # Of a model
)->int: # The number of weights in them
    "The number of weights that learn"
    return sum(p.numel() for p in params if p.requires_grad)


def _blocks_of_parts(module):
    names = [n for side_by_side in module.encoder_parts for n in side_by_side]
    # a part that consists of no other modules with weights, such as an LSTM, is a block itself
    return [f'{n}.{b}'.rstrip('.') for n in names for b in block_names(module.get_submodule(n)) or ['']]


def _size(module): return sum(p.numel() for p in module.parameters())


def _weighted(module):
    "Name and module of the children that have weights and lead to the features"
    after = AFTER if hasattr(module, 'base_model_prefix') else ()
    return [(n, c) for n, c in module.named_children() if n not in after and next(c.parameters(), None) is not None]


def _layers(module):
    "Number of layers inside a module, without normalisation"
    leaves = [m for m in module.modules() if not _weighted(m) and next(m.parameters(), None) is not None]
    return sum(not is_norm(m) for m in leaves)


def _members(name, module, top=False):
    "The blocks of a module by name; a module that is no list of blocks is one"
    children = _weighted(module)
    if not (_is_list(module, children, top) or _is_stage(module, children)): return [(name, module)]
    return [m for n, c in children for m in _members(f'{name}.{n}', c)]


def _is_list(module, children, top):
    if isinstance(module, nn.ModuleList): return True
    if type(module) is not nn.Sequential or not children: return False
    if len(children) == 1: return _is_nested(children[0][1])
    return any(_layers(c) > 1 for _, c in children) or top and _layers(module) >= FLAT


def _is_nested(child):
    "Whether the only member of a sequence is a list itself"
    return len(_members('', child)) > 1


def _is_stage(module, children):
    "Whether a module has a list of blocks of one class and little else"
    if isinstance(module, nn.Sequential): return len(children) > 1 and _are_blocks(children)
    lists = [c for _, c in children if type(c) in (nn.ModuleList, nn.Sequential) and _are_blocks(_weighted(c))]
    if len(lists) != 1: return False
    inside = _size(lists[0])
    return _size(module) - inside < WRAPPED*inside


def _are_blocks(members):
    "Whether modules are blocks of one class: not plain sequences, with several layers and their own normalisation"
    modules = [m for _, m in members]
    if len({type(m) for m in modules}) != 1 or isinstance(modules[0], nn.Sequential): return False
    return all(_layers(m) > 1 and any(map(is_norm, m.modules())) for m in modules)
