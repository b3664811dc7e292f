"Pre-training with labels, as the source stage of a study does it."
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from safetensors.torch import save
from torch import nn

from ..errors import InputError
from ..models.encoders import create_model
from ..runtime import store
from ..runtime.options import parse_options
from ..runtime.progress import Progress
from ..runtime.resume import Resume, epochs_done
from .fit import fit_model

__all__ = ['Supervised']

SUPERVISED = 'supervised'  # the method's name


class Supervised:
    """Classify the videos of the source task: cross-entropy, by the code of the source stage (`fit_model`).

    Its file has encoder and head as those of the methods without labels; `load_encoder` reads the first, `read_head`
    the second. The score is `accuracy` on held-out videos."""
    score_names = ('accuracy',)
    model: nn.Sequential|None  # encoder and head, after `fit`
    chances: dict[str, float]  # after `fit`
    config: dict[str, Any]  # after `fit`

    def __init__(self):
        self.model, self.chances, self.config = None, {}, {}

    def fit(self,
        stage:Any, # A `Stage`
        loaders:Callable, # Function without arguments that makes the task's `DataLoaders`
        folder:Path, # For checkpoints
        progress:Progress, # Progress listener
        reporter:Callback, # Reports the numbers of each epoch
    )->tuple[pd.DataFrame, Resume]: # A row for each epoch, and what holds the checkpoints
        "Train a model, or resume its training"
        dls = loaders()
        set_seed(stage.seed)
        options = parse_options(stage.model_args, 'model_args')
        self.model = create_model(stage.model, len(dls.vocab), stage.init, **options)
        self.config = dict(classes=len(dls.vocab))
        self.chances = dict(accuracy=1/len(dls.vocab))
        resume, done = Resume(folder, progress.say), epochs_done(folder)
        progress.start(f'{stage.method}, {stage.model}', stage.epochs)
        if done: progress.say(f'resumes after epoch {done}')
        learn, why = fit_model(dls, self.model, stage.epochs, stage.lr, stage.seed, [resume, reporter], progress,
                               stage.schedule, stage.wd)
        if why: raise InputError(f'{stage.method} {why}; try a smaller lr than {stage.lr}')
        return pd.DataFrame(list(learn.recorder.values), columns=learn.recorder.metric_names[1:-1]), resume

    def save(self,
        path:str|Path, # File to write
    )->None:
        "Write encoder and head to a safetensors file, atomically"
        if self.model is None: raise InputError('Supervised has nothing to save yet: fit first')
        encoder, head = self.model
        named = {f'encoder.{k}':v for k, v in encoder.state_dict().items()}
        named |= {f'heads.{k}':v for k, v in head.state_dict().items()}
        state = {k:v.detach().cpu().contiguous() for k, v in named.items()}
        store.write(path, save(state, dict(method=SUPERVISED, config=json.dumps(self.config))))


def check_supervised(
    stage:Any, # A `Stage`
)->None:
    "Raise `InputError` for settings that the source stage does not have"
    if stage.task.startswith('videos:'):
        raise InputError(f'--method {SUPERVISED} needs labels, which {stage.task} does not have: name a task')
    if stage.method_args:
        raise InputError(f'--method {SUPERVISED} takes no --method-args, not {stage.method_args!r}')
    if (stage.opt, stage.mom, stage.grad_clip) != ('sgd', .9, 0):
        raise InputError(f'--method {SUPERVISED} trains by SGD with momentum .9 and no --grad-clip, as the source '
                         f'stage, not by {stage.opt} with {stage.mom} and {stage.grad_clip}')
