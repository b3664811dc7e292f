"Inter-intra contrastive learning (IIC): match frames and residuals; negatives are other videos and disordered frames."
from collections.abc import Callable
from contextlib import nullcontext
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
from .base import Pretext
from .clips import PretextClips
from .net import batch_statistics

__all__ = ['Residual', 'InterIntra']


class Residual(Transform):
    """Append to clips `(B, K, T, C, H, W)` in [0, 1] the residuals of the first: `(frame - previous frame + 1)/2`.

    The first frame's previous frame is the last one."""
    order, split_idx = 60, None  # before `Normalize` (99); in validation too

    def encodes(self, x:TensorVideo)->TensorVideo:
        v = x.as_subclass(torch.Tensor)
        first = v[:, :1]
        return TensorVideo(torch.cat([v, (first - first.roll(1, 2) + 1)/2], 1))


def disorder(
    kind:str, # `repeat` or `shuffle`
    frames:int, # In the clip
    rnd:Random, # Draws
)->list[int]: # The frame of the clip at each place
    "Repeat one frame at every position, or exchange two of the clip's four parts"
    if kind == 'repeat': return [rnd.randrange(frames)]*frames
    parts = [p.tolist() for p in np.array_split(np.arange(frames), 4)]
    i, j = rnd.sample(range(4), 2)
    parts[i], parts[j] = parts[j], parts[i]
    return sum(parts, [])


class _Banks(nn.Module):
    "Three banks with a row for each training video: of its frames, its residuals, and its frames in disorder"

    def __init__(self, n, videos):
        super().__init__()
        self.register_buffer('rows', F.normalize(torch.rand(3, videos, n) - .5, dim=2))

    @torch.no_grad()
    def update(self, f, index, momentum):
        "Move rows towards features `(3, B, F)`, and rescale them to length 1"
        if dist.is_available() and dist.is_initialized():
            parts = [None]*dist.get_world_size()
            dist.all_gather_object(parts, (f.cpu(), index.cpu()))  # batches differ in size where a video is broken
            features, indices = zip(*parts)
            f, index = torch.cat(features, 1).to(self.rows.device), torch.cat(indices, 0).to(self.rows.device)
        moved = self.rows[:, index]*momentum + f.to(self.rows.dtype)*(1 - momentum)
        self.rows[:, index] = F.normalize(moved, dim=2)


