"""Situations that users bring, each as a pair of trainings that must end with the same weights.

A `Situation` gives two nets (and targets and losses) that compute the same function in two ways: the ordinary way, and
the way of the situation. A strategy that is right for both ends with the same weights in both."""
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import ItemGetter
from fastai.losses import CrossEntropyLossFlat
from torch import nn
from torch.utils.checkpoint import checkpoint


class Encoder(nn.Module):
    "A convolution, batch norm and a linear layer: images `(B, 1, 6, 6)` to features `(B, 6)`"
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.out = nn.Linear(4*36, 6)

    def features(self, x): return self.out(self.bn(self.conv(x)).relu().flatten(1))
    def forward(self, x): return self.features(x)


class Model(nn.Module):
    "An encoder and a head"
    def __init__(self, encoder, width=6, classes=3):
        super().__init__()
        self.encoder, self.top = encoder, nn.Linear(width, classes)

    def forward(self, x):
        f = self.encoder(x)
        if isinstance(f, dict): f = f['last_hidden_state']
        if isinstance(f, tuple): f = f[0]
        return self.top(f)


def variant(**methods):
    "A subclass of `Encoder` with other methods"
    return type('Variant', (Encoder,), methods)


class Tokens(nn.Module):
    "Tokens `(B, 36, 4)` from pixels, by linear layers"
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.mlp = nn.Linear(1, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def tokens(self, x): return self.mlp(self.norm(self.embed(x.flatten(2).transpose(1, 2))).relu())
    def forward(self, x): return self.tokens(x)


class MeanTokens(Tokens):
    def forward(self, x): return self.tokens(x).mean(1)


class GridTokens(Tokens):
    "The same with channels last: `(B, 6, 6, 4)`"
    def forward(self, x): return self.tokens(x).unflatten(1, (6, 6))


class Pooling(Model):
    "A model that averages over what its encoder returns, for `(B, ..., C)`"
    def forward(self, x):
        f = self.encoder(x)
        return self.top(f.flatten(1, -2).mean(1) if f.ndim > 2 else f)


class OwnNorm(nn.Module):
    "Batch norm, written by a user"
    def __init__(self, n):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        self.register_buffer('running_mean', torch.zeros(n))
        self.register_buffer('running_var', torch.ones(n))
        self.register_buffer('num_batches_tracked', torch.tensor(0))

    def forward(self, x):
        if self.training: self.num_batches_tracked += 1
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


def own_norm():
    e = Encoder()
    e.bn = OwnNorm(4)
    return e


def with_lock():
    e = Encoder()
    e.lock = threading.Lock()
    return e


class NormedConv(nn.Module):
    "A convolution with weight normalisation, without hooks"
    def __init__(self, conv):
        super().__init__()
        self.bias = nn.Parameter(conv.bias.detach().clone())
        norm = conv.weight.detach().flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        self.weight_g, self.weight_v = nn.Parameter(norm), nn.Parameter(conv.weight.detach().clone())

    def forward(self, x):
        v = self.weight_v
        w = v*(self.weight_g/v.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
        return nn.functional.conv2d(x, w, self.bias, padding=1)


def normed(by_hand):
    e = Encoder()
    if by_hand: e.conv = NormedConv(e.conv)
    else: nn.utils.weight_norm(e.conv)
    return e


class Twice(nn.Module):
    "One layer that is called twice, or (`tied`) two layers with one weight"
    def __init__(self, tied):
        super().__init__()
        self.first = nn.Linear(6, 6)
        second = nn.Linear(6, 6)
        second.weight, second.bias = self.first.weight, self.first.bias
        self.second = second if tied else self.first

    def forward(self, x): return self.second(self.first(x).relu())


def with_twice(tied):
    e = variant(forward=lambda self, x: self.twice(self.features(x)))()
    e.twice = Twice(tied)
    return e


def stored(self, x):
    self.seen = self.conv(x)  # as models store attention maps
    return self.features(x)


def in_place(self, x): return self.features(x.sub_(.5))
def out_of_place(self, x): return self.features(x - .5)


def checkpointed(reentrant):
    def forward(self, x):
        if reentrant: x = x.requires_grad_()
        return checkpoint(self.features, x, use_reentrant=reentrant)
    return forward


class OneLogit(Model):
    "One logit, `(B, 1)`"
    def __init__(self, encoder): super().__init__(encoder, classes=1)


class TwoLogits(OneLogit):
    "The same as two: 0 and the logit"
    def forward(self, x):
        logit = super().forward(x)
        return torch.cat([torch.zeros_like(logit), logit], 1)


def bce(logit, y): return nn.functional.binary_cross_entropy_with_logits(logit.flatten(), y.flatten().float())
def soft_ce(logits, y): return nn.functional.cross_entropy(logits, y)


@dataclass
class Situation:
    "Two ways to do the same"
    net: Callable  # the ordinary net
    other: Callable  # that of the situation
    target: Callable = lambda y: y  # from class numbers to targets, in the situation
    loss: Callable|None = None  # the loss of the situation
    classes: int = 3


def same_net(): return Model(Encoder())


SITUATIONS = {
    'a tuple': Situation(same_net, lambda: Model(variant(forward=lambda s, x: (s.features(x), None))())),
    'a dict': Situation(same_net, lambda: Model(variant(forward=lambda s, x: dict(last_hidden_state=s.features(x)))())),
    'tokens': Situation(lambda: Pooling(MeanTokens(), 4), lambda: Pooling(Tokens(), 4)),
    'channels last': Situation(lambda: Pooling(MeanTokens(), 4), lambda: Pooling(GridTokens(), 4)),
    'its own norm': Situation(same_net, lambda: Model(own_norm())),
    'a lock': Situation(same_net, lambda: Model(with_lock())),
    'stored activations': Situation(same_net, lambda: Model(variant(forward=stored)())),
    'weight norm': Situation(lambda: Model(normed(True)), lambda: Model(normed(False))),
    'tied weights': Situation(lambda: Model(with_twice(False)), lambda: Model(with_twice(True))),
    'input changed in place': Situation(
        lambda: Model(variant(forward=out_of_place)()), lambda: Model(variant(forward=in_place)())),
    'checkpointing': Situation(same_net, lambda: Model(variant(forward=checkpointed(False))())),
    'reentrant checkpointing': Situation(same_net, lambda: Model(variant(forward=checkpointed(True))())),
    'labels (B, 1)': Situation(same_net, same_net, target=lambda y: y[None], loss=CrossEntropyLossFlat()),
    'one-hot targets': Situation(
        same_net, same_net, target=lambda y: nn.functional.one_hot(y, 3).float(), loss=soft_ce),
    'one logit': Situation(
        lambda: TwoLogits(Encoder()), lambda: OneLogit(Encoder()), target=lambda y: y.float(), loss=bce, classes=2),
}


def loaders(classes=3, target=lambda y: y, n=24, bs=8):
    "Loaders of fixed images and targets, in a fixed order"
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(n, 1, 6, 6, generator=g), torch.randint(0, classes, (n,), generator=g)
    items = [(image, target(label)) for image, label in zip(x, y)]
    sets = Datasets(items, tfms=[[ItemGetter(0)], [ItemGetter(1)]], splits=[range(n), range(8)])
    return DataLoaders(TfmdDL(sets.train, bs=bs, num_workers=0), TfmdDL(sets.valid, bs=bs, num_workers=0), device='cpu')
