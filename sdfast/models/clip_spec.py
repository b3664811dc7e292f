"""What clips an encoder expects: how many frames, of which size, and how they are normalised."""
from dataclasses import dataclass

import torch
from fastai.vision.core import imagenet_stats

from ..errors import InputError

__all__ = ['ClipSpec']


@dataclass(frozen=True)
class ClipSpec:
    """The clips that an encoder was trained with, and which others it takes.

    Clips are `(B, T, 3, H, W)` everywhere in sdfast; `layout` is what the net inside gets."""
    frames: int|None = None  # of a clip in training; `None`: not known
    size: int|None = None  # its height and width in pixels; `None`: not known
    mean: tuple = tuple(imagenet_stats[0])  # to subtract from each channel of frames in 0 to 1
    std: tuple = tuple(imagenet_stats[1])  # to divide by afterwards
    any_frames: bool = True  # whether the net takes clips of other lengths, too
    any_size: bool = True  # whether it takes other sizes, too
    frames_step: int = 1  # the number of frames must be a multiple of it
    size_step: int = 1  # height and width must be multiples of it
    layout: str = 'BTCHW'  # order of the axes that the net inside gets; BCHW: single frames
    pooling: str = 'mean'  # how tokens or maps become a feature: cls, mean or attentive; 'net': by the net itself

    def refusal(self,
        frames:int, # Of a clip
        height:int, # In pixels
        width:int, # In pixels
    )->str: # '' if the net takes such clips
        "Why the net cannot take clips of this shape, and what to pass"
        wrong = [*self._wrong_frames(frames), *self._wrong_size(height, width)]
        if not wrong: return ''
        return f'{" and ".join(w for w, _ in wrong)}: pass {", ".join(p for _, p in wrong)} where the clips are made'

    def _wrong_frames(self, given):
        step, native = self.frames_step, self.frames
        if not self.any_frames and native is not None and given != native:
            yield f'clips of {given} frames, expected {native}', f'frames={native}'
        elif given % step:
            fits = max(step, given//step*step)
            yield f'clips of {given} frames, expected a multiple of {step}', f'frames={native or fits}'

    def _wrong_size(self, height, width):
        step, native = self.size_step, self.size
        if not self.any_size and native is not None and (height, width) != (native, native):
            yield f'frames of {height}x{width} pixels, expected {native}x{native}', f'size={native}'
        elif step > 1 and (height != width or height % step):
            fits = native or max(step, height//step*step)
            yield f'frames of {height}x{width} pixels, expected squares of a multiple of {step}', f'size={fits}'


def check_clips(
    x:torch.Tensor, # What an encoder was called with
    spec:ClipSpec|None=None, # What it expects, if that is known
)->None:
    "Refuse what is no batch of clips, and clips that an encoder cannot take"
    if x.ndim != 5:
        several = ': for several clips of a video, pass cbs=MultiClip() to the Learner' if x.ndim == 6 else ''
        raise InputError(f'an encoder takes clips (B, T, 3, H, W), not {tuple(x.shape)}{several}')
    why = spec.refusal(x.shape[1], *x.shape[3:]) if spec else ''
    if why: raise InputError(f'the encoder cannot take {why}')
