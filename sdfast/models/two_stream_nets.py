"""Two-stream networks (Simonyan & Zisserman, NeurIPS 2014): one net sees single frames, another stacks of optical flow.

The flow is computed from the clip itself, on the CPU, each time that the encoder is called: it fits the clip's crop and
flip, and every loader, strategy and measure gives the encoder clips of frames, as it does any other."""
from typing import Any

import numpy as np
import torch
from torch import nn

from ..data.motion import as_pixels, flow_in_bytes
from ..errors import InputError
from .clip_spec import ClipSpec, check_clips
from .library_nets import from_timm

__all__ = ['TwoStream', 'two_stream', 'stream_heads']

STACK = 10  # flow fields in a stack, in the paper


class TwoStream(nn.Module):
    """A net on single frames and a net on stacks of optical flow; the clip's feature is both nets' features, side by
    side.

    A linear head on it gives the mean of the scores of two heads, one for each stream, see `stream_heads`. A stack
    starts at the frame that the other net sees. Of several stacks in a clip, features are averaged."""
    encoder_parts = (('spatial', 'temporal'),)

    def __init__(self,
        spatial:nn.Module, # Maps frames `(B, 3, H, W)` to features `(B, width)`
        temporal:nn.Module, # Maps stacks of flow `(B, 2*stack, H, W)` to features `(B, width)`
        width:int, # Of the features of one net; that of the clip's feature is twice this
        clips:ClipSpec, # What clips the net on frames expects
        stack:int=STACK, # Flow fields in a stack
    ):
        super().__init__()
        self.spatial, self.temporal, self.stack = spatial, temporal, stack
        self.num_features, self.clips = 2*width, clips

    def forward(self, x:torch.Tensor)->torch.Tensor:
        check_clips(x, self.clips)
        starts = self.starts(x.shape[1])
        frames = self.spatial(x[:, starts].flatten(0, 1)).unflatten(0, (len(x), -1))
        flow = self.temporal(self.flow(x, starts).flatten(0, 1)).unflatten(0, (len(x), -1))
        return torch.cat([frames.mean(1), flow.mean(1)], 1)

    def starts(self,
        frames:int, # Of a clip
    )->list[int]: # Numbers of frames
        "Where stacks start: as many as fit side by side, with equal gaps, or one in the middle"
        room, n = frames - 1 - self.stack, (frames - 1)//self.stack
        if n < 1:
            least = self.stack + 1
            raise InputError(f'a stack of {self.stack} flow fields needs clips of at least {least} frames, not {frames}'
                             f': pass frames={least} where the clips are made, or a smaller stack to the model')
        return [room//2] if n == 1 else [room*i//(n - 1) for i in range(n)]

    @torch.compiler.disable
    @torch.no_grad()
    def flow(self,
        x:torch.Tensor, # Normalised clips `(B, T, 3, H, W)`
        starts:list[int], # Numbers of the frames at which stacks start
    )->torch.Tensor: # `(B, len(starts), 2*stack, H, W)`, horizontal and vertical by turns
        """Stacks of flow in pixels, without their mean over the frame, so that a steady motion of the camera counts
        little."""
        shape = len(x), len(starts), 2*self.stack, *x.shape[3:]
        if x.is_meta: return x.new_empty(shape)
        mean, std = (x.new_tensor(v, dtype=torch.float32)[:, None, None] for v in (self.clips.mean, self.clips.std))
        pixels = ((x.float()*std + mean).clamp(0, 1)*255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
        stacks = [self._stacks(clip, starts) for clip in pixels]
        return torch.from_numpy(np.stack(stacks)).to(x).reshape(shape)

    def _stacks(self, clip, starts):
        flow = as_pixels(flow_in_bytes(clip[starts[0]:starts[-1] + self.stack + 1], who='TwoStream'))
        flow -= flow.mean((2, 3), keepdims=True)
        return np.stack([flow[s - starts[0]:][:self.stack] for s in starts]).astype(np.float32)


def two_stream(
    name:str, # Of an image model of timm, which both streams are
    pretrained:bool=False, # Download its weights for both streams; the first layer's are repeated over the flow fields
    stack:int=STACK, # Flow fields in a stack; clips have at least one more frame
    **kwargs, # For timm's constructor, such as `img_size=112`
)->TwoStream: # As `two_stream:NAME`
    """Two image models of timm, one on single frames and one on stacks of 10 flow fields (20 channels).

    Needs OpenCV, which the extras `encoders` and `pretext` install. It computes the flow when the encoder is called,
    with the method of `optical_flow`: DIS, in 8 bits from -20 to 20 pixels. The stored flow of whole videos is not
    used, since a clip may be cropped, flipped or mixed.

    Differences from the paper: any image model, where the paper takes CNN-M-2048; DIS instead of Brox's flow; scores
    are averaged before the softmax, in the paper after it; one loss trains both streams, which the paper trains
    separately; stacks are those of the clip, in the paper 25 from the whole video."""
    if stack < 1: raise InputError(f'stack is the number of flow fields, at least 1, not {stack}')
    spatial: Any = from_timm(name, pretrained, **kwargs)
    temporal: Any = from_timm(name, pretrained, in_chans=2*stack, **kwargs)
    return TwoStream(spatial.body, temporal.body, spatial.num_features, spatial.clips, stack)


def stream_heads(
    model:nn.Module, # `Sequential(TwoStream, linear head)`
)->tuple[nn.Linear, nn.Linear]: # Of the net on frames and of the net on flow; copies
    """The head of each stream: on its half of the features, it gives the stream's scores, and their mean is the
    model's.

    The weights are twice those of the model's head, and the bias is the same."""
    encoder, head = model if isinstance(model, nn.Sequential) and len(model) == 2 else (None, None)
    if not isinstance(encoder, TwoStream) or not isinstance(head, nn.Linear):
        raise InputError('expected Sequential(TwoStream, Linear), such as create_model("two_stream:resnet18", 5), not '
                         f'{type(model).__name__} of {", ".join(type(m).__name__ for m in model.children())}')
    heads = []
    for weight in head.weight.detach().chunk(2, 1):
        stream = nn.Linear(weight.shape[1], len(weight), head.bias is not None).to(weight)
        with torch.no_grad():
            stream.weight.copy_(2*weight)
            if head.bias is not None: stream.bias.copy_(head.bias)
        heads.append(stream)
    return heads[0], heads[1]
