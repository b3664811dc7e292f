"Inter-intra contrastive learning (IIC): a video's frames and its residuals against other videos, and against its own frames in disorder. Tao et al., ACM MM 2020, as its code trains it (BestJuly/IIC)."
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from random import Random

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from fastai.data.load import DataLoader
from fastcore.basics import store_attr
from fasttransform import Transform
from torch import nn

from ..data.clips import TensorVideo
from ..data.video import VideoError, VideoFile
from ..errors import InputError
from ..models.surgery import batch_norms
from .base import Pretext, PretextClips

__all__ = ['Residual', 'InterIntra']



class Residual(Transform):
    "Behind the clips `(B, K, T, C, H, W)` in [0, 1] comes what changes in the first: the difference to the frame before, halved, about .5. The first frame's is to the last"
    order, split_idx = 60, None  # before `Normalize` (99), in validation, too

    def encodes(self, x:TensorVideo)->TensorVideo:
        v = x.as_subclass(torch.Tensor)
        return TensorVideo(torch.cat([v, (v[:, :1] - v[:, :1].roll(1, 2) + 1)/2], 1))


def disorder(
    kind:str, # `repeat` or `shuffle`
    frames:int, # In the clip
    rnd:Random, # Draws
)->list[int]: # Which frame of the clip stands at each place
    "One frame all the time, or two of four parts of the clip in each other's place"
    if kind == 'repeat': return [rnd.randrange(frames)]*frames
    parts = [p.tolist() for p in np.array_split(np.arange(frames), 4)]
    i, j = rnd.sample(range(4), 2)
    parts[i], parts[j] = parts[j], parts[i]
    return sum(parts, [])


class _Banks(nn.Module):
    "A row for each training video: of its frames, its residuals, and its frames in disorder"
    def __init__(self, n, videos):
        super().__init__()
        self.register_buffer('rows', F.normalize(torch.rand(3, videos, n) - .5, dim=2))

    @torch.no_grad()
    def update(self, f, index, momentum):
        "Rows move to features `(3, B, F)` as they are, and are brought back to length 1"
        if dist.is_available() and dist.is_initialized():
            parts = [None]*dist.get_world_size()
            dist.all_gather_object(parts, (f.cpu(), index.cpu()))  # batches differ in size where a video is broken
            f, index = (torch.cat(p, d).to(self.rows.device) for p, d in zip(zip(*parts), (1, 0)))
        self.rows[:, index] = F.normalize(self.rows[:, index]*momentum + f.to(self.rows.dtype)*(1 - momentum), dim=2)


@contextmanager
def _by_batch(encoder):
    "Batch norm by the statistics of the batch; its running ones stay as they are"
    norms = [(m, m.training, m.track_running_stats) for m in batch_norms(encoder)]
    for m, *_ in norms: m.training, m.track_running_stats = True, False
    try: yield
    finally:
        for m, *was in norms: m.training, m.track_running_stats = was


