"Logging runs to TensorBoard and Weights & Biases, by fastai's own callbacks."
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from fastai.torch_core import rank_distrib

from ..errors import InputError

__all__ = ['LOGGERS', 'check_loggers', 'loggers']


@contextmanager
def _tensorboard(run, out):
    from fastai.callback.tensorboard import TensorBoardCallback
    yield TensorBoardCallback(Path(out)/'tensorboard'/run.key, trace_model=False, log_preds=False)


@contextmanager
def _wandb(run, out):
    import wandb
    from fastai.callback.wandb import WandbCallback

    class Wandb(WandbCallback):
        def before_fit(self):
            # `config` below has all settings; fastai's `gather_args` fails on objects without `__dict__`
            self.learn.gather_args = dict
            try: super().before_fit()
            finally: del self.learn.gather_args
    name = f'{run.strategy} {run.lam:g} {run.seed}'
    options = dict(project='sdfast', id=run.key, name=name, group=run.task, resume='allow')
    with wandb.init(**options, config=asdict(run), dir=str(out)):
        yield Wandb(log=None, log_preds=False, log_model=False)


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
        if find_spec(n) is None: raise InputError(f'--log {n} needs the package {n}: pip install {n}')
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
