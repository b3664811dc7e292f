"Forgetting by example: which clips flip from right to wrong or back, and in how many of several runs."
import pandas as pd
import torch

from ..errors import InputError

__all__ = ['count_flips']


def count_flips(
    before:torch.Tensor, # Whether each clip is right with the untouched encoder `(N,)`
    after:torch.Tensor, # The same after fine-tuning, in each of S runs `(S, N)`
)->pd.DataFrame: # A row for each clip: `before`, `runs`, `forgotten`, `learned`
    """Count in how many runs each clip was forgotten (from right to wrong) or learned (from wrong to right).

    A clip that is forgotten in all runs is a matter of the method; one in a few is a matter of chance."""
    before, after = torch.as_tensor(before), torch.as_tensor(after)
    if before.ndim != 1 or after.ndim != 2 or after.shape[1] != len(before) or before.dtype != torch.bool \
            or after.dtype != torch.bool:
        raise InputError('count_flips compares right and wrong (N,) with those of S runs (S, N), both of bool, not '
                         f'{tuple(before.shape)} of {before.dtype} with {tuple(after.shape)} of {after.dtype}')
    return pd.DataFrame(dict(before=before.numpy(), runs=len(after), forgotten=(before & ~after).sum(0).numpy(),
                             learned=(~before & after).sum(0).numpy()))
