"Long-term recurrent convolutional networks (Donahue et al., CVPR 2015): an image net on every frame, then an LSTM."
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .clip_spec import ClipSpec, check_clips
from .library_nets import from_timm

__all__ = ['LRCN', 'lrcn']


class LRCN(nn.Module):
    """An LSTM over the features of frames; a clip's feature is the mean of the LSTM's outputs over time.

    A linear head on it gives the mean of the scores that it gives frame by frame."""
    encoder_parts = (('body',), ('lstm',))

    def __init__(self,
        body:nn.Module, # Maps frames `(B, C, H, W)` to features `(B, width)`
        width:int, # Of the frames' features
        hidden:int, # Width of the LSTM, which is that of the feature
        clips:ClipSpec, # What clips the image net expects
    ):
        super().__init__()
        self.body, self.lstm = body, nn.LSTM(width, hidden, batch_first=True)
        self.num_features, self.clips = hidden, clips

    def forward(self, x:torch.Tensor)->torch.Tensor:
        check_clips(x, self.clips)
        frames = self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        # cuDNN has no gradients of an LSTM in eval mode, which importance weights need; and a teacher, which is in eval
        # mode, must give exactly what a student with its weights gives
        with torch.backends.cudnn.flags(enabled=False):
            return self.lstm(frames)[0].mean(1)


def lrcn(
    name:str, # Of an image model of timm
    pretrained:bool=False, # Download the weights of the image model; those of the LSTM are random
    hidden:int=256, # Width of the LSTM, in the paper 256
    **kwargs, # For timm's constructor, such as `img_size=112`
)->LRCN: # As `lrcn:NAME`
    """An image model of timm with an LSTM over its frames.

    Differences from the paper: any image model with its pooled features, where the paper takes fc6 of CaffeNet; the
    scores of frames are averaged before the softmax, the paper averages their probabilities; the loss is one of the
    averaged scores, in the paper one for each frame; no dropout, where the paper has .9 after fc6 and the LSTM. Layers
    are those of the image model, and the LSTM as the last."""
    if hidden < 1: raise InputError(f'hidden is the width of the LSTM, at least 1, not {hidden}')
    frames: Any = from_timm(name, pretrained, **kwargs)
    return LRCN(frames.body, frames.num_features, hidden, frames.clips)
