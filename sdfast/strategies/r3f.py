"R3F: a penalty on changes of the outputs when a little noise is added to the input."
from collections.abc import Callable
from typing import Any

import torch
from fastai.torch_core import get_model

from ..errors import InputError
from .base import Penalty
from .second_pass import SecondPass
from .targets import INDEPENDENT, logits_of, two_classes

__all__ = ['sym_kl', 'R3F']


def sym_kl(
    logits_p:torch.Tensor, # `(..., C)`
    logits_q:torch.Tensor, # Of the same shape
)->torch.Tensor: # Scalar, float32
    """KL(p||q) + KL(q||p) = `sum (p - q)(log p - log q)` over classes, mean over samples; the product is exact for
    close p and q"""
    p, q = logits_p.float().log_softmax(-1), logits_q.float().log_softmax(-1)
    return ((p.exp() - q.exp())*(p - q)).sum(-1).mean()


class R3F(Penalty):
    """`lam*sym_kl(model(x), model(x + noise))` (R3F, Aghajanyan et al., 2020, arXiv 2008.03156), noise on the pixels of
    the normalised clip.

    Gradients flow through both passes. The second pass normalises with the statistics of its own batch, changes no
    buffers and is not recorded by other penalties. Its noise (seeded by seed and epoch) and its dropout do not change
    the random state. For independent logits (multi-label, or one logit), the divergence is the binary one, summed over
    the logits."""
    name = 'r3f'
    kinds = ('classes', 'soft', 'multi-label', 'binary')
    _again: SecondPass|None = None
    _noise: torch.Generator|None = None
    _stateattrs = Penalty._stateattrs + ('_noise', '_again')

    def __init__(self,
        lam:float=1., # Weight of the divergence
        eps:float=1e-5, # Largest noise ('uniform') or its standard deviation ('normal'); 16 bits round it away
        noise:str='uniform', # 'uniform' or 'normal'
        encoder:str|Callable|None=None, # As for every strategy; the divergence is between the whole model's outputs
    ):
        super().__init__(lam, encoder)
        if not eps >= 0: raise InputError(f'eps must be a number of at least 0, not {eps}')
        if noise not in ('uniform', 'normal'): raise InputError(f"noise must be 'uniform' or 'normal', not {noise!r}")
        self.eps, self.noise = eps, noise

    def begin(self)->None:
        device = next(self.loop.model.parameters()).device
        self._again = SecondPass(get_model(self.loop.model))
        self._noise = torch.Generator(device).manual_seed((torch.initial_seed() + self.loop.epoch) % 2**63)

    def before_batch(self): self.see_inputs()

    def epoch_state(self)->dict:
        assert self._noise is not None  # set in `begin`
        return super().epoch_state() | dict(noise=self._noise.get_state())

    def load_epoch_state(self, state:dict)->None:
        super().load_epoch_state(state)
        assert self._noise is not None  # set in `begin`
        self._noise.set_state(state['noise'].cpu())

    def noisy(self, x:torch.Tensor)->torch.Tensor:
        "`x` with noise; integers, such as token numbers, are unchanged"
        if not x.is_floating_point(): return x
        shape = x.shape
        kw: dict[str, Any] = dict(generator=self._noise, device=x.device, dtype=x.dtype)
        if self.noise == 'normal': return x + self.eps*torch.randn(shape, **kw)
        return x + self.eps*(2*torch.rand(shape, **kw) - 1)

    def _noised(self, model):
        args, kwargs = self.unchanged_inputs()
        args = [self.noisy(x) for x in args]
        kwargs = {k:self.noisy(v) if torch.is_tensor(v) else v for k, v in kwargs.items()}
        return model(*args, **kwargs)

    def term(self)->torch.Tensor:
        independent = self.target_kind() in INDEPENDENT
        pred, device = logits_of(self.loop.outputs, 'R3F'), next(self.loop.model.parameters()).device
        self._warn_of_rounding(device.type)
        noised = logits_of(self._second_pass(device), 'R3F')
        if pred.shape != noised.shape:
            raise InputError('R3F needs a model that returns logits (B, classes), alike for the loss and in a second '
                             f'pass; the loss was given {tuple(pred.shape)}, the second pass returned '
                             f'{tuple(noised.shape)}')
        if not independent: return sym_kl(noised, pred)
        return sym_kl(two_classes(noised), two_classes(pred))*(pred.numel()/len(pred))

    def _second_pass(self, device):
        drawn = self._noise.get_state()
        def noised(model):
            self._noise.set_state(drawn)  # a pass that is repeated has the same noise
            return self._noised(model)
        with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []): return self._again(noised)

    def _warn_of_rounding(self, device_type):
        if not torch.is_autocast_enabled(device_type): return
        dtype = torch.get_autocast_dtype(device_type)
        if self.eps >= torch.finfo(dtype).eps: return
        self._warn_once('eps', f': noise of eps={self.eps} is rounded away by autocast to {dtype}: '
                              'use a larger eps or float32')
