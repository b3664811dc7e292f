"The outputs of an encoder for all clips of a loader, optionally cached in files; random states are restored."
import hashlib
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.functional import cross_entropy

from ..data.batches import split_batch
from ..data.order import trace
from ..errors import Damaged, InputError
from ..models.features import head_input, outputs_of
from ..models.labels import check_head, clip_labels, loader_vocab
from ..models.weights import state_hash
from ..runtime import store
from ..runtime.progress import track

__all__ = ['ClipFeatures', 'read_clips']

VERSION = 2  # of what is stored: outputs of another version are computed again
FEATURE = ' feature'  # name in the cache of a feature that is not what the encoder returned


@contextmanager
def preserve_rng()->Iterator[None]: # A context manager
    "Restore the random state of Python, numpy and torch afterwards"
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(cuda):
        try: yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def fix_seed()->None:
    "Seed all generators, so that each encoder gets the same random numbers; call it within `preserve_rng`"
    random.seed(0)
    np.random.seed(0)
    # `torch.manual_seed` would also seed CUDA later if it is not initialised yet
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized(): torch.cuda.manual_seed_all(0)


@dataclass
class ClipFeatures:
    "The outputs of an encoder for the clips of a loader, on the CPU"
    x: torch.Tensor  # features (N, F)
    y: torch.Tensor|None  # labels (N,)
    logits: torch.Tensor|None  # logits of the old head (N, classes)
    layers: dict  # name -> (N, C)
    trace: torch.Tensor  # by which the clips are recognised when they are read again (N, 3)
    n_batches: int  # how many batches the loader has

    def __len__(self): return len(self.x)

    @property
    def chance(self)->float:
        "Accuracy of always answering the most frequent class"
        assert self.y is not None  # the loader has labels
        return (self.y.bincount().max()/len(self.y)).item()

    def accuracy(self)->float: return (self.logits.argmax(1) == self.y).double().mean().item()

    def loss(self)->float:
        assert self.y is not None  # the loader has labels
        return cross_entropy(self.logits.double(), self.y).item()


@dataclass
class Evidence:
    "What scores are computed from"
    readings: dict  # name of a loader -> `ClipFeatures`
    probe: Any = None  # the linear probe, fitted on the clips of `train_dl`
    recomputed: ClipFeatures|None = None  # of `test_dl`, with recomputed batch-norm statistics
    between: dict = field(default_factory=dict)  # place between both weights -> the same
    extra: dict = field(default_factory=dict)  # of `Retention(extra=...)`: name -> whether each test clip is right


@torch.no_grad()
def read_clips(
    encoder:nn.Module, # In eval mode
    dl:Iterable, # Yields `(x, y)`, `(x,)`, `x` or dicts, see `split_batch`
    head:nn.Module|None=None, # Maps features to logits
    layers:Sequence[str]=(), # Submodules whose outputs to return
    outputs_of:Callable=outputs_of, # `outputs_of`, or an `OutputCache`
    name:str='the loader', # For errors
    labelled:bool=True, # Whether labels are read
    split:Callable|None=None, # As for `split_batch`
)->ClipFeatures: # Of all clips, in the order of `dl`
    """Compute features, logits and outputs of layers.

    Raises `InputError` for a loader without batches, for labels that are not class numbers, and for a head whose
    outputs cannot be the loader's classes."""
    features, labels, logits, traces = [], [], [], []
    maps: dict[str, list] = {layer:[] for layer in layers}
    for batch in track(dl, 'measuring'):
        x, y = split_batch(batch, split, name)
        out, f, found = outputs_of(encoder, x, layers)
        features.append(f.float().cpu())
        traces.append(trace(x))
        if y is not None and labelled: labels.append(clip_labels(y, f'labels of {name}', len(x)).cpu())
        if head is not None: logits.append(head.to(f.device)(head_input(head, out, f)).float().cpu())
        for layer in layers: maps[layer].append(found[layer].cpu())
    if not features: raise InputError(f'{name} is a loader without batches, on which nothing can be measured')
    def joined(parts): return torch.cat(parts) if parts else None
    outputs = {layer:joined(parts) for layer, parts in maps.items()}
    reading = ClipFeatures(joined(features), joined(labels), joined(logits), outputs, joined(traces), len(features))
    if head is not None and reading.y is not None: _check_logits(reading, dl, name)
    return reading


def _check_logits(reading, dl, name):
    if reading.logits.ndim != 2:
        raise InputError(f'the head must give a logit for each class (N, classes), not {tuple(reading.logits.shape)}')
    check_head(reading.logits.shape[1], reading.y, loader_vocab(dl), name)


class OutputCache:
    """`outputs_of` with a cache in files: the output for the same weights and pixels is computed only once.

    A damaged file is recomputed."""

    def __init__(self,
        folder:str|Path, # Folder for the files, which several encoders may share
        encoder:nn.Module, # The encoder
        layers:Sequence[str], # Submodules whose outputs to store
    ):
        self.layers = layers
        device = next(encoder.parameters()).device.type
        what = f'{VERSION}{encoder}{layers}{torch.__version__}{device}{torch.get_num_threads()}'
        self.folder = Path(folder)/f'{state_hash(encoder.state_dict())}-{hashlib.sha256(what.encode()).hexdigest()[:8]}'
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, encoder:nn.Module, x:torch.Tensor, layers:Sequence[str]=())->tuple:
        key = self._key(x)
        outputs = self._read(key)
        if outputs is None:
            out, f, maps = outputs_of(encoder, x, self.layers)
            if f is not out: maps[FEATURE] = f
            outputs = {name:v.cpu().contiguous() for name, v in (maps | {'': out}).items()}
            store.put(self.folder, key, save(outputs), 'safetensors')
        device = next(encoder.parameters()).device
        out = outputs[''].to(device)
        f = outputs[FEATURE].to(device) if FEATURE in outputs else out
        return out, f, {name:outputs[name] for name in self.layers}

    def _key(self, x):
        pixels = x.detach().as_subclass(torch.Tensor).cpu().contiguous()
        content = pixels.reshape(-1).view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(f'{tuple(x.shape)}{x.dtype}'.encode() + content).hexdigest()[:24]

    def _read(self, key):
        try: files = store.find(self.folder, key, 'safetensors')
        except Damaged as e:
            warnings.warn(f'{e}; it is recomputed')
            return None
        # copies, whose memory is aligned as that of computed ones: else a head's last digits could differ
        return {name:v.clone() for name, v in load_file(files[0]).items()} if files else None
