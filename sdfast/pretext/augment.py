"Augmentation of clips: colour jitter as in torchvision, drawn for each clip or frame of a batch, blur, solarisation."
from collections.abc import Sequence

import torch
from fastai.vision.augment import hsv2rgb, rgb2hsv
from fasttransform import Transform
from torch.nn.functional import conv2d

from ..data.clips import TensorVideo
from ..errors import InputError

__all__ = ['to_grey', 'jitter_colours', 'ColourJitter', 'OneChannel', 'Blur', 'Solarise']


def to_grey(
    x:torch.Tensor, # RGB
)->torch.Tensor: # In the range of `x`
    "Luma (ITU-R 601) of frames `(..., 3, H, W)`, as `(..., 1, H, W)`"
    r, g, b = x.unbind(-3)
    return (.2989*r + .587*g + .114*b).unsqueeze(-3)


def _mix(x, other, factor): return (factor*x + (1 - factor)*other).clamp(0, 1)


def _turn_hue(x, turn):
    "Add `turn`, a fraction of a full turn, to the hue"
    hsv = rgb2hsv(x.flatten(0, -4)).unflatten(0, x.shape[:-3])
    hue = (hsv.select(-3, 0).unsqueeze(-3) + turn) % 1
    return hsv2rgb(torch.cat([hue, hsv.narrow(-3, 1, 2)], -3).flatten(0, -4)).unflatten(0, x.shape[:-3])


def jitter_colours(
    x:torch.Tensor, # `(..., 3, H, W)` in [0, 1]
    brightness:torch.Tensor|float|None, # Factors that broadcast to `x`, where 1 changes nothing; `None` to leave out
    contrast:torch.Tensor|float|None, # The same
    saturation:torch.Tensor|float|None, # The same
    hue:torch.Tensor|float|None, # Change of the hue, as a fraction of a full turn; `None` to leave out
    order:Sequence[int]=(0, 1, 2, 3), # Order in which the four adjustments are applied
)->torch.Tensor: # The shape of `x`
    "Adjust colours as torchvision does, with separate factors for each clip or frame"
    for step in order:
        if step == 0 and brightness is not None: x = _mix(x, 0., brightness)
        if step == 1 and contrast is not None: x = _mix(x, to_grey(x).mean((-3, -2, -1), keepdim=True), contrast)
        if step == 2 and saturation is not None: x = _mix(x, to_grey(x), saturation)
        if step == 3 and hue is not None: x = _turn_hue(x, hue)
    return x


class ColourJitter(Transform):
    """Jitter the colours of training clips `(B, K, T, C, H, W)` with probability `p`, then turn them grey with
    probability `grey`.

    Random values are drawn for each clip or, with `each_frame`, for each frame. The order of the four adjustments is
    drawn for each batch."""
    order, split_idx = 50, 0  # of floats in [0, 1], before `Normalize` (99)

    def __init__(self,
        brightness:float=0., # Factors range from 1 - v to 1 + v
        contrast:float=0., # The same
        saturation:float=0., # The same
        hue:float=0., # Changes range from -hue to hue
        p:float=1., # Probability of the jitter
        grey:float=0., # Probability of grey
        each_frame:bool=False, # Draw for each frame, not each clip
    ):
        given = brightness, contrast, saturation, hue, p, grey
        if min(given) < 0 or hue > .5 or max(p, grey) > 1:
            raise InputError('jitter must be at least 0, hue at most .5, p and grey between 0 and 1, not '
                             f'{", ".join(map(str, given))}')
        self.factors, self.hue = (brightness, contrast, saturation), hue
        self.p, self.grey, self.each_frame = p, grey, each_frame

    def encodes(self, x:TensorVideo)->TensorVideo:
        v = x.as_subclass(torch.Tensor)
        drawn = 3 if self.each_frame else 2  # number of axes along which values differ
        shape = (*v.shape[:drawn], *(1,)*(6 - drawn))
        def draw(low, high): return torch.empty(shape, device=v.device).uniform_(low, high)
        jittered = draw(0, 1) < self.p
        factors = [torch.where(jittered, draw(max(0, 1 - f), 1 + f), 1.) if f else None for f in self.factors]
        brightness, contrast, saturation = factors
        hue = torch.where(jittered, draw(-self.hue, self.hue), 0.) if self.hue else None
        if any(f is not None for f in [*factors, hue]):
            v = jitter_colours(v, brightness, contrast, saturation, hue, torch.randperm(4).tolist())
        if self.grey: v = torch.where(draw(0, 1) < self.grey, to_grey(v).expand_as(v), v)
        return TensorVideo(v)


