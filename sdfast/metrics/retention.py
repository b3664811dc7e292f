"""What fine-tuning kept of what an encoder knew, measured against the untouched encoder.

Everything is computed in eval mode on the same clips; an untouched encoder is changed by exactly 0. Sources: linear probe after
fine-tuning, Davari et al., CVPR 2022; ΔLP on other data sets, Mukhoti et al. (LDIFS), TMLR 2024; retrieval R@k, Xu et al. (VCOP),
CVPR 2019; linear CKA, Kornblith et al., ICML 2019; Procrustes, Ding et al., NeurIPS 2021; barrier, Frankle et al., ICML 2020, with
batch norm's statistics taken anew, Jordan et al., ICLR 2023."""
import hashlib
import random
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from fastai.torch_core import get_model
from safetensors.torch import load_file, save
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import RandomSampler

from ..errors import Damaged, InputError
from ..models.features import encode
from ..models.surgery import block_names, find_encoder, frozen_copy, reestimate_bn
from ..models.weights import state_hash, wise_ft
from ..runtime import store
from .features import (
    drift,
    fit_probe,
    knn,
    linear_cka,
    linear_probe,
    loss_barrier,
    procrustes,
    retrieval,
    weight_distance,
)

__all__ = ['RetentionScores', 'Retention']



@contextmanager
def preserve_rng():
    "The random state of Python, numpy and torch is after this what it was before"
    cuda = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(cuda):
        try: yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _seed():
    "Within `preserve_rng`: the same random numbers for each encoder. `torch.manual_seed` would also queue a seed for a CUDA that is not up yet"
    random.seed(0), np.random.seed(0), torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized(): torch.cuda.manual_seed_all(0)


def _must_not_shuffle(name, dl):
    if getattr(dl, 'shuffle', False) or isinstance(getattr(dl, 'sampler', None), RandomSampler):
        raise InputError(f'{name} shuffles, so two readings of it cannot be compared clip by clip: pass task.dl(dls, "train") or dls.test_dl(items, with_labels=True), which do not augment either')


class _Memo:
    """Outputs of one encoder by the content of its input, kept as files: the same weights and pixels are computed once.

    A file that is not what was written is computed anew."""
    def __init__(self, folder, encoder, layers):
        what = f'{encoder}{layers}{torch.__version__}{next(encoder.parameters()).device.type}{torch.get_num_threads()}'
        self.folder, self.layers = Path(folder)/f'{state_hash(encoder.state_dict())}-{hashlib.sha256(what.encode()).hexdigest()[:8]}', layers
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, encoder, x, layers=()):
        pixels = x.detach().as_subclass(torch.Tensor).cpu().contiguous()
        key = hashlib.sha256(f'{tuple(x.shape)}{x.dtype}'.encode() + pixels.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:24]
        d = None
        try: d = load_file(files[0]) if (files := store.find(self.folder, key, 'safetensors')) else None
        except Damaged as e: warnings.warn(f'{e}; it is computed anew')
        if d is None:
            f, maps = encode(encoder, x, self.layers)
            d = {k:v.cpu().contiguous() for k, v in dict(maps, **{'': f}).items()}
            store.put(self.folder, key, save(d), 'safetensors')
        return d[''].to(next(encoder.parameters()).device), {n:d[n] for n in self.layers}


@dataclass
class ClipFeatures:
    "What an encoder makes of a loader's clips, on the CPU"
    x: torch.Tensor  # features (N, F)
    y: torch.Tensor|None  # labels (N,)
    logits: torch.Tensor|None  # of the old head (N, classes)
    layers: dict  # name -> (N, C)

    def accuracy(self): return (self.logits.argmax(1) == self.y).double().mean().item()
    def loss(self): return cross_entropy(self.logits.double(), self.y).item()


@torch.no_grad()
def read_clips(encoder, dl, head=None, layers=(), encode=encode):
    "`encoder` in eval mode over all of `dl`, which yields `(x, y)`, `(x,)` or `x`"
    xs, ys, logits, maps = [], [], [], {n:[] for n in layers}
    for batch in dl:
        x, y = (*batch, None)[:2] if isinstance(batch, (tuple, list)) else (batch, None)
        f, m = encode(encoder, x, layers) if layers else encode(encoder, x)
        xs.append(f.float().flatten(1).cpu())
        if y is not None: ys.append(y.as_subclass(torch.Tensor).cpu())
        if head is not None: logits.append(head.to(f.device)(f).float().cpu())
        for n in layers: maps[n].append(m[n].cpu())
    if not xs: raise InputError('retention cannot be measured on a loader without batches')
    return ClipFeatures(torch.cat(xs), torch.cat(ys) if ys else None, torch.cat(logits) if logits else None, {n:torch.cat(m) for n, m in maps.items()})


