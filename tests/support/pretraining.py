"What tests of pre-training share: small encoders, a silent learner, random clips, and reading frames back."
import math
import random
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.optimizer import SGD
from fastai.torch_core import set_seed
from torch import nn

from sdfast.data.video import VideoFile
from sdfast.models.encoders import create_encoder


def tiny(seed=0):
    "A small video encoder with 24 features"
    torch.manual_seed(seed)
    return create_encoder('tiny', width=2)


class Pixels(nn.Module):
    "An encoder whose features differ much from clip to clip, unlike those of an untrained net"
    num_features = 24

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4*3*16*16, 24)

    def forward(self, x): return 3*self.lin(x.flatten(1))


def random_clips(b=4, k=2, t=8, seed=0):
    return torch.randn(b, k, t, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def waves(*shape, scale=1.):
    "Numbers that look random, the same on all machines: those that reference codes were run with"
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale*torch.sin(12.9898*i + 78.233*len(shape))).float().view(shape)


def fill(module, scale=.3):
    "Set all parameters of a module to `waves`"
    with torch.no_grad():
        for p in module.parameters(): p.copy_(waves(*p.shape, scale=scale))
    return module


class OneConv(nn.Module):
    "An encoder of one convolution, `conv`, whose features are the means of its maps"

    def __init__(self, channels, kernel, stride):
        super().__init__()
        self.conv, self.num_features = nn.Conv3d(3, channels, kernel, stride), channels

    def forward(self, x): return self.conv(x.transpose(1, 2)).mean((2, 3, 4))


def quiet(dls, model, cbs, lr=.05, **kwargs):
    "A silent learner with SGD"
    learn = Learner(dls, model, cbs=cbs, lr=lr, **dict(opt_func=partial(SGD, mom=.9)) | kwargs)
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == 'ProgressCallback'])
    learn.logger = lambda *a: None
    return learn


class Seed(Callback):
    "Makes each epoch a function of its number"
    order = 100
    def before_train(self):
        set_seed(self.learn.epoch)
        self.learn.dl.rng = random.Random(self.learn.epoch)


def frames(x):
    "Numbers of the frames in clips of `counted`, in pixels"
    return (x.float().mean((-3, -2, -1))/6).round().long()


def read_frames(dl, x):
    "Numbers of the frames in a batch of a loader of `counted`"
    return frames(dl.after_batch.decode((x,))[0])


def place_video(monkeypatch, n, side, wide=0):
    "Every video becomes one whose red is the frame's number, green the row and blue the column of a pixel"
    t, r, c = torch.meshgrid(torch.arange(n), torch.arange(side), torch.arange(side + wide), indexing='ij')
    v = torch.stack([t, r, c], 1).to(torch.uint8)
    monkeypatch.setattr('sdfast.data.cache.decode_whole', lambda path, size: v)
    monkeypatch.setattr(VideoFile, 'scaled', lambda self, size: (side + wide, side))


def as_named(monkeypatch, i):
    "Draw clips outside training as for the `i`-th name of a video"
    monkeypatch.setattr('sdfast.pretext.clips.zlib.crc32', lambda name: i)


def nll(logits, labels):
    "Cross-entropy, written out"
    def one(row, label):
        e = np.exp(np.asarray(row, float) - max(row))
        return -math.log(e[label]/e.sum())
    return np.mean([one(row, label) for row, label in zip(np.asarray(logits, float), labels)])


def needs_pytorchvideo():
    return pytest.importorskip('pytorchvideo', reason="SlowFast, X3D need pytorchvideo: pip install -e '.[encoders]'")


def needs_opencv(): return pytest.importorskip('cv2', reason="optical flow needs OpenCV: pip install -e '.[pretext]'")