class InterIntra(Pretext):
    """Find a video's residuals by its frames, and its frames by its residuals, among those of other videos and among frames in disorder: two cross-entropies.

    All pass one encoder. What they are compared with comes from banks with one row for each training video; there is no head. As in the reference features are
    not brought to length 1 unless `unit` asks for it, negatives are drawn anew for each clip and may be the clip's own video. The clip in disorder is cropped as the one in order and never seen as residuals.
    On held-out videos rows stay as training left them, `negatives` of them evenly spaced, and a clip's own are its features; batch norm goes by the batch there, too, as its running statistics are of three kinds of clips at once.
    Scores, by features of the batch alone: `inter_acc`, residuals of the same video are closer to the frames than those of the next in the batch; `intra_acc`, they are closer to them than frames in disorder
    are (equally close: half); chance of each 1/2."""
    score_names, inputs, batch_tfms = ('inter_acc', 'intra_acc'), 2, (Residual(),)

    def __init__(self,
        disorder:str='repeat', # One frame all the time; `shuffle`: two of four parts of the clip change places
        negatives:int=1024, # Rows of each of two banks that a clip is compared with
        temperature:float=.07, # What similarities are divided by
        momentum:float=.5, # Of the banks' rows
        unit:bool=False, # Bring features to length 1 before they are compared and kept; the reference does not
        videos:int|None=None, # Rows; how many training videos there are, if it is not given
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if disorder not in ('repeat', 'shuffle'): raise InputError(f'disorder must be repeat or shuffle, not {disorder!r}')
        if negatives < 1 or temperature <= 0 or not 0 <= momentum < 1:
            raise InputError(f'negatives must be at least 1, temperature above 0 and momentum from 0 to below 1, not {negatives}, {temperature} and {momentum}')
        store_attr('disorder,negatives,temperature,momentum,unit,videos')
        self.protected, self.numbers = encoder, {}

    def prepare(self, train_dl:DataLoader)->None:
        names = dict.fromkeys(str(i[0]) if isinstance(i, tuple) else str(i) for i in train_dl.items)
        self.numbers = {v:i for i, v in enumerate(names)}
        if self.videos is None: self.videos = len(names)
        if self.videos != len(names): raise InputError(f'InterIntra has a row for each of {self.videos} videos, but there are {len(names)}: go on with the same videos, or begin anew')

    def item(self, clips:PretextClips, video:VideoFile, rnd:Random)->tuple:
        n, frames = video.index.n, clips.frames
        if self.disorder == 'shuffle' and frames < 4: raise InputError(f'disorder=shuffle takes clips of at least 4 frames, not {frames}')
        room = n - (frames - 1)*clips.stride - 1
        if room < 0: raise VideoError(f'{video}: a video of {n} frames: {frames} of them take {(frames - 1)*clips.stride + 1}')
        start = rnd.randrange(room + 1)
        v = clips.read(video, [range(start, start + (frames - 1)*clips.stride + 1, clips.stride)])[0]
        return TensorVideo(torch.stack([v, v[disorder(self.disorder, frames, rnd)]])), self.numbers.get(str(video), 0), 0

    def heads(self, n:int)->nn.Module:
        if self.videos is None: raise InputError('InterIntra has a row for each training video: fit, or give it `videos`')
        return _Banks(n, self.videos)

    def forward(self, encoder:nn.Module, heads:nn.Module, x:torch.Tensor, index:torch.Tensor)->tuple:
        training = encoder.training
        with nullcontext() if training else _by_batch(encoder):
            frames, mixed, residual = (encoder(x[:, i]).float() for i in range(3))  # one by one, as batch norm is to see them
        unit = [F.normalize(f, dim=1) for f in (frames, residual, mixed)]
        if self.unit: frames, residual, mixed = unit
        if training:
            rows = torch.cat([index[:, None], torch.randint(heads.rows.shape[1], (len(x), self.negatives), device=x.device)], 1)
            banks = list(heads.rows[:, rows])  # a copy: (B, 1 + negatives, F) each
        else:
            few = torch.linspace(0, heads.rows.shape[1] - 1, min(self.negatives, heads.rows.shape[1]), device=x.device).round().long()
            banks = [torch.cat([u[:, None], b[few].expand(len(x), -1, -1)], 1) for u, b in zip(unit, heads.rows)]
        def compare(f, bank): return torch.einsum('bf,bkf->bk', f, torch.cat([bank, banks[2]], 1).to(f.dtype))/self.temperature
        found = compare(frames, banks[1]), compare(residual, banks[0])
        if training: heads.update(torch.stack([frames, residual, mixed]).detach(), index, self.momentum)
        same, mix = ((unit[0]*u).sum(1) for u in unit[1:])
        return *found, same, (unit[0]*unit[1].roll(-1, 0)).sum(1), mix

    def loss(self, pred:tuple, y:torch.Tensor)->torch.Tensor: return sum(F.cross_entropy(p, torch.zeros(len(p), dtype=torch.long, device=p.device)) for p in pred[:2])
    @property
    def chances(self)->dict: return dict(inter_acc=.5, intra_acc=.5)

    def scores(self, pred:tuple, y:torch.Tensor)->dict:
        *_, same, other, mix = pred
        def closer(a, b): return (a > b).float() + (a == b).float()/2
        return dict(inter_acc=closer(same, other), intra_acc=closer(same, mix))