@dataclass(frozen=True)
class RetentionScores:
    "What an encoder kept. Accuracies are fractions; `None` is what was not asked for, or cannot be measured with what was given"
    source_acc: float|None = None  # with the head that was trained on the untouched encoder
    source_acc_bn: float|None = None  # the same, after batch norm's statistics were taken anew from source clips: what the weights kept
    source_probe: float|None = None  # with a linear probe fitted on this encoder's own features
    source_knn: float|None = None  # with the nearest neighbours in this encoder's own features
    r1: float|None = None  # retrieval with train as gallery and test as queries: one of the class among the first 1, 5, 10, 20 and 50
    r5: float|None = None  # among the first 5
    r10: float|None = None  # among the first 10
    r20: float|None = None  # among the first 20
    r50: float|None = None  # among the first 50
    other_probe: float|None = None  # mean over the other tasks of a linear probe's accuracy
    cka: float|None = None  # linear CKA with the untouched encoder's features; 1: unchanged
    procrustes: float|None = None  # Procrustes distance to them; 0: unchanged up to rotation and scale
    drift: float|None = None  # relative distance to them; 0: unchanged
    weight_distance: float|None = None  # relative distance of the weights; 0: unchanged
    barrier: float|None = None  # of the old head's loss on the straight path from the untouched weights; 0: same basin
    pretext: float|None = None  # loss of the task on which the encoder was pre-trained without labels
    valid_source_acc: float|None = None  # on a held-out part of the source, to choose strengths by
    valid_source_probe: float|None = None  # the same with a new linear probe
    others: dict = field(default_factory=dict)  # other task -> probe accuracy
    layers: dict = field(default_factory=dict)  # layer -> cka, procrustes, drift, weight_distance
    answers: torch.Tensor|None = field(default=None, repr=False, compare=False)  # class probabilities of each source test video by the old head (N, classes)

    def flat(self)->dict[str, float]:
        "Every number that was measured under one name each: `cka`, `others.NAME`, `layers.NAME.cka`"
        rows = {k:v for k, v in vars(self).items() if k not in ('others', 'layers', 'answers') and v is not None}
        return rows | {f'others.{k}':v for k, v in self.others.items()} | {f'layers.{n}.{k}':v for n, d in self.layers.items() for k, v in d.items()}


