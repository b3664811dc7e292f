"`video_learner`: a `Learner` whose model, normalisation, freezing and clips fit together."
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize, get_c
from fastai.learner import Learner, defaults
from fastai.optimizer import Adam
from fastcore.foundation import L
from fasttransform import Pipeline
from torch import nn

from ..data.block import MultiClip, normalize_video
from ..errors import InputError
from .encoders import ENCODERS, create_model, encoder_head_split, model_stats
from .modes import eval_mode
from .surgery import find_encoder

__all__ = ['FrozenEncoder', 'video_learner']


class FrozenEncoder(Callback):
    """Makes `freeze` freeze the encoder as a whole: no weight and no statistic of it changes, and dropout is off.

    fastai's optimisers go on with momentum and weight decay where a gradient of zero is left from earlier."""

    def before_train(self):
        encoder = find_encoder(self.learn.model)
        if any(p.requires_grad for p in encoder.parameters()): return
        encoder.eval()
        for p in encoder.parameters(): p.grad = None


def video_learner(
    dls:DataLoaders, # Of videos, such as `VideoDataLoaders`
    arch:str|nn.Module, # Name of an encoder, see `create_model`; or an encoder, or a `Sequential(encoder, head)`
    normalize:bool=True, # Normalise batches as the model expects, unless `dls` does so already
    n_out:int|None=None, # Outputs of the head, by default the number of classes
    pretrained:bool=True, # Start from published weights, and from a frozen encoder
    init:str|Path|None=None, # Instead of published weights: a file of weights, see `load_encoder`
    loss_func:Callable|None=None, # By default that of the data, cross-entropy for classes
    opt_func:Callable=Adam, # Makes the optimiser
    lr:float|slice=defaults.lr, # Default learning rate
    splitter:Callable|None=None, # Splits the model into groups of weights, by default encoder and head
    cbs:Callback|Sequence|None=None, # Callbacks, such as `SelfDistill(lam=100)`
    metrics:Callable|Sequence|None=None, # What to compute on the valid part, such as `accuracy`
    path:str|Path|None=None, # Where to save and export, by default that of `dls`
    model_dir:str|Path='models', # Folder for `save` and `load`, below `path`
    wd:float|None=None, # Default weight decay
    wd_bn_bias:bool=False, # Weight decay for normalisation layers and biases, too
    train_bn:bool=False, # Train normalisation layers of a frozen encoder; fastai's default is `True`
    moms:tuple=(.95, .85, .95), # Default momentums of `fit_one_cycle`
    **kwargs, # Arguments of the encoder, such as weights='KINETICS400_V1'
)->Learner: # Frozen if pre-trained; `fine_tune` trains the head, then everything
    """A `Learner` for videos: head, loss, groups of weights for `freeze` and several learning rates, `MultiClip`.

    Raises `InputError` for a model that does not take the clips of `dls`."""
    given = isinstance(arch, nn.Module)
    n_out = n_out or get_c(dls)
    if not n_out: raise InputError('the number of classes is not known: pass n_out')
    if given and (init is not None or kwargs):
        raise InputError(f'arch is a {type(arch).__name__}, not a name, so {", ".join(kwargs) or "init"} is not used')
    model = _with_head(arch, dls, n_out) if given else _create(arch, n_out, pretrained, init, kwargs)
    if normalize: _normalise(dls, arch)
    check_clips(model, dls, n_out, arch if isinstance(arch, str) else type(arch).__name__)
    given_cbs = list(L(cbs))
    ours = [kind() for kind in (MultiClip, FrozenEncoder) if not (kind is FrozenEncoder and train_bn)
            and not any(isinstance(cb, kind) or cb is kind for cb in given_cbs)]
    learn = Learner(dls, model, loss_func=loss_func, opt_func=opt_func, lr=lr, splitter=splitter or encoder_head_split,
                    cbs=given_cbs + ours, metrics=metrics, path=path, model_dir=model_dir, wd=wd, wd_bn_bias=wd_bn_bias,
                    train_bn=train_bn, moms=moms)
    if pretrained or init is not None: learn.freeze()
    return learn