class OneChannel(Transform):
    "Show one random channel three times, in frames of training clips `(B, K, T, C, H, W)` that are drawn one by one"
    order, split_idx = 49, 0  # before `ColourJitter`

    def __init__(self,
        p:float, # Probability of each frame
    ): self.p = p

    def encodes(self, x:TensorVideo)->TensorVideo:
        v = x.as_subclass(torch.Tensor)
        drawn = (*v.shape[:3], 1, 1, 1)
        channel = torch.randint(v.shape[3], drawn, device=v.device).expand(*v.shape[:3], 1, *v.shape[4:])
        shown = torch.rand(drawn, device=v.device) < self.p
        return TensorVideo(torch.where(shown, v.gather(3, channel), v))


class _ForSomeClips(Transform):
    "Changes a training clip with a probability that depends on its position among the clips of its video"
    split_idx = 0
    def __init__(self, p): self.p = p

    def draw(self, v):
        "Which clips of `(B, K, T, C, H, W)` to change, `(B, K, 1, 1, 1, 1)`"
        p = torch.tensor(self.p, device=v.device).expand(v.shape[:2])
        return (torch.rand(v.shape[:2], device=v.device) < p).view(*v.shape[:2], 1, 1, 1, 1)


class Blur(_ForSomeClips):
    """Gaussian blur of clips `(B, K, T, C, H, W)`, with a standard deviation drawn for each from .1 to 2 pixels.

    The kernel spans a tenth of the height; frames are padded with black."""
    order = 51  # after `ColourJitter`

    def encodes(self, x:TensorVideo)->TensorVideo:
        v = x.as_subclass(torch.Tensor)
        blurred = self.draw(v)
        if not blurred.any(): return x
        sigma = torch.empty(v.shape[:2], device=v.device).uniform_(.1, 2)
        radius = v.shape[-2]//10//2
        return TensorVideo(torch.where(blurred, blur(v, sigma, radius), v).clamp(0, 1))


def blur(
    x:torch.Tensor, # Clips `(..., T, C, H, W)`
    sigma:torch.Tensor, # Standard deviation for each, in pixels `(...)`
    radius:int, # Radius of the kernel in pixels
)->torch.Tensor:
    "Gaussian blur with zero padding"
    at = torch.arange(-radius, radius + 1, device=x.device)
    w = torch.exp(-at**2/(2*sigma.flatten()[:, None]**2))
    w = (w/w.sum(1, keepdim=True)).to(x.dtype)
    flat = x.flatten(0, -5).flatten(1, 2)  # (N, T*C, H, W)
    n, c = flat.shape[:2]
    w, flat = w.repeat_interleave(c, 0), flat.flatten(0, 1)[None]
    flat = conv2d(flat, w[:, None, :, None], padding=(radius, 0), groups=n*c)
    return conv2d(flat, w[:, None, None, :], padding=(0, radius), groups=n*c).view(x.shape)


class Solarise(_ForSomeClips):
    "Invert all pixels of at least .5, for clips in [0, 1]"
    order = 52  # after `Blur`

    def encodes(self, x:TensorVideo)->TensorVideo:
        v = x.as_subclass(torch.Tensor)
        return TensorVideo(torch.where(self.draw(v) & (v >= .5), 1 - v, v))
