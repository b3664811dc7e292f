"""Which entries of a checkpoint are those of an encoder.

Checkpoints put an encoder's names below prefixes, and often hold several nets. The prefix is taken after which most
names are the encoder's."""
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

import torch

from ..errors import InputError
from .checkpoints import plain_name

__all__ = ['find_state']

# Of several nets that fit equally well, which is read: RSPNet's and MoCo's query net, the model before its average, the
# teacher of DINO and the target encoder of V-JEPA, which their authors evaluate
PREFERRED = ('encoder_q', 'state_dict', 'model', 'model_state_dict', 'model_state', 'module', 'teacher',
             'target_encoder', 'target')
NEVER = 'encoder_k'  # the average of RSPNet's and MoCo's query net; read only if `key` says so
# Names of the last layer in torchvision's nets, in common checkpoints of image nets, and in RSPNet's checkpoints (where
# it has one output and is never used)
HEADS = ('fc', 'head', 'classifier', 'head.fc', 'last_linear', 'linear', 'heads')
# parts of pre-training models that are not of the encoder
LEFT_OUT = ('decoder', 'encoder_to_decoder', 'mask_token', 'predictor', 'pooler', 'fc_norm')
POSITIONS = re.compile(r'pos_|position|time_embed|temporal_embed|rel_pos|relative_')
# where a model of transformers has the encoder that our wrapper has in `body`
BASES = ('videomae.', 'vivit.', 'timesformer.', 'vjepa2.encoder.', 'vjepa2.')
# names in files of transformers' models -> those in our wrapper
WRAPPED = tuple((re.compile(old), new) for old, new in (
    (r'^(videomae|vivit|timesformer|vjepa2\.encoder)\.', 'body.'), (r'^fc_norm\.', 'pooler.')))
# names in files, which have those of transformers' first code -> those in its present code
PRESENT = tuple((re.compile(old), new) for old, new in (
    (r'\.attention\.attention\.q_bias$', '.attention.attention.query.bias'),
    (r'\.attention\.attention\.v_bias$', '.attention.attention.value.bias')))
PRESENT_VIVIT = tuple((re.compile(old), new) for old, new in (
    (r'^body\.encoder\.layer\.', 'body.layers.'),
    (r'\.attention\.attention\.(q|k|v)(uery|ey|alue)\.', r'.attention.\1_proj.'),
    (r'\.attention\.output\.dense\.', '.attention.o_proj.'),
    (r'\.intermediate\.dense\.', '.mlp.fc1.'),
    (r'^(body\.layers\.\d+)\.output\.dense\.', r'\1.mlp.fc2.')))


@dataclass(frozen=True)
class Match:
    "The entries of a checkpoint that are below one prefix"
    place: str  # keys of the dict and the prefix, '' for the whole file
    state: dict  # name in the encoder -> tensor
    names: int  # entries that the encoder has
    shapes: int  # those of the same shape


def find_state(
    nodes:dict[str, dict[str, torch.Tensor]], # From `read_nodes`
    want:Mapping[str, torch.Tensor], # The state dict of the encoder
    source:str, # What the file is called in messages
    key:str='', # Only entries below these keys, such as `student`
)->dict[str, torch.Tensor]: # Name in the encoder -> tensor, also those that the encoder lacks
    """The entries of a checkpoint that are an encoder's: those below the prefix after which most names match.

    Of several nets that fit equally well and differ, the one in `PREFERRED` is taken, and a warning names it. Others
    raise an `InputError`."""
    def is_asked_for(place): return f'{place}.'.startswith(f'{key}.') if key else NEVER not in place.split('.')
    matches = [m for m in _matches(nodes, want) if is_asked_for(m.place)]
    if not matches: raise InputError(f'{source} have nothing below {key!r}: their keys are {_places(nodes)}')
    most = max(m.names for m in matches)
    shapes = max(m.shapes for m in matches if m.names == most)
    best = [m for m in matches if (m.names, m.shapes) == (most, shapes)]
    # a copy of the encoder inside of a head, such as the key nets of our own pre-training, is not what is meant
    if not key: best = [m for m in best if not set(m.place.split('.')) & set(HEADS)] or best
    return (_choose(best, want, source) if most else best[0]).state


def _places(nodes): return ', '.join(islice((k or 'those of the file itself' for k in nodes), 5))


