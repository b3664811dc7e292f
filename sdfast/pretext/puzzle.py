"Space-time cubic puzzles: how were these pieces of a video permuted?"
from collections.abc import Callable
from itertools import product
from math import factorial
from random import Random

import torch
import torch.nn.functional as F
from fastcore.basics import store_attr
from torch import nn

from ..data.clips import TensorVideo
from ..data.video import VideoError, VideoFile
from ..errors import InputError
from .base import Pretext
from .clips import PretextClips
from .order import order_label

__all__ = ['puzzle_cells', 'CubicPuzzle']

GRID = 4, 2, 2  # cells in time, height and width


def puzzle_cells(
    space:bool, # The four places at one time, or the four times at one place
    at:int, # Which time (0 to 3), or which place, row by row
)->list[tuple]: # Time, row and column of each cell, in the right order
    "The four cells of a puzzle in the 4x2x2 grid"
    places = list(product(range(GRID[1]), range(GRID[2])))
    return [(at, *p) for p in places] if space else [(t, *places[at]) for t in range(GRID[0])]


class _PieceHeads(nn.Module):
    "A layer for the features of all four pieces, then one for their order and one for their rotation"

    def __init__(self, n, hidden, rotation):
        super().__init__()
        self.hidden, self.order = nn.Linear(4*n, hidden), nn.Linear(hidden, factorial(4))
        self.rotated = nn.Linear(hidden, 2) if rotation else None

    def forward(self, f):  # (B, 4, F)
        h = self.hidden(f.flatten(1)).relu()
        return (self.order(h),) if self.rotated is None else (self.order(h), self.rotated(h))


class CubicPuzzle(Pretext):
    """Classify how four pieces of a video were permuted among 4! orders, and whether all were turned by 180 degrees.

    The loss is CE(order) + rotation·CE(turned), two cross-entropies. Source: Kim, Cho & Kweon, AAAI 2019; there is no
    official code.

    The video's square, `2*cell` times the loader's size, is cut into 2x2 places, and `4*span*frames` frames into four
    times. Half of the puzzles are the places at one time, half the times at one place. Each piece is a clip of the
    loader's size and frames somewhere in its cell, so neither the edges where cells meet nor the first and last frames
    reveal the order (with `span=1` successive pieces may touch in time). Half of the training videos show one colour
    channel three times: shifts between channels at the lens' edge would reveal the place. Videos that are too short are
    skipped. Scores: `puzzle_acc`, chance 1/24; `rotation_acc`, chance 1/2."""

    def __init__(self,
        cell:float=1.4, # Side of a cell, in sides of a piece: 112 to 80 in the paper
        span:int=2, # Frames of a cell, in frames of a piece
        rotation:float=1., # Weight of the rotation's loss; 0: nothing is turned
        replicate:float=.5, # Probability to show one channel three times in training
        hidden:int=512, # Width of the layer on all pieces
        encoder:str|Callable|None=None, # Which part of the model, see `find_encoder`
    ):
        if cell < 1 or span < 1 or rotation < 0 or not 0 <= replicate <= 1:
            raise InputError('cell and span must be at least 1, rotation at least 0 and replicate between 0 and 1, not '
                             f'{cell}, {span}, {rotation} and {replicate}')
        store_attr('cell,span,rotation,replicate,hidden')
        self.protected, self.zoom = encoder, 2*cell
        self.score_names = ('puzzle_acc', 'rotation_acc') if rotation else ('puzzle_acc',)

    def item(self, clips:PretextClips, video:VideoFile, rnd:Random)->tuple:
        n, frames, stride, size = video.index.n, clips.frames, clips.stride, clips.crop.size
        if size is None: raise InputError('CubicPuzzle cuts a square into pieces: give the loader a size')
        long = self.span*frames*stride  # frames of the video in a cell
        need = GRID[0]*long - stride + 1
        if n < need:
            raise VideoError(f'{video}: a video of {n} frames: four cells of {self.span}x{frames} frames take {need}')
        assert clips.side is not None  # as there is a size and no `area`
        first, side = rnd.randrange(n - need + 1), clips.side//2
        cells, order = puzzle_cells(rnd.random() < .5, rnd.randrange(4)), list(range(4))
        rnd.shuffle(order)
        cells = [cells[i] for i in order]

        # the grid within the frame, then a place for each piece in its cell
        w, h = video.scaled(clips.side)
        top, left = (rnd.randint(0, s - 2*side) if clips.crop.train else (s - 2*side)//2 for s in (h, w))
        def shift(room): return rnd.randint(0, room)
        starts = [first + t*long + shift((self.span - 1)*frames)*stride for t, _, _ in cells]
        corners = [(top + row*side + shift(side - size), left + col*side + shift(side - size)) for _, row, col in cells]

        v = clips.whole(video, [s + i*stride for s in starts for i in range(frames)]).unflatten(0, (4, frames))
        v = torch.stack([piece[..., y:y + size, x:x + size] for piece, (y, x) in zip(v, corners)])
        rotated = int(self.rotation > 0 and rnd.random() < .5)
        if rotated: v = v.flip(-1, -2)
        if clips.crop.train and rnd.random() < self.replicate: v = v[:, :, [rnd.randrange(3)]*3]
        return TensorVideo(v), order_label(order), rotated

    def heads(self, n:int)->nn.Module: return _PieceHeads(n, self.hidden, self.rotation > 0)

    def forward(self, encoder:nn.Module, heads:nn.Module, x:torch.Tensor)->tuple:
        return heads(encoder(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

    def loss(self, pred:tuple, order:torch.Tensor, rotated:torch.Tensor)->torch.Tensor:
        loss = F.cross_entropy(pred[0], order)
        return loss + self.rotation*F.cross_entropy(pred[1], rotated) if self.rotation else loss

    @property
    def chances(self)->dict: return dict(zip(self.score_names, (1/factorial(4), 1/2)))

    def scores(self, pred:tuple, order:torch.Tensor, rotated:torch.Tensor)->dict:
        return {name:p.argmax(1) == y for name, p, y in zip(self.score_names, pred, (order, rotated))}
