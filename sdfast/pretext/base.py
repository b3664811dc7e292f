"""What every way of pre-training without labels shares: clips and labels made from the videos of any `DataLoaders`, heads that train
beside the encoder and leave with the callback, columns of their own, the loss on held-out clips, and checkpoints.

A new method is a subclass of `Pretext` with `sample`, `heads`, `forward`, `loss` and `scores`."""
import json
import random
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterable
from copy import copy
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.data.block import DataBlock, TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader, SkipItemException
from fastai.data.transforms import IndexSplitter
from fastai.distributed import DistributedDL
from fastai.torch_core import get_model, norm_bias_params
from fastai.vision.core import imagenet_stats
from fastcore.basics import init_args
from fastcore.foundation import L
from fasttransform import Pipeline, Transform
from numpy.typing import ArrayLike
from safetensors.torch import save
from torch import nn

from ..data.block import MultiClip, NormalizeClips, VideoBlock
from ..data.cache import cached_frames
from ..data.clips import SampleClips, TensorVideo
from ..data.video import VideoError, VideoFile
from ..errors import InputError
from ..models.features import eval_mode
from ..models.surgery import find_encoder, frozen_copy
from ..runtime import store
from ..runtime.resume import Stateful
from ..strategies.columns import Columns

__all__ = ['PretextClips', 'PretextNet', 'Pretext', 'video_dls']



class PretextClips(Transform):
    """In place of `SampleClips` on whole items `(video, ...)`: the clips and labels that `method.item` makes, `(clips, label, ...)`.

    In training clips, crops and labels are drawn; otherwise they are a function of the video's name alone, and crops are central.
    Frames, stride, size and cache are those of the `SampleClips`; the spatial augmentation is the method's."""
    order = SampleClips.order

    def __init__(self,
        method:'Pretext', # A `Pretext`; its `item` makes clips and labels
        base:SampleClips, # Clips that the loader made until now: frames, stride, size and cache are its
    ):
        self.method, self.frames, self.stride, self.cache = method, base.frames, base.stride, base.cache
        self.crop = copy(base)
        self.crop.area, self.crop.aspect, self.crop.flip = method.area, method.aspect, method.flip
        self.side = None if method.area or base.size is None else round(base.size*method.zoom)

    def __call__(self, item:tuple, split_idx:int|None=None, **kwargs)->tuple:
        video, self.crop.train = item[0], not split_idx
        rnd = random if self.crop.train else random.Random(zlib.crc32('/'.join(Path(video).parts[-2:]).encode()))
        try: return self.method.item(self, video, rnd)
        except VideoError as e:
            warnings.warn(f'skipped {e}')
            raise SkipItemException(str(e)) from None

    def whole(self, video:VideoFile, idx:ArrayLike)->torch.Tensor:
        "Frames `idx` before any crop, `(len(idx), C, H, W)`, their short side `zoom` times the size"
        whole = cached_frames(video, self.side, self.cache)
        return video.read(idx, self.side) if whole is None else whole[np.asarray(idx)]

    def read(self,
        video:VideoFile,
        idx:ArrayLike, # Frame numbers `(K, T)`
    )->TensorVideo: # uint8 `(K, T, C, size, size)`
        "Decode clips; in training each is cropped, and mirrored if the method wants it, on its own"
        idx = np.asarray(idx)
        clips = self.whole(video, idx.ravel()).unflatten(0, idx.shape)
        if self.crop.size is not None: clips = torch.stack([self.crop.crop_frames(c) for c in clips])
        if self.crop.train and self.crop.flip: clips = torch.stack([c.flip(-1) if random.random() < .5 else c for c in clips])
        return TensorVideo(clips)


class PretextNet(nn.Module):
    "Encoder and heads as one model while a fit runs, so that optimizer, DDP, precision and checkpoints treat them alike"

    def __init__(self,
        encoder:nn.Module, # That is pre-trained
        heads:nn.Module, # That the method adds
        method:'Pretext', # A `Pretext`; its `forward` is the net's
    ):
        super().__init__()
        self.encoder, self.heads, self._method = encoder, heads, weakref.ref(method)  # copies of the net share the method

    def forward(self, *x)->torch.Tensor|tuple: return self._method().forward(self.encoder, self.heads, *x)


class _Leave(Callback):
    "Gives the user's model back when all other callbacks have ended the fit"
    order = 1000
    def __init__(self, method): self.method = method
    def after_fit(self): self.method.finish()