def _matches(nodes, want):
    shapes = {plain_name(k):v.shape for k, v in want.items()}
    owns = ['', 'body.'] if any(k.startswith('body.') for k in shapes) else ['']
    present = PRESENT_VIVIT if any(k.startswith('body.layers.') for k in shapes) else PRESENT
    found = []
    for node, entries in nodes.items():
        for prefix in _prefixes(entries, shapes, owns):
            inside = {k[len(prefix):]:v for k, v in entries.items() if k.startswith(prefix)}
            variants = [{f'{own}{k}':v for k, v in inside.items()} for own in owns]
            if len(owns) > 1: variants += [_renamed(variants[1], present), _renamed(inside, WRAPPED + present)]
            for state in variants: found.append(_match('.'.join(filter(None, [node, prefix[:-1]])), state, shapes))
    return found


def _prefixes(entries, shapes, owns):
    "Prefixes after which names of the encoder follow, those of most names first, and none"
    known = {k.removeprefix(own) for k in shapes for own in owns}
    counts: Counter = Counter()
    for name in entries:
        parts = name.split('.')
        rests = ['.'.join(parts[i:]) for i in range(len(parts))]
        counts.update(name[:len(name) - len(rest)] for rest in rests if rest in known)
    most = max(counts.values(), default=0)
    found = [p for p, n in counts.most_common() if 2*n >= most]
    outer = [p.removesuffix(base) for p in found for base in BASES if p.endswith(base)]
    return list(dict.fromkeys(['', *found, *outer]))


def _renamed(state, table):
    new = {}
    for name, value in state.items():
        for old, now in table: name = old.sub(now, name)
        new[name] = value
    return new


def _match(place, state, shapes):
    both = [k for k in state if k in shapes]
    return Match(place, state, len(both), sum(state[k].shape == shapes[k] for k in both))


def _choose(best, want, source):
    "One of several matches"
    first = best[0]
    rivals = [m for m in best[1:] if _differ(first, m, want)]
    if not rivals: return first
    places = [m.place.split('.') for m in (first, *rivals)]
    common = set.intersection(*map(set, places))
    ranks = [min((PREFERRED.index(p) for p in place if p in PREFERRED and p not in common), default=len(PREFERRED))
             for place in places]
    names = ', '.join(m.place or 'the file itself' for m in (first, *rivals))
    taken = (first, *rivals)[ranks.index(min(ranks))]
    if ranks.count(min(ranks)) > 1:
        if first.names < len(want): return taken  # none fits, which the caller says
        raise InputError(f'{source} hold several nets that fit and differ: {names}; pass key={first.place!r}, or '
                         'save the one that you want in a file of its own')
    warnings.warn(f'{source} hold several nets that fit: {names}; {taken.place or "the file itself"} is read')
    return taken


def _differ(a, b, want):
    both = [k for k in map(plain_name, want) if k in a.state and k in b.state]
    if len(both) < a.names: return True
    return not all(_same(a.state[k], b.state[k]) for k in both)


def _same(a, b):
    "Whether two tensors have the same values, NaN included; tensors of unusual kinds only if they are one"
    if a is b: return True
    if any(t.layout is not torch.strided or t.is_meta or t.is_quantized for t in (a, b)): return False
    if a.shape != b.shape or a.dtype != b.dtype: return False
    return all(torch.equal(x, y) for x, y in [[t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]])


def is_head(
    name:str, # Of an entry that the encoder lacks
    own:str='', # What the head is called in checkpoints of this encoder, if not by a usual name: its `head_name`
)->bool:
    "Whether a name is of a net's head"
    heads = (*HEADS, own.removeprefix('body.')) if own else HEADS
    return name.removeprefix('body.').startswith(tuple(f'{h}.' for h in heads))


def left_out(
    name:str, # Of an entry that the encoder lacks
)->str: # Its part of the model, '' for any other entry
    "The part of a pre-training or classification model, beside its encoder, that an entry belongs to"
    for base in ('body.', *BASES): name = name.removeprefix(base)
    part = name.partition('.')[0]
    return part if part in LEFT_OUT else ''


# ---- why nothing fits

def explain(
    state:Mapping[str, torch.Tensor], # The entries that match best
    want:Mapping[str, torch.Tensor], # The state dict of the encoder
    wrong:list[str], # Names of entries of other shapes
)->str: # For the end of an error
    "How many names match, some names of both, and what is likely the cause"
    both = sum(k in state for k in want)
    theirs, ours = (', '.join(islice(names, 3)) for names in (state, want))
    return (f'; {both} of {len(want)} names match: the file has {theirs}, the encoder {ours}; '
            f'{_cause(state, want, wrong, both)}')


def _cause(state, want, wrong, both):
    if both < len(want)/2: return 'likely another architecture'
    if wrong and all(POSITIONS.search(k) for k in wrong):
        return 'likely positions for clips of another length or size'
    if wrong: return 'likely other options of the net, such as its width'
    if both < len(want): return 'likely another depth or another option of the net'
    return 'likely a net with more layers, or a head that is called something else'
