"Other people's views of a run at work, by fastai's own callbacks."
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
            self.learn.gather_args = dict  # a `Run` says all; fastai's own walk over the learner stumbles over what has no __dict__
            try: super().before_fit()
            finally: del self.learn.gather_args
    name = f'{run.strategy} {run.lam:g} {run.seed}'
    with wandb.init(project='sdfast', id=run.key, name=name, group=run.task, config=asdict(run), dir=str(out), resume='allow'):
        yield Wandb(log=None, log_preds=False, log_model=False)


LOGGERS = dict(tensorboard=_tensorboard, wandb=_wandb)


def check_loggers(
    names:str, # Joined by commas
)->tuple: # Each once
    "Names of known loggers whose packages are installed; `InputError` for others"
    names = tuple(dict.fromkeys(filter(None, (n.strip() for n in names.split(',')))))
    if unknown := [n for n in names if n not in LOGGERS]: raise InputError(f'--log: unknown {unknown[0]!r}; known are {", ".join(LOGGERS)}')
    if missing := [n for n in names if find_spec(n) is None]: raise InputError(f'--log {missing[0]} needs the package {missing[0]}: pip install {missing[0]}')
    return names


@contextmanager
def loggers(
    names:Sequence[str], # From `check_loggers`
    run:object, # A `study.Run`
    out:str|Path, # Folder of the study: `out/tensorboard/KEY`, `out/wandb`
)->Iterator[list]: # A context manager that gives callbacks
    "Callbacks for the first process's learner. They change nothing of training: what would draw at random or add to the graph is off"
    with ExitStack() as stack: yield [stack.enter_context(LOGGERS[n](run, out)) for n in names if not rank_distrib()]