def _create(name, n_out, pretrained, init, kwargs):
    if init is None and pretrained:
        if name in ENCODERS:
            raise InputError(f'{name} has no weights to download: pass init=FILE, or pretrained=False for random ones')
        if 'weights' not in kwargs: init = 'pretrained'
    return create_model(name, n_out, init=init, **kwargs)


def _with_head(module, dls, n_out):
    "The module if it has a head, else a model with a linear one"
    is_pair = isinstance(module, nn.Sequential) and len(module) == 2
    if is_pair or isinstance(getattr(module, 'encoder', None), nn.Module): return module
    n: Any = getattr(module, 'num_features', None)
    if n is None:
        out = try_clip(module, dls, type(module).__name__)
        if not isinstance(out, torch.Tensor) or out.ndim != 2:
            raise InputError(f'{type(module).__name__} returns no features (B, F), so it cannot get a head: pass a '
                             'Sequential(encoder, head)')
        n = out.shape[1]
    return nn.Sequential(module, nn.Linear(n, n_out))


# ---- clips

def _normalise(dls, arch):
    "Add the model's normalisation to all loaders, or warn if they have another one"
    stats = model_stats(arch) if isinstance(arch, str) else getattr(arch, 'stats', None)
    pipelines = [dl.after_batch for dl in dls.loaders if hasattr(getattr(dl, 'after_batch', None), 'fs')]
    theirs = [f for pipeline in pipelines for f in pipeline.fs if isinstance(f, Normalize)]
    if theirs and stats is not None:
        wanted = [torch.tensor(v) for v in stats]
        same = all(torch.allclose(a.flatten().cpu(), b, atol=1e-3) for f in theirs
                   for a, b in zip((f.mean, f.std), wanted) if a.numel() == len(b))
        if not same:
            warnings.warn(f'the loaders normalise otherwise than {arch} expects: pass stats=model_stats({arch!r}) to '
                          'them, or none')
    if theirs or not pipelines: return
    norm = normalize_video(*stats) if stats is not None else normalize_video()
    for dl in dls.loaders:
        dl.after_batch = Pipeline([*dl.after_batch.fs, norm])
        dl.to(dl.device)


def one_clip(
    dls:DataLoaders, # Of videos
)->torch.Tensor|None: # `(1, T, C, H, W)`, as for validation; `None` if it cannot be made
    "The first clip that can be decoded, with all transforms"
    for dl in reversed(dls.loaders):
        if not hasattr(dl, 'new') or not len(dl.dataset): continue
        try: x = next(iter(dls.test_dl([dl.dataset.items[0]], num_workers=0, bs=1)))[0]
        except Exception: continue  # the loader itself will raise the error
        x = x.as_subclass(torch.Tensor)
        return x[:, 0] if x.ndim == 6 else x
    return None


def try_clip(
    model:nn.Module, # Its mode and statistics stay as they are
    dls:DataLoaders, # Of videos
    name:str, # Of the model, for the error
)->Any: # What the model returns for one clip; `None` if there is none
    "Pass one clip through a model. Raises `InputError` if it does not take it"
    x = one_clip(dls)
    if x is None: return None
    parameter = next(model.parameters(), None)
    if parameter is not None: x = x.to(parameter.device)
    try:
        with eval_mode(model), torch.no_grad(): return model(x)
    except torch.OutOfMemoryError: raise
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as e:
        why = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise InputError(f'{name} does not take clips of {x.shape[1]} frames of {x.shape[-2]}x{x.shape[-1]} pixels '
                         f'({why}): change frames or size of the loaders, or the model') from None


def check_clips(
    model:nn.Module, # With a head
    dls:DataLoaders, # Of videos
    n_out:int, # Outputs that the head should have
    name:str, # Of the model, for the error
)->None:
    "Raise `InputError` if the model does not take the clips, or its head has another number of outputs"
    out = try_clip(model, dls, name)
    if isinstance(out, torch.Tensor) and out.shape[-1] != n_out:
        raise InputError(f'the head of {name} has {out.shape[-1]} outputs, not {n_out}: replace it, or pass n_out')
