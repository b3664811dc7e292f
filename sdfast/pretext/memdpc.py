"MemDPC: predict the maps of the next blocks of a video as mixtures of a learned memory."
from collections.abc import Callable
from random import Random

import torch
import torch.nn.functional as F
from fastcore.basics import store_attr
from torch import nn

from ..data.clips import TensorVideo
from ..data.video import VideoError, VideoFile
from ..errors import InputError
from .augment import ColourJitter, OneChannel
from .base import Pretext
from .clips import PretextClips
from .maps import layer_maps, map_stages

__all__ = ['MemDPC']


class _MapGRU(nn.Module):
    "A GRU over maps, the same for all places: its gates are 1x1 convolutions of input and state"

    def __init__(self, n, dropout):
        super().__init__()
        self.reset, self.update, self.out = (nn.Conv2d(2*n, n, 1) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def forward(self, x, state=None):  # (B, T, C, H, W), (B, C, H, W)
        if state is None: state = torch.zeros_like(x[:, 0])
        for now in x.unbind(1):
            both = torch.cat([now, state], 1)
            reset, update = self.reset(both).sigmoid(), self.update(both).sigmoid()
            new = self.out(torch.cat([now, state*reset], 1)).tanh()
            state = self.drop(state*(1 - update) + new*update)
        return state


class _MemoryHeads(nn.Module):
    "A GRU for each direction of time, the layers that address the memory, and the memory `(slots, C)`"

    def __init__(self, n, slots, dropout):
        super().__init__()
        self.forwards, self.backwards = _MapGRU(n, dropout), _MapGRU(n, dropout)
        self.address = nn.Sequential(nn.Conv2d(n, n, 1), nn.ReLU(), nn.Conv2d(n, slots, 1))
        for name, p in self.named_parameters():
            nn.init.zeros_(p) if name.endswith('bias') else nn.init.orthogonal_(p, .1)
        self.memory = nn.Parameter(torch.randn(slots, n))

    def predict(self, gru, context, steps):
        "Maps of the next `steps` blocks `(B, steps, C, H, W)`, each from the prediction before it"
        state, found = gru(context.relu()), []
        for step in range(steps):
            if step: state = gru(found[-1].relu()[:, None], state)
            found.append(torch.einsum('bshw,sc->bchw', self.address(state).softmax(1), self.memory))
        return torch.stack(found, 1)


class MemDPC(Pretext):
    """Predict the feature maps of a video's last `steps` blocks from those of the others, and of its first ones
    backwards in time; a prediction is a mixture of the slots of a learned memory.

    The loss is a cross-entropy of each predicted place: the right answer is the map of the same video, block and place,
    the wrong ones are all other places, predicted blocks and videos of the batch (of the process, as in the reference).
    Both directions are added. Source: Han, Xie & Zisserman, ECCV 2020, as trained by their code (TengdaHan/MemDPC).

    All blocks share a crop and a flip; colours are drawn for each frame, and a frame in four shows one channel, so that
    neither colours nor their changes reveal which frames belong together. Videos that are too short are skipped. Maps
    are those of the encoder's last stage, averaged over a block's frames.

    Scores, with chance 1/2 each: predictions are more similar to their own maps than to those of the next video in the
    batch (`video_acc`) or of the next predicted block (`step_acc`), on average over the places of a video (equally
    similar: half). There is none of places: padding in the encoder reveals them."""
    area, flip, score_names = (.5, 1.), True, ('video_acc', 'step_acc')
    channels: int|None  # of the maps; known after `measure`
    layer: str|None  # of the encoder, whose maps are predicted; known after `measure`

    def __init__(self,
        blocks:int=8, # Of the loader's frames, one after the other
        steps:int=3, # Blocks to predict
        slots:int=1024, # Of the memory
        dropout:float=.1, # Of the GRU's state
        jitter:tuple=(.5, .5, .5, .25), # Brightness, contrast, saturation and hue of each frame
        grey:float=.25, # Probability that a frame shows one channel three times
        layer:str|None=None, # Of the encoder; by default its last block
        channels:int|None=None, # Of that layer's maps; by default found before the first fit
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if not 1 <= steps < blocks or slots < 1 or not 0 <= dropout < 1:
            raise InputError('steps must be at least 1 and fewer than blocks, slots at least 1 and dropout at least 0 '
                             f'and below 1, not {steps}, {blocks}, {slots} and {dropout}')
        store_attr('blocks,steps,slots,dropout,jitter,grey,layer,channels')
        # `jitter` has four values, so `each_frame` is not given twice
        colours = ColourJitter(*jitter, each_frame=True)  # type: ignore[misc]
        self.protected, self.batch_tfms = encoder, (OneChannel(grey), colours)

    def sample(self, n:int, frames:int, stride:int, rnd:Random)->tuple:
        need = (self.blocks*frames - 1)*stride + 1
        if n < need:
            raise VideoError(f'a video of {n} frames: {self.blocks} blocks of {frames} frames at stride {stride} take '
                             f'{need}')
        first = rnd.randrange(n - need + 1)
        idx = range(first, first + need, stride)
        return [idx[i*frames:(i + 1)*frames] for i in range(self.blocks)], 0

    def item(self, clips:PretextClips, video:VideoFile, rnd:Random)->tuple:
        try: idx, label = self.sample(video.index.n, clips.frames, clips.stride, rnd)
        except VideoError as e: raise VideoError(f'{video}: {e}') from None
        v = clips.read(video, [[i for block in idx for i in block]])[0]  # read as one clip, so that they share a crop
        return TensorVideo(v.unflatten(0, (self.blocks, -1))), label

    def measure(self, encoder:nn.Module, clip:torch.Tensor)->None:
        self.layer, (self.channels, *_) = list(map_stages(encoder, clip, self.layer).items())[-1]

    def heads(self, n:int)->nn.Module:
        if self.layer is None or self.channels is None:
            raise InputError('MemDPC predicts maps of a layer: fit, or pass its name and channels, such as '
                             f'layer=body.3, channels={n}')
        return _MemoryHeads(self.channels, self.slots, self.dropout)

    def forward(self, encoder:nn.Module, heads:_MemoryHeads, x:torch.Tensor)->tuple:
        assert self.layer is not None  # as there are heads
        maps = layer_maps(encoder, x.flatten(0, 1), [self.layer])[self.layer].mean(2).unflatten(0, x.shape[:2])
        reverse, context = maps.flip(1), self.blocks - self.steps
        return (self._similarities(heads.predict(heads.forwards, maps[:, :context], self.steps), maps),
                self._similarities(heads.predict(heads.backwards, reverse[:, :context], self.steps), reverse))

    def _similarities(self, predicted, maps):
        "Products of each prediction with each map, both by video, block and place: `(B, steps, P, B, steps, P)`"
        predicted, maps = predicted.flatten(3), maps[:, -self.steps:].flatten(3)
        return torch.einsum('bscp,BScP->bspBSP', predicted, maps)

    def loss(self, pred:tuple, y:torch.Tensor)->torch.Tensor:
        logits = [similarities.flatten(0, 2).flatten(1) for similarities in pred]
        own = torch.arange(len(logits[0]), device=logits[0].device)
        return F.cross_entropy(logits[0], own) + F.cross_entropy(logits[1], own)

    @property
    def chances(self)->dict: return dict.fromkeys(self.score_names, .5)

    def scores(self, pred:tuple, y:torch.Tensor)->dict:
        b, s, p = pred[0].shape[:3]
        at = torch.meshgrid(*(torch.arange(k, device=pred[0].device) for k in (b, s, p)), indexing='ij')
        video, step, place = at
        def to(*other):
            "Mean similarity of a video's predictions to other maps"
            return torch.stack([similarities[(*at, *other)] for similarities in pred]).mean((0, 2, 3))
        own = to(*at)
        def closer(other): return (own > other).float() + (own == other).float()/2
        next_video, next_step = to((video + 1) % b, step, place), to(video, (step + 1) % s, place)
        return dict(video_acc=closer(next_video), step_acc=closer(next_step))
