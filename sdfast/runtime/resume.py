"Resuming a fit from its last finished epoch after its process died, with the same result as without the interruption."
import io
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.torch_core import get_model, get_random_states, rank_distrib, set_random_states
from fastcore.foundation import L

from ..errors import Damaged, InputError
from . import store
from .arguments import ShowArguments
from .identity import differences, fit_settings, numbered

__all__ = ['Resumable', 'epochs_done', 'Resume']


class Resumable:
    """Mix-in for a callback with state that outlives an epoch: `Resume` saves its attributes `_state`.

    Not needed for a callback whose state at the end of an epoch follows from its arguments, the epoch and the model."""
    _state: tuple[str, ...] = ()

    def state_dict(self)->dict:
        "The state that `Resume` writes, made of tensors, numbers, strings and containers"
        return {n:getattr(self, n) for n in self._state}

    def load_state_dict(self, state:dict)->None:
        "Continue from what `state_dict` returned; called at the start of a fit, before its first epoch"
        for n in self._state: setattr(self, n, state[n])


def epochs_done(
    folder:str|Path, # As given to `Resume`
)->int: # 0 if there is no such fit
    "Number of epochs that a fit with `Resume(folder)` has finished"
    files = store.find(folder, 'epoch-*', 'pt', check=False)
    return int(files[0].name.split('-')[1]) if files else 0


def plain_state(
    x:Any, # The state of modules or callbacks
)->Any: # The same, without other types
    "Convert `x` to tensors, numbers, strings, dicts, lists and tuples, which `torch.load` reads with `weights_only`"
    if isinstance(x, np.ndarray): return dict(numpy=torch.from_numpy(x.astype(np.int64)), dtype=str(x.dtype))
    if isinstance(x, np.generic): return x.item()
    if torch.is_tensor(x): return x.detach().as_subclass(torch.Tensor)
    if isinstance(x, dict): return {k:plain_state(v) for k, v in x.items()}
    if isinstance(x, tuple): return tuple(plain_state(v) for v in x)
    if x is None or isinstance(x, (bool, int, float, str, bytes)): return x
    if isinstance(x, Iterable): return [plain_state(v) for v in x]
    raise InputError(f'Resume cannot save {type(x).__name__} in the state of a module or callback: use tensors, '
                     'numbers, strings and containers of these')


def as_states(saved:dict)->dict:
    "Saved random states in the form of fastai's `get_random_states`"
    def array(v): return v['numpy'].cpu().numpy().astype(v['dtype']) if isinstance(v, dict) else v
    return saved | dict(numpy_state=tuple(array(v) for v in saved['numpy_state']),
                        torch_state=saved['torch_state'].cpu(),
                        torch_cuda_state=[t.cpu() for t in saved['torch_cuda_state']])