class Pretext(Stateful, Columns, Callback):
    """Pre-train an encoder without labels: `Learner(dls, model, cbs=Pace()).fit(10)` on `dls` of any `DataBlock` with a `VideoBlock`.

    `model` is an encoder, or has one by `find_encoder`'s convention; a head that it has is left alone. While a fit, `validate` or
    `get_preds` runs, the learner's model is a `PretextNet` of encoder and heads, and its loss is the method's; afterwards the model is
    the user's own again, its encoder trained. Heads stay with the callback and go on in a second fit; `Resume` keeps them with the
    model. Labels of `dls` are not used.

    Subclasses define the methods below; those take what they need as arguments and must not look at `self.learn`."""
    order = -5  # before any callback asks for the model, and before `DistributedTrainer` (11) wraps model and loader; the model is on its device by then
    area, aspect, flip, zoom = None, SampleClips.aspect, False, 128/112  # random-area crop, or a square of the frame whose short side is zoom*size; see `SampleClips`
    batch_tfms = ()  # augmentation of batches `(B, K, T, C, H, W)` in [0, 1], before they are normalised
    score_names = ('pretext_acc',)
    inputs = 1  # parts of an item, from the first on, that go to `forward`; the others go to `loss`
    pretext_net, protected, _users, _nested, _sums, _made = None, None, None, 0, None, None
    _stateattrs = ('pretext_net', '_users', '_sums', '_made', '_columns')  # not exported

    # what a method is
    def sample(self, n:int, frames:int, stride:int, rnd:Random)->tuple:
        "Of a video of `n` frames: frame numbers `(K, frames)` and a label. `rnd` draws; raises `VideoError` if the video is too short"
        raise NotImplementedError(f'{type(self).__name__} must define `sample`')

    def item(self, clips:PretextClips, video:VideoFile, rnd:Random)->tuple:
        "Clips `(K, T, C, H, W)` and labels of a video, by default those of `sample`; for more than frame numbers override it"
        idx, *y = self.sample(video.index.n, clips.frames, clips.stride, rnd)
        return (clips.read(video, idx), *y)

    def heads(self, n:int)->nn.Module: raise NotImplementedError(f'{type(self).__name__} must define `heads`')  # of `n` features
    def forward(self, encoder:nn.Module, heads:nn.Module, x:torch.Tensor, *more)->torch.Tensor|tuple: raise NotImplementedError(f'{type(self).__name__} must define `forward`')
    def loss(self, pred:torch.Tensor|tuple, *y)->torch.Tensor: raise NotImplementedError(f'{type(self).__name__} must define `loss`')
    @property
    def chances(self)->dict: return {}  # name of `score_names` -> what guessing scores
    def scores(self, pred:torch.Tensor|tuple, *y)->dict: return {}  # name of `score_names` -> value of each video `(B,)`
    def prepare(self, train_dl:DataLoader)->None: "A fit is about to begin, heads may not be made yet: look at its training videos, `train_dl.items`"

    # what they share
    def build(self,
        encoder:nn.Module, # From clips `(B, T, C, H, W)` to features `(B, F)`; has `num_features`, or `x` is given
        x:torch.Tensor|None=None, # A clip `(1, T, C, H, W)` to count the features with
    )->PretextNet:
        "The net that trains, made once for an encoder; heads are drawn from the random state as it is"
        if self.pretext_net is not None and self.pretext_net.encoder is encoder: return self.pretext_net
        n = getattr(encoder, 'num_features', None)
        if n is None:
            if x is None: raise InputError(f'{type(encoder).__name__} has no num_features: pass a clip to count its features with')
            with eval_mode(encoder), torch.no_grad(): f = encoder(x)
            if not torch.is_tensor(f) or f.ndim != 2: raise InputError(f'{type(self).__name__} needs an encoder that returns features (B, F), not {tuple(f.shape) if torch.is_tensor(f) else type(f).__name__}')
            n = f.shape[1]
        made = self.make_heads(encoder, n) if self.pretext_net is None else self.pretext_net.heads
        self.pretext_net = PretextNet(encoder, made.to(next(encoder.parameters()).device), self)
        return self.pretext_net

    def make_heads(self, encoder:nn.Module, n:int)->nn.Module: return self.heads(n)

    def _encoder(self, model):
        model = get_model(model)
        if self.protected is not None: return find_encoder(model, self.protected)
        if hasattr(model, 'num_features') and not isinstance(model, nn.Sequential): return model
        try: return find_encoder(model)
        except ValueError: return model

    def loader(self, dl:DataLoader)->DataLoader:
        "`dl` with the method's clips and labels in place of its own; made once"
        if isinstance(dl, DistributedDL): dl = dl.dl
        if self._made is None: self._made = {}
        if id(dl) in self._made: return self._made[id(dl)][1]
        items = list(dl.after_item.fs)
        base = next((f for f in items if isinstance(f, SampleClips)), None)
        if base is None: raise InputError(f'{type(self).__name__} makes its clips in place of SampleClips, which this loader does not have; build it with Task.dls, video_dls or a VideoBlock')
        mine = Pipeline([PretextClips(self, base), *(f for f in items if f is not base)])
        theirs = [g for f in dl.after_batch.fs for g in (f.parts if self.batch_tfms and isinstance(f, NormalizeClips) else [f])]
        batch = Pipeline([*self.batch_tfms, *theirs])
        if not hasattr(dl, '_n_inp'): dl._n_inp, dl._types = 1, tuple  # else `new` decodes a video to find out
        made = dl.new(after_item=mine, after_batch=batch)
        self._made[id(dl)] = dl, made  # `dl` is kept, so that its id is not taken by another
        return made

    def before_fit(self):
        locked = self.learn.lock.locked()
        if self._users is not None and locked and get_model(self.learn.model) is self.pretext_net:
            self._nested += 1  # `validate` inside a fit
            return
        if any(isinstance(cb, MultiClip) for cb in self.learn.cbs): raise InputError(f'{type(self).__name__} has several clips of a video that belong together: remove the MultiClip callback')
        if self._users is None: self._users = self.learn.model, self.learn.loss_func
        self._nested = 0
        if not locked: self.prepare(self.dls.train)
        encoder = self._encoder(self._users[0])
        clip = None if hasattr(encoder, 'num_features') else self._one_clip(next(encoder.parameters()).device)
        self.learn.model, self.learn.loss_func = self.build(encoder, clip), self.loss
        self.learn.add_cb(_Leave(self))
        if not locked:
            if self.learn.opt is not None: self._join(self.learn.opt)
            self.show({f'{part}{n}':lambda part=part, n=n: self.score(n, bool(part)) for part in ('train_', '') for n in self.score_names})

    def _one_clip(self, device):
        base = next((f for f in self.dls.train.after_item.fs if isinstance(f, SampleClips)), None)
        return None if base is None else torch.zeros(1, base.frames, 3, base.size or 112, base.size or 112, device=device)

    def _join(self, opt):
        "The heads' parameters into the optimizer's last group, where `encoder_head_split` has the head"
        have, lists = {id(p) for p, *_ in opt.all_params()}, [list(pg) for pg in opt.param_lists]
        new = [p for p in self.pretext_net.heads.parameters() if p.requires_grad and id(p) not in have]
        if not new: return
        lists[-1] += new
        opt.param_lists = L(lists)
        if not self.learn.wd_bn_bias:
            for p in norm_bias_params(self.pretext_net.heads, True): opt.state[p]['do_wd'] = False
        if self.learn.train_bn:
            for p in norm_bias_params(self.pretext_net.heads, False): opt.state[p]['force_train'] = True

    def before_train(self): self._begin(True)
    def before_validate(self): self._begin(False)

    def _begin(self, train):
        self.learn.dl = self.loader(self.learn.dl)
        if self._sums is None: self._sums = {}
        self._sums[train] = {}, 0

    def before_batch(self):
        parts = *self.learn.xb, *self.learn.yb
        self.learn.xb, self.learn.yb = parts[:self.inputs], parts[self.inputs:]

    def after_loss(self):
        sums, n = self._sums[self.learn.training]
        with torch.no_grad(): found = self.scores(self.learn.pred, *self.learn.yb)
        for k, v in found.items(): sums[k] = sums.get(k, 0.) + v.double().sum()
        self._sums[self.learn.training] = sums, n + len(self.learn.yb[0])

    def after_train(self):
        if not self._sums[True][1] and len(self.learn.dl): raise InputError(f'{type(self).__name__}: no video could be used in this epoch; see the warnings for why each was skipped')

    def score(self,
        name:str, # One of `score_names`
        train:bool=False, # Of the last epoch's training batches, as the model was then, or of the validation part
    )->float:
        "Mean of a score over videos, and over all processes"
        sums, n = (self._sums or {}).get(train, ({}, 0))
        total = torch.stack([torch.as_tensor(sums.get(name, 0.), dtype=torch.double).cpu(), torch.tensor(n, dtype=torch.double)])
        if dist.is_available() and dist.is_initialized():
            total = total.to(next(self.pretext_net.parameters()).device)
            dist.all_reduce(total)
        return (total[0]/total[1]).item() if total[1] and name in sums else float('nan')

    def state_dict(self)->dict: return dict(loaders=[self.loader(dl).rng.getstate() for dl in self.learn.dls.loaders])  # weights are in the model while a fit runs

    def load_state_dict(self, state:dict)->None:
        for dl, rng in zip(self.learn.dls.loaders, state['loaders']): self.loader(dl).rng.setstate(rng)

    def finish(self)->None:
        if self._nested: self._nested -= 1
        else: self.leave()

    def leave(self)->None:
        super().leave()
        for cb in [cb for cb in self.learn.cbs if isinstance(cb, _Leave) and cb.method is self]: self.learn.remove_cb(cb)
        if self._users is not None: (self.learn.model, self.learn.loss_func), self._users = self._users, None

    def after_fit(self): "Not `Columns`': what is left is undone by `finish`, when all other callbacks are done"

    def held_out(self,
        dl:DataLoader, # Held-out videos, such as `dls.valid` or `unlabelled(dls, paths)`
    )->Callable: # From an encoder to the mean loss over the videos
        "The loss with the heads as they are now, in eval mode, a label-free measure of forgetting: `Retention(..., pretext=method.held_out(dl))`"
        if self.pretext_net is None: raise InputError(f'{type(self).__name__} has no heads yet: fit, or read them from a checkpoint')
        if not getattr(dl.dataset, 'split_idx', 1): raise InputError('held_out needs a loader that neither shuffles nor augments, such as dls.valid or unlabelled(dls, paths)')
        heads, dl, device = frozen_copy(self.pretext_net.heads), self.loader(dl), next(self.pretext_net.parameters()).device

        def loss(encoder:nn.Module)->float:
            net, total, n = PretextNet(encoder, heads, self), 0., 0
            with eval_mode(net), torch.no_grad():
                for b in dl:
                    b = [t.as_subclass(torch.Tensor).to(device) for t in b]
                    total += self.loss(net(*b[:self.inputs]), *b[self.inputs:]).item()*len(b[0])
                    n += len(b[0])
            if not n: raise InputError(f'{type(self).__name__}: no held-out video could be used; see the warnings for why each was skipped')
            return total/n
        return loss

    @property
    def config(self)->dict:
        "The arguments that this method was made with"
        return init_args(self)

    def save(self, path:str|Path)->None:
        "Encoder and heads as safetensors, whole or not at all; `load_encoder` reads the encoder of it, `read_checkpoint` both"
        if self.pretext_net is None: raise InputError(f'{type(self).__name__} has nothing to save yet: fit first')
        state = {k:v.detach().cpu().contiguous() for k, v in self.pretext_net.state_dict().items()}
        store.write(path, save(state, dict(method=type(self).__name__, config=json.dumps(self.config))))


