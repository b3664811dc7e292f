"Augmentation of clips: torchvision's `ColorJitter`, drawn for each clip or each frame of a batch at once; blur and solarisation."
from collections.abc import Sequence

import torch
from fastai.vision.augment import hsv2rgb, rgb2hsv
from fasttransform import Transform
from torch.nn.functional import conv2d

from ..data.clips import TensorVideo
from ..errors import InputError

__all__ = ['to_grey', 'jitter_colours', 'ColourJitter', 'Blur', 'Solarise']



def to_grey(
    x:torch.Tensor, # RGB
)->torch.Tensor: # In the range of `x`
    "Luma (ITU-R 601) of frames `(..., 3, H, W)`, as `(..., 1, H, W)`"
    r, g, b = x.unbind(-3)
    return (.2989*r + .587*g + .114*b).unsqueeze(-3)


def jitter_colours(
    x:torch.Tensor, # `(..., 3, H, W)` in [0, 1]
    brightness:torch.Tensor|float|None, # Factors that broadcast to `x`, 1 changes nothing; `None` to leave out
    contrast:torch.Tensor|float|None, # The same
    saturation:torch.Tensor|float|None, # The same
    hue:torch.Tensor|float|None, # What to turn the hue by, of a full turn
    order:Sequence[int]=(0, 1, 2, 3), # In which they are applied
)->torch.Tensor: # The shape of `x`
    "torchvision's adjustments, with factors of their own for each clip or frame"
    def mix(x, other, f): return (f*x + (1 - f)*other).clamp(0, 1)
    def turn(x):
        hsv = rgb2hsv(x.flatten(0, -4)).unflatten(0, x.shape[:-3])
        h = (hsv.select(-3, 0).unsqueeze(-3) + hue) % 1
        return hsv2rgb(torch.cat([h, hsv.narrow(-3, 1, 2)], -3).flatten(0, -4)).unflatten(0, x.shape[:-3])
    steps = [lambda x: x if brightness is None else mix(x, 0., brightness),
             lambda x: x if contrast is None else mix(x, to_grey(x).mean((-3, -2, -1), keepdim=True), contrast),
             lambda x: x if saturation is None else mix(x, to_grey(x), saturation),
             lambda x: x if hue is None else turn(x)]
    for i in order: x = steps[i](x)
    return x


class ColourJitter(Transform):
    """Colours of training clips `(B, K, T, C, H, W)`: jitter with probability `p`, then grey with probability `grey`.

    One draw for each clip, or with `each_frame` for each frame. The order of the four is drawn for each batch."""
    order, split_idx = 50, 0  # of floats in [0, 1], before `Normalize` (99)

    def __init__(self,
        brightness:float=0., # Factors are from 1 - v to 1 + v
        contrast:float=0., # The same
        saturation:float=0., # The same
        hue:float=0., # Turns are from -hue to hue
        p:float=1., # Of the jitter
        grey:float=0., # Probability of grey
        each_frame:bool=False, # Draw for each frame, not each clip
    ):
        if min(brightness, contrast, saturation, hue, p, grey) < 0 or hue > .5 or max(p, grey) > 1:
            raise InputError(f'jitter must be at least 0, hue at most .5, p and grey between 0 and 1, not {brightness}, {contrast}, {saturation}, {hue}, {p} and {grey}')
        self.factors, self.hue, self.p, self.grey, self.each_frame = (brightness, contrast, saturation), hue, p, grey, each_frame

    def encodes(self, x:TensorVideo)->TensorVideo:
        v = x.as_subclass(torch.Tensor)
        shape = (*v.shape[:3 if self.each_frame else 2], *(1,)*(3 if self.each_frame else 4))
        def draw(low, high): return torch.empty(shape, device=v.device).uniform_(low, high)
        some = draw(0, 1) < self.p
        factors = [torch.where(some, draw(max(0, 1 - f), 1 + f), 1.) if f else None for f in self.factors]
        hue = torch.where(some, draw(-self.hue, self.hue), 0.) if self.hue else None
        if any(f is not None for f in [*factors, hue]): v = jitter_colours(v, *factors, hue, torch.randperm(4).tolist())
        if self.grey: v = torch.where(draw(0, 1) < self.grey, to_grey(v).expand_as(v), v)
        return TensorVideo(v)


class _Some(Transform):
    "What happens to a training clip with a probability that depends on its place among the clips of its video"
    split_idx = 0
    def __init__(self, p): self.p = p

    def draw(self, v):
        p = torch.tensor(self.p, device=v.device).expand(v.shape[:2])
        return (torch.rand(v.shape[:2], device=v.device) < p).view(*v.shape[:2], 1, 1, 1, 1)


class Blur(_Some):
    "Gaussian blur of clips `(B, K, T, C, H, W)`, of a width from .1 to 2 pixels that is drawn for each, over a tenth of the height, black beyond the edge"
    order = 51  # behind `ColourJitter`

    def encodes(self, x:TensorVideo)->TensorVideo:
        v = x.as_subclass(torch.Tensor)
        some = self.draw(v)
        if not some.any(): return x
        sigma = torch.empty(v.shape[:2], device=v.device).uniform_(.1, 2)
        return TensorVideo(torch.where(some, blur(v, sigma, v.shape[-2]//10//2), v).clamp(0, 1))


def blur(
    x:torch.Tensor, # Clips `(..., T, C, H, W)`
    sigma:torch.Tensor, # Standard deviation of each, in pixels `(...)`
    radius:int, # Pixels on each side that are looked at
)->torch.Tensor:
    "Gaussian blur with zeros beyond the edge"
    at = torch.arange(-radius, radius + 1, device=x.device)
    w = torch.exp(-at**2/(2*sigma.flatten()[:, None]**2))
    w = (w/w.sum(1, keepdim=True)).to(x.dtype)
    flat = x.flatten(0, -5).flatten(1, 2)  # (N, T*C, H, W)
    n, c = flat.shape[:2]
    w, flat = w.repeat_interleave(c, 0), flat.flatten(0, 1)[None]
    flat = conv2d(flat, w[:, None, :, None], padding=(radius, 0), groups=n*c)
    return conv2d(flat, w[:, None, None, :], padding=(0, radius), groups=n*c).view(x.shape)


class Solarise(_Some):
    "Of clips in [0, 1], turns what is at least .5 to 1 minus itself"
    order = 52  # behind `Blur`

    def encodes(self, x:TensorVideo)->TensorVideo:
        v = x.as_subclass(torch.Tensor)
        return TensorVideo(torch.where(self.draw(v) & (v >= .5), 1 - v, v))
