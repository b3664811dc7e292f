"""The base class of methods for pre-training without labels.

A new method is a subclass of `Pretext` with `sample`, `heads`, `forward`, `loss` and `scores`."""
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.data.load import DataLoader
from fastai.torch_core import get_model, norm_bias_params
from fastcore.basics import init_args
from fastcore.foundation import L
from safetensors.torch import save
from torch import nn

from ..data.block import MultiClip
from ..data.clips import SampleClips
from ..data.order import check_order
from ..data.video import VideoFile
from ..errors import InputError
from ..models.features import eval_mode
from ..models.surgery import find_encoder, frozen_copy
from ..runtime import store
from ..runtime.arguments import ShowArguments
from ..runtime.distributed import is_distributed
from ..runtime.resume import Resumable
from ..strategies.columns import Columns
from .clips import PretextClips
from .loaders import method_loader, sample_clips
from .net import Leave, PretextNet

__all__ = ['Pretext']


class Pretext(ShowArguments, Resumable, Columns, Callback):
    """Pre-train an encoder without labels: `Learner(dls, model, cbs=Pace()).fit(10)` on `dls` of a `VideoBlock`.

    `model` is an encoder, or has one by the convention of `find_encoder`; its head, if any, does not change. During a
    fit, `validate` or `get_preds`, the learner's model is a `PretextNet` of encoder and heads, and the loss is the
    method's. Afterwards the learner has the user's model again, with a trained encoder. Heads stay with the callback,
    and a second fit continues with them; `Resume` saves them with the model. Labels of `dls` are not used.

    Subclasses define the methods below, which get everything as arguments and must not read `self.learn`."""
    # after the model is on its device, before other callbacks use it and `DistributedTrainer` (11) wraps it
    order = -5
    # crops, see `SampleClips`: of a random area, or a square of a frame whose short side is scaled to zoom*size
    area: tuple[float, float]|None = None
    aspect: tuple[float, float] = SampleClips.aspect
    flip, zoom = False, 128/112
    batch_tfms: tuple = ()  # augmentation of batches `(B, K, T, C, H, W)` in [0, 1], before they are normalised
    score_names: tuple[str, ...] = ('pretext_acc',)
    inputs = 1  # number of parts of an item that go to `forward`; the others go to `loss`
    pretext_net: PretextNet|None = None
    protected: str|Callable|None = None
    _users: tuple|None = None  # model and loss of the user during a fit
    _nested = 0  # number of running calls of `validate` inside a fit
    _sums: dict|None = None  # whether in training -> (sums of scores, number of videos) of the last epoch
    _made: dict|None = None  # id of a loader -> (loader, the method's loader)
    _stateattrs = ('pretext_net', '_users', '_sums', '_made', '_columns')  # not exported

    # ---- methods that subclasses define

    def sample(self, n:int, frames:int, stride:int, rnd:Random)->tuple:
        "Draw frame numbers `(K, frames)` of a video of `n` frames, and a label, with `rnd`; `VideoError` if too short"
        raise NotImplementedError(f'{type(self).__name__} must define `sample`')

    def item(self, clips:PretextClips, video:VideoFile, rnd:Random)->tuple:
        "Make clips `(K, T, C, H, W)` and labels of a video, by default those of `sample`; override to change pixels"
        idx, *y = self.sample(video.index.n, clips.frames, clips.stride, rnd)
        return (clips.read(video, idx), *y)

    def heads(self, n:int)->nn.Module:
        "Make the heads for `n` features"
        raise NotImplementedError(f'{type(self).__name__} must define `heads`')

    def forward(self, encoder:nn.Module, heads:nn.Module, x:torch.Tensor, *more)->torch.Tensor|tuple:
        "Predictions for a batch"
        raise NotImplementedError(f'{type(self).__name__} must define `forward`')

    def loss(self, pred:torch.Tensor|tuple, *y)->torch.Tensor:
        "Loss of the predictions, a scalar"
        raise NotImplementedError(f'{type(self).__name__} must define `loss`')

    def scores(self, pred:torch.Tensor|tuple, *y)->dict:
        "Name of `score_names` -> the score of each video `(B,)`"
        return {}

    @property
    def chances(self)->dict:
        "Name of `score_names` -> its value by chance"
        return {}

    def prepare(self, train_dl:DataLoader)->None:
        "Called before a fit, with the loader of training videos; heads may not be made yet"

    def measure(self, encoder:nn.Module, clip:torch.Tensor)->None:
        "Called before heads are made, with a blank clip `(1, T, C, H, W)`: find the sizes that they depend on"

    # ---- the net

    def build(self,
        encoder:nn.Module, # Maps clips `(B, T, C, H, W)` to features `(B, F)`; has `num_features`, or `x` is given
        x:torch.Tensor|None=None, # A clip `(1, T, C, H, W)` to count the features with
    )->PretextNet:
        "Make the net to train, once for each encoder; heads are initialised from the current random state"
        if self.pretext_net is not None and self.pretext_net.encoder is encoder: return self.pretext_net
        n = self._count_features(encoder, x)
        heads = self.make_heads(encoder, n) if self.pretext_net is None else self.pretext_net.heads
        self.pretext_net = PretextNet(encoder, heads.to(next(encoder.parameters()).device), self)
        return self.pretext_net

    def make_heads(self, encoder:nn.Module, n:int)->nn.Module:
        "Make the heads for the `n` features of `encoder`; override if heads contain a copy of it"
        return self.heads(n)

    def _count_features(self, encoder, x):
        n = getattr(encoder, 'num_features', None)
        if n is not None: return n
        if x is None:
            raise InputError(f'{type(encoder).__name__} has no num_features: pass a clip to count its features with')
        with eval_mode(encoder), torch.no_grad(): f = encoder(x)
        if torch.is_tensor(f) and f.ndim == 2: return f.shape[1]
        found = tuple(f.shape) if torch.is_tensor(f) else type(f).__name__
        raise InputError(f'{type(self).__name__} needs an encoder that returns features (B, F), not {found}')

    def _encoder(self, model):
        model = get_model(model)
        if self.protected is not None: return find_encoder(model, self.protected)
        if hasattr(model, 'num_features') and not isinstance(model, nn.Sequential): return model
        try: return find_encoder(model)
        except ValueError: return model

    def loader(self, dl:DataLoader)->DataLoader:
        "A copy of `dl` with the method's clips and labels, made once"
        if is_distributed(dl): dl = dl.dl
        if self._made is None: self._made = {}
        # keep `dl`, so that its id cannot be reused
        if id(dl) not in self._made: self._made[id(dl)] = dl, method_loader(self, dl)
        return self._made[id(dl)][1]

    # ---- a fit

    def before_fit(self):
        locked = self.learn.lock.locked()
        if self._users is not None and locked and get_model(self.learn.model) is self.pretext_net:
            self._nested += 1  # `validate` inside a fit
            return
        if any(isinstance(cb, MultiClip) for cb in self.learn.cbs):
            raise InputError(f'{type(self).__name__} needs all clips of a video at once: remove the MultiClip callback')
        if self._users is None: self._users = self.learn.model, self.learn.loss_func
        self._nested = 0
        if not locked: self.prepare(self.dls.train)
        encoder = self._encoder(self._users[0])
        clip = self._blank_clip(next(encoder.parameters()).device)
        if self.pretext_net is None and clip is not None: self.measure(encoder, clip)
        self.learn.model, self.learn.loss_func = self.build(encoder, clip), self.loss
        self.learn.add_cb(Leave(self))
        if locked: return  # `validate` or `get_preds`
        if self.learn.opt is not None: self._add_heads(self.learn.opt)
        columns = {f'train_{name}':partial(self.score, name, True) for name in self.score_names}
        self.show(columns | {name:partial(self.score, name) for name in self.score_names})

    def _blank_clip(self, device):
        base = sample_clips(self.dls.train)
        if base is None: return None
        size = base.size or 112
        return torch.zeros(1, base.frames, 3, size, size, device=device)

    def _add_heads(self, opt):
        "Add the heads' parameters to the optimizer's last group, which has the head with `encoder_head_split`"
        known = {id(p) for p, *_ in opt.all_params()}
        new = [p for p in self.pretext_net.heads.parameters() if p.requires_grad and id(p) not in known]
        if not new: return
        groups = [list(group) for group in opt.param_lists]
        groups[-1] += new
        opt.param_lists = L(groups)
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
        for name, values in found.items(): sums[name] = sums.get(name, 0.) + values.double().sum()
        self._sums[self.learn.training] = sums, n + len(self.learn.yb[0])

    def after_train(self):
        _, n = self._sums[True]
        if n or not len(self.learn.dl): return
        raise InputError(f'{type(self).__name__}: no video could be used in this epoch; the warnings say why')

    def score(self,
        name:str, # One of `score_names`
        train:bool=False, # On the last epoch's training batches during training, instead of the validation part
    )->float:
        "Mean of a score over videos, and over all processes"
        sums, n = (self._sums or {}).get(train, ({}, 0))
        total = torch.as_tensor(sums.get(name, 0.), dtype=torch.double).cpu()
        both = torch.stack([total, torch.tensor(n, dtype=torch.double)])
        if dist.is_available() and dist.is_initialized():
            both = both.to(next(self.pretext_net.parameters()).device)
            dist.all_reduce(both)
        return (both[0]/both[1]).item() if both[1] and name in sums else float('nan')

    def state_dict(self)->dict:
        "Random states of the loaders; weights are saved with the model"
        return dict(loaders=[self.loader(dl).rng.getstate() for dl in self.learn.dls.loaders])

    def load_state_dict(self, state:dict)->None:
        for dl, rng in zip(self.learn.dls.loaders, state['loaders']): self.loader(dl).rng.setstate(rng)

    def after_fit(self): "Overrides that of `Columns`: `finish` restores the learner after all other callbacks"

    def finish(self)->None:
        "End a fit, or a `validate` inside one"
        if self._nested: self._nested -= 1
        else: self.leave()

    def leave(self)->None:
        super().leave()
        for cb in list(self.learn.cbs):
            if isinstance(cb, Leave) and cb.method is self: self.learn.remove_cb(cb)
        if self._users is not None:
            self.learn.model, self.learn.loss_func = self._users
            self._users = None

    # ---- after a fit

    def held_out(self,
        dl:DataLoader, # Held-out videos, such as `dls.valid` or `unlabelled(dls, paths)`
    )->Callable: # Function of an encoder that returns the mean loss over the videos
        """Make a function that computes the loss in eval mode with the current heads, to measure forgetting.

        Use it as `Retention(..., pretext=method.held_out(dl))`."""
        if self.pretext_net is None:
            raise InputError(f'{type(self).__name__} has no heads yet: fit, or read them from a checkpoint')
        if not getattr(dl.dataset, 'split_idx', 1):
            raise InputError('held_out needs a loader that neither shuffles nor augments, such as dls.valid')
        check_order('the loader of held_out', dl)
        heads, dl = frozen_copy(self.pretext_net.heads), self.loader(dl)
        device = next(self.pretext_net.parameters()).device
        def loss(encoder:nn.Module)->float:
            net, total, n = PretextNet(encoder, heads, self), 0., 0
            with eval_mode(net), torch.no_grad():
                for batch in dl:
                    batch = [t.as_subclass(torch.Tensor).to(device) for t in batch]
                    pred = net(*batch[:self.inputs])
                    total += self.loss(pred, *batch[self.inputs:]).item()*len(batch[0])
                    n += len(batch[0])
            if not n: raise InputError(f'{type(self).__name__}: no held-out video could be used; the warnings say why')
            return total/n
        return loss

    @property
    def config(self)->dict:
        "The arguments that this method was made with"
        return init_args(self)

    def save(self, path:str|Path)->None:
        """Write encoder and heads to a safetensors file, atomically.

        `load_encoder` reads the encoder from the file, `read_checkpoint` both."""
        if self.pretext_net is None: raise InputError(f'{type(self).__name__} has nothing to save yet: fit first')
        state = {k:v.detach().cpu().contiguous() for k, v in self.pretext_net.state_dict().items()}
        store.write(path, save(state, dict(method=type(self).__name__, config=json.dumps(self.config))))
