"Logging runs to TensorBoard and Weights & Biases, by fastai's own callbacks."
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from fastai.torch_core import get_model, rank_distrib
from fastcore.basics import tuplify

from ..errors import InputError

__all__ = ['LOGGERS', 'Wandb', 'check_loggers', 'loggers']


@contextmanager
def _tensorboard(run, out):
    from fastai.callback.tensorboard import TensorBoardCallback
    yield TensorBoardCallback(Path(out)/'tensorboard'/run.key, trace_model=False, log_preds=False)


@cache
def _wandb_class():
    "The class of `Wandb`, made when it is asked for: fastai's module imports wandb"
    if find_spec('wandb') is None: raise InputError("Wandb needs the package wandb: pip install 'sdfast[log]'")
    import wandb
    from fastai.callback.wandb import WandbCallback

    class Wandb(WandbCallback):
        def __init__(self, config=True, **kwargs):
            super().__init__(**kwargs)
            self.config = config

        def before_fit(self):
            if wandb.run is None: raise InputError('Wandb: there is no run; call wandb.init(project=NAME) first')
            # fastai's `gather_args` fails on values without `__dict__`, such as numbers (fastai#4173)
            self.learn.gather_args = dict
            try: super().before_fit()
            finally: del self.learn.gather_args
            if self.run and self.config: wandb.config.update(learner_settings(self.learn), allow_val_change=True)

        def log_predictions(self):
            inputs, _, targets, out = self.learn.fetch_preds.preds
            batch = (*tuplify(inputs), *tuplify(targets))
            x, _, items, outs = self.valid_dl.show_results(batch, out, show=False, max_n=self.n_preds)
            if x.ndim < 5: return super().log_predictions()
            table = wandb.Table(columns=['clip', 'class', 'predicted'])
            for (clip, truth, *_), (found, *_) in zip(items, outs):
                table.add_data(wandb.Image(_film_strip(clip)), str(truth), str(found))
            wandb.log({'Prediction_Samples':table}, step=self._wandb_step)
    return Wandb


def _film_strip(clip):
    "The frames of decoded clips `(..., T, 3, H, W)` beside each other, bytes `(H, T*W, 3)`"
    frames = clip.as_subclass(torch.Tensor).flatten(0, -4)
    if frames.is_floating_point(): frames = 255*frames.clamp(0, 1)
    return torch.cat(list(frames), -1).permute(1, 2, 0).to(torch.uint8).cpu().numpy()


def learner_settings(
    learn:Learner, # About to train
)->dict[str, str|int|float|bool|None]: # Values that any logger can store
    "The settings of a learner for a log"
    settings = dict(
        epochs=learn.n_epoch, lr=learn.lr, wd=learn.wd, bs=getattr(learn.dls, 'bs', None),
        batches=len(learn.dls.train), model=type(get_model(learn.model)).__name__,
        parameters=sum(p.numel() for p in learn.model.parameters()),
        trained=sum(p.numel() for p in learn.model.parameters() if p.requires_grad),
        loss=type(learn.loss_func).__name__, optimiser=type(learn.opt).__name__,
        device=str(getattr(learn.dls, 'device', None)))
    settings |= {f'callback {cb.name}':str(cb) for cb in learn.cbs}
    plain = str, int, float, bool, type(None)
    return {name:value if isinstance(value, plain) else str(value) for name, value in settings.items()}


def Wandb(
    log:str|None=None, # Also log `gradients`, `parameters` or `all`
    log_preds:bool=False, # Also log predictions, for clips with film strips
    config:bool=True, # Log the learner's settings
    **kwargs, # Other arguments of fastai's `WandbCallback`, such as log_model, n_preds
)->Callback: # For `Learner(cbs=...)`; call `wandb.init` before the fit
    """fastai's `WandbCallback` for any `Learner`, where fastai's own fails before the fit begins (fastai#4173).

    It logs losses, metrics and strengths of callbacks to Weights & Biases, and needs `pip install wandb`."""
    return _wandb_class()(log=log, log_preds=log_preds, config=config, **kwargs)


@contextmanager
def _wandb(run, out):
    import wandb
    name = f'{run.strategy} {run.lam:g} {run.seed}'
    options = dict(project='sdfast', id=run.key, name=name, group=run.task, resume='allow')
    with wandb.init(**options, config=asdict(run), dir=str(out)): yield Wandb(config=False)


# name -> context manager that gives a callback, made from a run and the folder of its study
LOGGERS = dict(tensorboard=_tensorboard, wandb=_wandb)


def check_loggers(
    names:str, # Joined by commas
)->tuple: # Each name once
    "Names of known loggers whose packages are installed; raises `InputError` for others"
    wanted = tuple(dict.fromkeys(filter(None, (n.strip() for n in names.split(',')))))
    for n in wanted:
        if n not in LOGGERS: raise InputError(f'--log: unknown {n!r}; known are {", ".join(LOGGERS)}')
    for n in wanted:
        if find_spec(n) is None: raise InputError(f"--log {n} needs the package {n}: pip install 'sdfast[log]'")
    return wanted


@contextmanager
def loggers(
    names:Sequence[str], # From `check_loggers`
    run:object, # A `Run`
    out:str|Path, # Folder of the study: `out/tensorboard/KEY`, `out/wandb`
)->Iterator[list]: # A context manager that gives callbacks
    """Callbacks for the learner of the first process.

    They do not change training: options that draw random numbers or add to the graph are off."""
    if rank_distrib(): names = ()
    with ExitStack() as stack: yield [stack.enter_context(LOGGERS[n](run, out)) for n in names]