class Resume(ShowArguments, Callback):
    """Save a fit to `folder` after each epoch; the same fit in another process resumes from there.

    It saves weights, optimizer, gradient scaler, the recorder, all random states including those of the loaders, and
    the state of `Resumable` callbacks, such as teachers, anchors and averages. Schedules follow from the epoch.
    fastai's own trackers of a best epoch start over.

    Each fit needs its own folder. If its file is damaged, `say` is called and the fit starts from its first epoch.
    Raises `InputError` for the folder of a fit with other epochs, parameters, callbacks, optimizer, loss or data, and
    says what differs; the seed, the initial weights, workers, device and folders may differ. Raises `StoreError` if the
    folder cannot be written. In distributed training the first process writes and all read: `folder` must be the same
    for all."""
    order, run_valid = 95, False  # after everything that changes state at the end of an epoch

    def __init__(self,
        folder:str|Path, # Where to write; created if it does not exist
        say:Callable|None=None, # Called with a line for the reader
    ):
        self.folder, self.say = Path(folder), say
        self.seconds = 0.  # duration of the fit in earlier processes
        self._done = 0  # epochs finished in earlier processes
        self._settings: dict = {}  # of the current fit, see `fit_settings`
        self._over = False  # whether this object has seen a whole fit
        self._began = None  # time at which the fit began or resumed, `None` outside of one

    def _is_training(self): return not (self.learn.lock.locked() or hasattr(self.learn, 'lr_finder'))

    def before_fit(self):
        if not self._is_training(): return
        if self._over:
            raise InputError(f'Resume: {self.folder} holds the fit that just ended; use a new folder for another fit')
        self.folder.mkdir(parents=True, exist_ok=True)
        self._began, self._done = time.time(), 0
        self._run_all_events()
        self._settings = fit_settings(self.learn)
        saved = self._read()
        if saved is None: return
        self._check(saved)
        self._load(saved)
        if self._done >= self.learn.n_epoch: self._say_over()

    def _say_over(self):
        text = f'{self.folder} holds all {self._done} epochs of this fit: nothing is trained, its weights are loaded'
        if self.say is not None: self.say(text)
        else: warnings.warn(text)

    def after_epoch(self):
        if self._began is None or not self._is_training() or rank_distrib(): return
        data = io.BytesIO()
        torch.save(plain_state(self._checkpoint()), data)
        file = store.put(self.folder, f'epoch-{self.learn.epoch + 1:05}', data.getvalue(), 'pt')
        self._remove(but=file)

    def after_fit(self):
        if self._began is None or not self._is_training(): return
        self._over, self._began = True, None
        self._run_all_events()

    def remove(self)->None:
        "Remove the saved fit once its result is stored elsewhere"
        if not rank_distrib(): self._remove()

    def _remove(self, but=None):
        for f in store.find(self.folder, 'epoch-*', 'pt', check=False):
            if f != but: f.unlink(missing_ok=True)

    # ---- what is saved

    def _identity(self):
        "What the saved fit must have in common with this one"
        parameters = get_model(self.learn.model).named_parameters()
        return dict(epochs=self.learn.n_epoch, callbacks=sorted(self._stateful()),
                    parameters=[f'{n} {tuple(p.shape)}' for n, p in parameters])

    def _stateful(self): return {n:cb for n, cb in numbered(self.learn.cbs).items() if isinstance(cb, Resumable)}

    def _loaders(self):
        "Loaders with a random state, unwrapped from `DistributedDL`s"
        loaders = [vars(dl).get('dl', dl) for dl in self.learn.dls.loaders]
        return [dl for dl in loaders if hasattr(dl, 'rng')]

    def _scaler(self): return vars(self.learn).get('scaler')

    def _checkpoint(self):
        model, scaler = get_model(self.learn.model), self._scaler()
        return dict(
            what=self._identity(),
            settings=self._settings,
            done=self.learn.epoch + 1,
            seconds=self.seconds + time.time() - self._began,
            train_iter=self.learn.train_iter,
            model=model.state_dict(),
            opt=self.learn.opt.state_dict(),
            scaler=scaler and scaler.state_dict(),
            graded=[p.grad is not None for p in model.parameters()],  # the optimizer skips parameters without gradient
            recorder=self._recorder_state(),
            random=get_random_states(),
            loaders=[dl.rng.getstate() for dl in self._loaders()],
            callbacks={n:cb.state_dict() for n, cb in self._stateful().items()})

    def _recorder_state(self):
        r = self.learn.recorder
        losses = torch.stack(list(r.losses)) if len(r.losses) else []
        return dict(lrs=r.lrs, iters=r.iters, values=r.values, losses=losses,
                    count=r.smooth_loss.count, val=r.smooth_loss.val)

    # ---- resuming

    def _read(self):
        "The newest checkpoint, or `None` if there is none or it is damaged"
        try:
            files = store.find(self.folder, 'epoch-*', 'pt')
            return self._load_file(files[0]) if files else None
        except Damaged as e:
            if self.say is not None: self.say(f'{e}; the fit starts from its first epoch')

    def _load_file(self, file):
        device = next(self.learn.model.parameters()).device
        try: return torch.load(file, map_location=device, weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError) as e:
            reason = str(e).splitlines()[0]
            raise Damaged(f'{file} is not a checkpoint of Resume ({reason})') from None

    def _check(self, saved):
        other = [f'other {k}' for k, v in self._identity().items() if saved['what'][k] != v]
        # earlier versions have not saved settings
        if not other and 'settings' in saved: other = differences(saved['settings'], plain_state(self._settings))
        if len(other) > 4: other = [*other[:3], f'{len(other) - 3} other settings']
        if other:
            raise InputError(f'Resume: {self.folder} holds a fit with {" and ".join(other)}; use another folder, '
                             'or remove this one to start again')

    def _load(self, saved):
        model = get_model(self.learn.model)
        model.load_state_dict(saved['model'])
        self.learn.opt.load_state_dict(saved['opt'])
        if self._scaler() is not None: self._scaler().load_state_dict(saved['scaler'])
        for p, graded in zip(model.parameters(), saved['graded']): p.grad = torch.zeros_like(p) if graded else None
        self._load_recorder(saved['recorder'])
        self.learn.train_iter = saved['train_iter']
        self.seconds, self._done = saved['seconds'], saved['done']
        for n, cb in self._stateful().items(): cb.load_state_dict(saved['callbacks'][n])
        for dl, state in zip(self._loaders(), saved['loaders']): dl.rng.setstate(state)
        set_random_states(**as_states(saved['random']))
        self.learn._with_events = partial(self._unless_done, self.learn._with_events)

    def _load_recorder(self, saved):
        r = self.learn.recorder
        r.lrs, r.iters = saved['lrs'], saved['iters']
        r.losses, r.values = list(saved['losses']), [L(v) for v in saved['values']]
        r.smooth_loss.count, r.smooth_loss.val = saved['count'], saved['val'].cpu()

    def _unless_done(self, run, f, event_type, *args):
        "Replaces the learner's `_with_events`: skips finished epochs"
        # `fit(start_epoch=...)` would still run the events of skipped epochs, and the recorder would record them
        if event_type != 'epoch' or self.learn.epoch >= self._done: run(f, event_type, *args)

    def _run_all_events(self):
        "Remove `_unless_done` from the learner, where a failed fit may have left it"
        self.learn.__dict__.pop('_with_events', None)
