"Whether an encoder takes clips of a shape, found without computing anything."
import warnings

import torch
from torch import nn
from torch.func import functional_call

from ..errors import InputError
from .clip_spec import ClipSpec
from .modes import eval_mode

__all__ = ['check_fits']


def check_fits(
    encoder:nn.Module, # From `create_encoder`, or any other
    frames:int, # Of a clip
    size:int, # Its height and width in pixels
)->None:
    """Raise `InputError` if an encoder cannot take clips of `frames` frames of `size` by `size` pixels.

    What it expects decides, see `ClipSpec`, and a forward pass on the meta device, which has shapes but no values."""
    spec = getattr(encoder, 'clips', None) or ClipSpec()
    why = spec.refusal(frames, size, size)
    if why: raise InputError(f'the model cannot take {why}')
    tensors = [*encoder.named_parameters(remove_duplicate=False), *encoder.named_buffers(remove_duplicate=False)]
    state = {k:v.to('meta') for k, v in tensors}
    x = torch.empty(2, frames, 3, size, size, device='meta')
    try:
        with eval_mode(encoder), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            functional_call(encoder, state, (x,))
    except InputError: raise
    except (NotImplementedError, torch.cuda.OutOfMemoryError): return  # a layer that the meta device does not have
    except Exception as e:
        said = str(e).strip().splitlines()
        if 'meta' in str(e): return  # a layer that looks at values, or keeps tensors elsewhere
        fits = ', '.join(f'{n}={v}' for n, v in (('frames', spec.frames), ('size', spec.size)) if v)
        advice = f'; it was trained with {fits}' if fits else '; try more frames or another size'
        raise InputError(f'the model cannot take clips of {frames} frames of {size}x{size} pixels: '
                         f'{said[0] if said else type(e).__name__}{advice}') from None
