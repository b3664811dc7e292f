"A tiny net, loaders of random images, a silent learner, small studies."
import random
from functools import partial

import numpy as np
import pytest
import torch
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import ItemGetter
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from torch import nn

from sdfast.runtime.progress import Progress
from sdfast.strategies import STRATEGIES, Importance, channel_attention, empirical_fisher, mas_importance
from sdfast.study import compare_chains as chains_module
from sdfast.study import loaders as loaders_module
from sdfast.study import source as source_module
from sdfast.study.config import Run


def numbered(n, size=32):
    "Grey frames whose level is six times their number"
    return np.stack([np.full((size, size), 6*i, np.uint8) for i in range(n)])


class Net(nn.Module):
    "A small encoder with batch norm (and dropout, if asked)"
    def __init__(self, dropout=0.):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(4*36, 6)

    def forward(self, x): return self.out(self.drop(self.bn(self.conv(x)).relu()).flatten(1))


def data(n=48, bs=8, seed=0, valid=16):
    "Loaders of fixed random images in a fixed order"
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n + valid, 1, 6, 6, generator=g), torch.randint(0, 3, (n + valid,), generator=g)
    sets = Datasets(list(zip(x, y)), tfms=[[ItemGetter(0)], [ItemGetter(1)]], splits=[range(n), range(n, n + valid)])
    return DataLoaders(TfmdDL(sets.train, bs=bs, num_workers=0), TfmdDL(sets.valid, bs=bs, num_workers=0), device='cpu')


def model(seed=0, dropout=0.):
    torch.manual_seed(seed)
    return nn.Sequential(Net(dropout), nn.Linear(6, 3))


def learner(cbs=(), dls=None, net=None, lr=.1, **kwargs):
    "A silent learner with SGD, momentum .9, on the loaders above"
    torch.manual_seed(1)
    random.seed(1)
    kwargs = dict(opt_func=partial(SGD, mom=.9)) | kwargs
    learn = Learner(dls or data(), net or model(), loss_func=CrossEntropyLossFlat(), cbs=cbs, lr=lr, **kwargs)
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == 'ProgressCallback'])
    learn.logger = lambda *a: None
    return learn


def state(module): return {k:v.clone() for k, v in module.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Source:
    "What a study knows of the model before fine-tuning"
    def __init__(self, net):
        torch.manual_seed(7)
        self.net, self.head, self.batches = net, nn.Linear(6, 3), data(seed=5).valid
        self.whole = nn.Sequential(net[0], self.head)

    @property
    def fisher(self): return empirical_fisher(self.whole, self.batches)
    @property
    def mas(self): return mas_importance(self.whole, self.batches)
    @property
    def si(self):
        parameters = {n:p.detach() for n, p in self.net[0].named_parameters()}
        return Importance({n:torch.full_like(p, .5) for n, p in parameters.items()},
                          {n:p.clone() for n, p in parameters.items()}, 1)
    @property
    def attention(self): return channel_attention(self.whole, list(self.batches))


def make(name, lam, net):
    "A strategy of the registry on `net`; the random state stays as it is, for a fair comparison"
    if name == 'lora': pytest.importorskip('peft', reason="LoRA needs PEFT: pip install -e '.[lora]'")
    if name in ('pskd', 'flow'): lam = min(lam, .8)  # a share
    with torch.random.fork_rng(): return STRATEGIES[name].callbacks(lam, Source(net))


def small_run(clips, **fields):
    "A `Run` on the videos of `clips`, source and target, that takes a second"
    spec = f'folder:{clips},group=(p\\d)_'
    small = dict(task=spec, source=spec, data='x', frames=4, size=24, bs=4, epochs=2, source_epochs=2, source_bs=4,
                 model_args='width=8')
    return Run(**small | fields)


def timeless(row):
    "A row without how long it took, or several"
    if isinstance(row, list): return [timeless(r) for r in row]
    return {k:v for k, v in row.items() if k != 'seconds'}


def forget():
    "Drop what this process has loaded, as if it had just started"
    source_module._sources.clear()
    chains_module._shared.cache_clear()
    loaders_module.load_data.cache_clear()


class Log(Progress):
    "A progress listener that remembers what it hears, and writes results to a file for other processes"
    def __init__(self, file=None): self.lines, self.rows, self.planned, self.file = [], [], 0, file
    def plan(self, runs): self.planned = len(runs)
    def say(self, text): self.lines.append(text)

    def done(self, row, skipped=False):
        self.rows.append((row, skipped))
        if self.file:
            with open(self.file, 'a') as f: f.write(f'{row["key"]} {skipped}\n')