class Retention:
    """Measures what an encoder kept: `Retention(model, train_dl, test_dl)(tuned_encoder)`.

    The reference is `model` as it is now; what it makes of the clips is computed once. Loaders must not shuffle or augment; they
    yield `(x, y)`, and `clips` may yield `x` alone. Measuring draws no random numbers and changes neither modes nor statistics."""

    def __init__(self,
        model:nn.Module, # Untouched `Sequential(encoder, head)` of the source task, or another that has an encoder, see `find_encoder`
        train_dl:Iterable|None=None, # Source clips to fit the probe and the neighbours on
        test_dl:Iterable|None=None, # Source clips to measure on
        *,
        valid_dl:Iterable|None=None, # Held-out source clips to choose strengths by
        clips:Iterable|None=None, # Clips for what needs no labels (CKA, Procrustes, drift); by default those of `test_dl`
        others:dict|None=None, # Other tasks to probe: name -> `(train loader, test loader)`
        pretext:Callable|None=None, # Function from an encoder to its loss on the task that it was pre-trained on; it is given a copy and fixed random numbers
        head:nn.Module|None=None, # From the encoder's output to logits of the source; by default the head of a `Sequential(encoder, head)`
        layers:str|Sequence[str]|None='blocks', # Submodules to compare one by one: names, 'blocks' for all of `block_names`, or none
        bn:bool=True, # Also measure the old head under batch norm statistics taken anew
        path:Sequence[float]=(.25, .5, .75), # Where to measure the loss between untouched (0) and tuned (1) weights; empty: no barrier
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
        cache:str|Path|None=None, # Folder that keeps what the untouched encoder computed, by content of weights and clips, for other processes
    ):
        if train_dl is None and test_dl is None and clips is None and not others and pretext is None:
            raise InputError('Retention has nothing to measure on: pass train_dl and test_dl of the source, clips without labels, others or pretext')
        if (train_dl is None) != (test_dl is None): raise InputError('Retention needs both train_dl, to fit the probe, and test_dl, to measure on')
        for name, dl in dict(train_dl=train_dl, test_dl=test_dl, valid_dl=valid_dl, clips=clips).items(): _must_not_shuffle(name, dl)
        for name, pair in (others or {}).items(): [_must_not_shuffle(f'others[{name!r}]', dl) for dl in pair]
        model = get_model(model)
        self.untouched, self.train_dl, self.test_dl, self.valid_dl = frozen_copy(find_encoder(model, encoder)), train_dl, test_dl, valid_dl
        self.clips, self.others, self.pretext, self.cache = clips if clips is not None else test_dl, others or {}, pretext, cache
        if head is None and encoder is None and isinstance(model, nn.Sequential): head = model[1]
        self.head = None if head is None else frozen_copy(head)
        self.layers = block_names(self.untouched) if layers == 'blocks' else list(layers or ())
        have = dict(self.untouched.named_modules())
        if missing := [n for n in self.layers if n not in have]: raise InputError(f'the encoder has no layer {missing[0]!r}; it has {", ".join(have)}')
        if bad := [a for a in path if not 0 < a < 1]: raise InputError(f'path must lie between 0 and 1, not at {bad[0]}')
        norms = [m for m in self.untouched.modules() if getattr(m, 'running_mean', None) is not None]
        self.bn, self.path = bn and bool(norms), tuple(path)
        self.weights, self._samples = {k:p.detach().clone() for k, p in self.untouched.named_parameters()}, {}
        with preserve_rng():
            self._readings = self._read_all(self.untouched, _Memo(cache, self.untouched, self.layers) if cache else encode)

    @cached_property
    def reference(self)->RetentionScores:
        "The untouched encoder's scores"
        with preserve_rng(): return self._score(self.untouched, self._readings)

    def __call__(self, encoder:nn.Module)->RetentionScores:
        """Scores of `encoder` (not of the whole model), which has the architecture of the untouched one; it may be in the middle of a fit.
        Under adapters, which rename weights, what compares weights is nan or missing. Raises `FloatingPointError` for features that are not finite"""
        with preserve_rng():
            copy = self._copy(encoder)
            return self._score(copy, self._read_all(copy))

    def _copy(self, encoder):
        encoder = get_model(encoder)
        if next(iter(self.weights)) not in (names := dict(encoder.named_parameters())) and f'0.{next(iter(self.weights))}' in names:
            raise InputError('Retention measures encoders: pass learn.model[0], not the whole model')
        return frozen_copy(encoder)

    def change(self, encoder:nn.Module)->dict[str, float]:
        "Scores of `encoder` minus those of the untouched one, by `RetentionScores.flat`: negative accuracies are forgetting, exactly 0 is untouched"
        ref = self.reference.flat()
        return {k:v - ref[k] for k, v in self(encoder).flat().items()}

    def held_out(self, encoder:nn.Module)->RetentionScores:
        "Only what a choice of strengths may see: the scores on `valid_dl`"
        if self.valid_dl is None: raise InputError('Retention was given no valid_dl, so there is nothing that a choice may see')
        with preserve_rng():
            copy = self._copy(encoder)
            train, valid = read_clips(copy, self.train_dl), read_clips(copy, self.valid_dl, self.head)
            return RetentionScores(**self._held_out(fit_probe(train.x, train.y), valid))

    def _read_all(self, encoder, encode=encode):
        def read(dl, head=None, layers=()): return read_clips(encoder, dl, head, layers, encode)
        r = dict(others={n:(read(a), read(b)) for n, (a, b) in self.others.items()})
        if self.test_dl is not None: r |= dict(train=read(self.train_dl), test=read(self.test_dl, self.head, self.layers if self.clips is self.test_dl else ()))
        if self.valid_dl is not None: r['valid'] = read(self.valid_dl, self.head)
        if self.clips is not None: r['clips'] = r['test'] if self.clips is self.test_dl else read(self.clips, None, self.layers)
        return r

    def _held_out(self, probe, valid):
        return dict(valid_source_probe=float(probe.score(valid.x.numpy(), valid.y.numpy())), **(dict(valid_source_acc=valid.accuracy()) if self.head is not None else {}))

    def _score(self, encoder, r):
        kept = dict(others={n:linear_probe(a.x, a.y, b.x, b.y) for n, (a, b) in r['others'].items()})
        if self.others: kept['other_probe'] = float(np.mean(list(kept['others'].values())))
        if self.test_dl is not None:
            train, test = r['train'], r['test']
            probe = fit_probe(train.x, train.y)
            kept |= dict(source_probe=float(probe.score(test.x.numpy(), test.y.numpy())), source_knn=knn(train.x, train.y, test.x, test.y))
            kept |= {f'r{k}':v for k, v in retrieval(train.x, train.y, test.x, test.y).items()}
            if 'valid' in r: kept |= self._held_out(probe, r['valid'])
            if self.head is not None:
                kept |= dict(source_acc=test.accuracy(), answers=test.logits.softmax(1))
                if self.bn or self.path: kept |= self._along(encoder)
        if self.clips is not None: kept |= self.compare(r['clips'].x, r['clips'].layers, encoder)
        kept['weight_distance'] = weight_distance(dict(encoder.named_parameters()), self.weights)
        if self.pretext is not None:
            _seed()
            kept['pretext'] = float(self.pretext(frozen_copy(encoder)))
        return RetentionScores(**kept)

    def compare(self, x:torch.Tensor, layers:dict, encoder:nn.Module, rows:slice|torch.Tensor=slice(None))->dict:
        "Fields of `RetentionScores` that need no labels: of features `x` and what `layers` put out for the clips number `rows`"
        ref, weights = self._readings['clips'], dict(encoder.named_parameters())
        def pair(a, b): return dict(cka=linear_cka(a, b), procrustes=procrustes(a, b), drift=drift(a, b))
        each = {n:pair(layers[n], ref.layers[n][rows]) for n in self.layers}
        for n, d in each.items():
            mine = {k:p for k, p in self.weights.items() if k.startswith(f'{n}.')}
            if mine: d['weight_distance'] = weight_distance(weights, mine)
        return pair(x, ref.x[rows]) | dict(layers=each)

    def sample(self,
        n:int, # How many
        size:int|None=None, # Bytes that they may take; then each of several clips of a video counts, too. At least two videos
    )->tuple[torch.Tensor, torch.Tensor]: # Their numbers, and the clips as a loader gives them; kept in memory
        "Clips spread evenly over those that need no labels"
        total, at, clips, asked = len(self._readings['clips'].x), 0, [], (n, size)
        def inputs(): return (b[0] if isinstance(b, (tuple, list)) else b for b in self.clips)
        if asked in self._samples: return self._samples[asked]
        with preserve_rng():
            if size is not None:
                first = next(inputs())[0]
                n = min(max(2, n//(len(first) if first.ndim == 5 else 1)), max(2, size//(first.numel()*first.element_size())))
            rows = torch.linspace(0, total - 1, min(n, total)).round().long().unique()
            for x in inputs():
                clips.append(x.as_subclass(torch.Tensor)[rows[(rows >= at) & (rows < at + len(x))].to(x.device) - at].clone())
                at += len(x)
        self._samples[asked] = found = rows, torch.cat(clips)
        return found

    def _along(self, encoder):
        "With statistics taken anew: the old head's accuracy, and the barrier of its loss on the path from the untouched weights"
        start, point, at = self.untouched.state_dict(), frozen_copy(encoder), [*self.path, 1.] if self.path else [1.]
        if start.keys() != point.state_dict().keys(): return {}  # adapters: there is no straight path
        reads = []
        for a in at:
            point.load_state_dict(wise_ft(encoder, start, a))
            reads.append(self._renewed(point))
        found = dict(source_acc_bn=reads[-1].accuracy()) if self.bn else {}
        return found | (dict(barrier=loss_barrier([self._start_loss, *(r.loss() for r in reads)], [0., *at])) if self.path else {})

    @cached_property
    def _start_loss(self): return self._renewed(frozen_copy(self.untouched)).loss()

    def _renewed(self, encoder):
        "The test clips read after `encoder` was given statistics of some sixteen batches spread over the train clips"
        step = max(1, len(self.train_dl)//16)
        # several clips of a video are as many inputs; a last batch of one clip may have no spread to tell
        batches = (x.flatten(0, 1) if x.ndim == 6 else x for i, (x, *_) in enumerate(self.train_dl) if i % step == 0)
        reestimate_bn(encoder, ((x, None) for i, x in enumerate(batches) if i == 0 or len(x) > 1))
        return read_clips(encoder, self.test_dl, self.head)