class _NoLabels(Transform):
    "Lets `Learner` be made of videos alone: it asks the data for a loss"
    loss_func = nn.Identity()


def video_dls(
    train:Iterable, # Paths of video files
    valid:Iterable=(), # Held-out ones
    frames:int=8, # Frames in a clip
    stride:int=1, # Frames between two of the clip
    size:int=112, # Side of the square in pixels
    bs:int=32, # Batch size
    workers:int=0, # Loading processes
    cache:bool=False, # Keep decoded videos in memory
    stats:tuple|None=None, # Mean and standard deviation of each channel, ImageNet's by default
    **kwargs, # Passed to `DataBlock.dataloaders`
)->DataLoaders: # Clips in batches `(x,)`
    "`DataLoaders` of videos without labels, for pre-training"
    train, valid = [str(p) for p in train], [str(p) for p in valid]
    if not train: raise InputError('video_dls: there are no training videos')
    video = VideoBlock(frames, stride, size, cache=cache, stats=stats or imagenet_stats)
    block = TransformBlock(type_tfms=[*video.type_tfms, _NoLabels()], item_tfms=video.item_tfms, batch_tfms=video.batch_tfms)
    data = DataBlock(blocks=block, splitter=IndexSplitter(range(len(train), len(train) + len(valid))))
    return data.dataloaders(train + valid, bs=bs, num_workers=workers, **kwargs)