class InterIntra(Pretext):
    """Find a video's residuals by its frames, and its frames by its residuals.

    The loss is the sum of two cross-entropies, `-log(exp(f·r/τ)/Σ exp(f·r_k/τ))` for features f of frames and the row r
    of the video's residuals, and the same with frames and residuals exchanged. The sum is over r, `negatives` rows of
    other videos, and as many rows of frames in disorder. Source: Tao et al., ACM MM 2020, as trained by their code
    (BestJuly/IIC).

    One encoder sees all views, and there is no head. Rows are in banks, one for each training video. As in the
    reference, features are not scaled to length 1 unless `unit` is set, and negatives are drawn again for each clip and
    may be rows of the clip's own video. The clip in disorder is cropped as the one in order, and never seen as
    residuals.

    On held-out videos rows stay as training left them, `negatives` of them evenly spaced are compared, and a clip's own
    rows are its features. Batch norm uses the statistics of the batch there too, as its running ones mix three kinds of
    clips. Scores, by features of the batch alone: `inter_acc`, residuals of the same video are closer to the frames
    than those of the next video in the batch; `intra_acc`, they are closer than frames in disorder (equally close:
    half); chance of each 1/2."""
    score_names, inputs, batch_tfms = ('inter_acc', 'intra_acc'), 2, (Residual(),)
    videos: int|None  # rows of each bank; known after `prepare`

    def __init__(self,
        disorder:str='repeat', # `repeat` one frame, or `shuffle`: two of four parts of the clip are exchanged
        negatives:int=1024, # Rows of each of two banks that a clip is compared with
        temperature:float=.07, # Divides similarities
        momentum:float=.5, # Of the banks' rows
        unit:bool=False, # Scale features to length 1 before they are compared and kept; the reference does not
        videos:int|None=None, # Rows; by default the number of training videos
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if disorder not in ('repeat', 'shuffle'):
            raise InputError(f'disorder must be repeat or shuffle, not {disorder!r}')
        if negatives < 1 or temperature <= 0 or not 0 <= momentum < 1:
            raise InputError('negatives must be at least 1, temperature above 0 and momentum at least 0 and below 1, '
                             f'not {negatives}, {temperature} and {momentum}')
        store_attr('disorder,negatives,temperature,momentum,unit,videos')
        self.protected = encoder
        self.numbers: dict[str, int] = {}

    def prepare(self, train_dl:DataLoader)->None:
        videos = dict.fromkeys(str(item[0]) if isinstance(item, tuple) else str(item) for item in train_dl.items)
        self.numbers = {video:i for i, video in enumerate(videos)}
        if self.videos is None: self.videos = len(videos)
        if self.videos != len(videos):
            raise InputError(f'InterIntra has a row for each of {self.videos} videos, but there are {len(videos)}: '
                             'continue with the same videos, or start with a new InterIntra')

    def item(self, clips:PretextClips, video:VideoFile, rnd:Random)->tuple:
        n, frames, stride = video.index.n, clips.frames, clips.stride
        if self.disorder == 'shuffle' and frames < 4:
            raise InputError(f'disorder=shuffle takes clips of at least 4 frames, not {frames}')
        room = n - (frames - 1)*stride - 1
        if room < 0:
            raise VideoError(f'{video}: a video of {n} frames: {frames} of them take {(frames - 1)*stride + 1}')
        start = rnd.randrange(room + 1)
        v = clips.read(video, [range(start, start + (frames - 1)*stride + 1, stride)])[0]
        pair = torch.stack([v, v[disorder(self.disorder, frames, rnd)]])
        return TensorVideo(pair), self.numbers.get(str(video), 0), 0

    def heads(self, n:int)->nn.Module:
        if self.videos is None:
            raise InputError('InterIntra has a row for each training video: fit, or pass their number as `videos`')
        return _Banks(n, self.videos)

    def forward(self, encoder:nn.Module, heads:_Banks, x:torch.Tensor, index:torch.Tensor)->tuple:
        training = encoder.training
        with nullcontext() if training else batch_statistics(encoder):
            # one by one, so that batch norm sees them apart
            frames, mixed, residual = (encoder(x[:, i]).float() for i in range(3))
        unit_frames, unit_residual, unit_mixed = (F.normalize(f, dim=1) for f in (frames, residual, mixed))
        if self.unit: frames, residual, mixed = unit_frames, unit_residual, unit_mixed

        of_frames, of_residual, of_mixed = self._rows(heads, index, (unit_frames, unit_residual, unit_mixed), training)
        def logits(f, bank):
            rows = torch.cat([bank, of_mixed], 1).to(f.dtype)
            return torch.einsum('bf,bkf->bk', f, rows)/self.temperature
        by_frames, by_residual = logits(frames, of_residual), logits(residual, of_frames)
        if training: heads.update(torch.stack([frames, residual, mixed]).detach(), index, self.momentum)

        same, disordered = ((unit_frames*u).sum(1) for u in (unit_residual, unit_mixed))
        other = (unit_frames*unit_residual.roll(-1, 0)).sum(1)
        return by_frames, by_residual, same, other, disordered

    def _rows(self, heads, index, own, training):
        "Rows to compare each clip with, its own first: of frames, residuals and disorder, `(B, 1 + negatives, F)`"
        n, device = heads.rows.shape[1], index.device
        if training:
            negatives = torch.randint(n, (len(index), self.negatives), device=device)
            return list(heads.rows[:, torch.cat([index[:, None], negatives], 1)])  # a copy
        spaced = torch.linspace(0, n - 1, min(self.negatives, n), device=device).round().long()
        return [torch.cat([f[:, None], bank[spaced].expand(len(index), -1, -1)], 1) for f, bank in zip(own, heads.rows)]

    def loss(self, pred:tuple, y:torch.Tensor)->torch.Tensor:
        first = torch.zeros(len(pred[0]), dtype=torch.long, device=pred[0].device)
        return F.cross_entropy(pred[0], first) + F.cross_entropy(pred[1], first)

    @property
    def chances(self)->dict: return dict(inter_acc=.5, intra_acc=.5)

    def scores(self, pred:tuple, y:torch.Tensor)->dict:
        *_, same, other, disordered = pred
        def closer(a, b): return (a > b).float() + (a == b).float()/2
        return dict(inter_acc=closer(same, other), intra_acc=closer(same, disordered))
