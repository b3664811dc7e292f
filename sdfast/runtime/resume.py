"A fit that goes on from its last finished epoch after its process died, and ends where it would have ended."
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.torch_core import get_model, get_random_states, rank_distrib, set_random_states
from fastcore.foundation import L

from ..errors import Damaged, InputError
from . import store

__all__ = ['Stateful', 'epochs_done', 'Resume']



class Stateful:
    "Mix-in for a callback that knows more at the end of an epoch than its arguments, the epoch and the model tell: `Resume` keeps its attributes `_state`"
    _state = ()

    def state_dict(self)->dict:
        "What `Resume` writes: tensors, numbers and what is made of them"
        return {n:getattr(self, n) for n in self._state}

    def load_state_dict(self, state:dict)->None:
        "Go on from `state_dict`'s; called when a fit begins, before its first epoch"
        for n in self._state: setattr(self, n, state[n])


def epochs_done(
    folder:str|Path, # As given to `Resume`
)->int: # 0 where there is none
    "How many epochs the fit whose `Resume` writes to `folder` has finished; 0 where there is none"
    return next((int(f.name.split('-')[1]) for f in store.find(folder, 'epoch-*', 'pt', check=False)), 0)


def _plain(x):
    "Made of tensors, numbers, strings, dicts, lists and tuples alone: what loads without running code"
    if isinstance(x, np.ndarray): return dict(numpy=torch.from_numpy(x.astype(np.int64)), dtype=str(x.dtype))
    if isinstance(x, np.generic): return x.item()
    if torch.is_tensor(x): return x.detach().as_subclass(torch.Tensor)
    if isinstance(x, dict): return {k:_plain(v) for k, v in x.items()}
    if isinstance(x, tuple): return tuple(_plain(v) for v in x)
    if x is None or isinstance(x, (bool, int, float, str)): return x
    return [_plain(v) for v in x]


def as_states(saved:dict)->dict:
    "Random states as fastai's `get_random_states` has them, from what was made of them to save them"
    numpy_state = tuple(v['numpy'].cpu().numpy().astype(v['dtype']) if isinstance(v, dict) else v for v in saved['numpy_state'])
    return saved | dict(numpy_state=numpy_state, torch_state=saved['torch_state'].cpu(), torch_cuda_state=[t.cpu() for t in saved['torch_cuda_state']])


class Resume(Callback):
    """Write all that a fit is made of to `folder` after each epoch; the same fit, begun anew in another process, goes on from there.

    Kept are weights, optimizer, gradient scaler, what the recorder has, every random state, the loaders' included, and what the
    callbacks say that are `Stateful`, as all of sdfast's are that need it (teachers, anchors, averages). Schedules follow from
    the epoch. fastai's own trackers of a best epoch begin anew.

    A folder is of one fit: take another for another. A file that is damaged is told by `say`, and the fit begins anew. Raises
    `InputError` for a folder of a fit that had other epochs, parameters or callbacks, `StoreError` if it cannot be written to.
    In distributed training the first process writes and all read: `folder` must be the same for all."""
    order, run_valid = 95, False  # behind everything that has a state at the end of an epoch
    seconds, _done, _over, _began = 0., 0, False, None  # `seconds`: that the fit took in earlier processes

    def __init__(self,
        folder:str|Path, # Where to write; made if it is not there
        say:Callable|None=None, # Called with a line for the reader
    ): self.folder, self.tell = Path(folder), say or (lambda text: None)

    def _real(self): return not (self.learn.lock.locked() or hasattr(self.learn, 'lr_finder'))
    def _stateful(self): return {cb.name:cb for cb in self.learn.cbs if isinstance(cb, Stateful)}
    def _loaders(self): return [dl for dl in (vars(l).get('dl', l) for l in self.learn.dls.loaders) if hasattr(dl, 'rng')]  # out of a `DistributedDL`

    def _what(self):
        "What a folder's fit must have in common with this one"
        return dict(epochs=self.learn.n_epoch, callbacks=sorted(self._stateful()), parameters=[f'{n} {tuple(p.shape)}' for n, p in get_model(self.learn.model).named_parameters()])

    def before_fit(self):
        if not self._real(): return
        if self._over: raise InputError(f'Resume: {self.folder} has the fit that just ended; take another folder for another fit')
        self.folder.mkdir(parents=True, exist_ok=True)
        self._began, self._done = time.time(), 0
        self.learn.__dict__.pop('_with_events', None)  # left by a fit that failed
        if (saved := self._read()) is None: return
        if other := [k for k, v in self._what().items() if saved['what'][k] != v]:
            raise InputError(f'Resume: {self.folder} is of a fit with other {" and ".join(other)}; take another folder, or remove this one to begin anew')
        self._load(saved)

    def _read(self):
        "What the newest file has, if it is ours and whole"
        try:
            if not (files := store.find(self.folder, 'epoch-*', 'pt')): return None
            try: return torch.load(files[0], map_location=next(self.learn.model.parameters()).device, weights_only=True)
            except (UnpicklingError, RuntimeError, EOFError) as e: raise Damaged(f'{files[0]} is not what Resume writes ({str(e).splitlines()[0]})') from None
        except Damaged as e: self.tell(f'{e}; the fit begins anew')

    def after_epoch(self):
        if self._began is None or not self._real() or rank_distrib(): return
        data = io.BytesIO()
        torch.save(_plain(self._checkpoint()), data)
        file = store.put(self.folder, f'epoch-{self.learn.epoch + 1:05}', data.getvalue(), 'pt')
        self._remove(but=file)

    def after_fit(self):
        if self._began is None or not self._real(): return
        self._over, self._began = True, None
        self.learn.__dict__.pop('_with_events', None)

    def remove(self)->None:
        "The fit and what comes of it are safe elsewhere"
        if not rank_distrib(): self._remove()

    def _remove(self, but=None):
        for f in store.find(self.folder, 'epoch-*', 'pt', check=False):
            if f != but: f.unlink(missing_ok=True)

    def _scaler(self): return vars(self.learn).get('scaler')

    def _checkpoint(self):
        r, model, scaler = self.learn.recorder, get_model(self.learn.model), self._scaler()
        return dict(what=self._what(), done=self.learn.epoch + 1, seconds=self.seconds + time.time() - self._began, train_iter=self.learn.train_iter,
                    model=model.state_dict(), opt=self.learn.opt.state_dict(), scaler=scaler and scaler.state_dict(),
                    graded=[p.grad is not None for p in model.parameters()],  # of the others the optimizer does not step
                    recorder=dict(lrs=r.lrs, iters=r.iters, values=r.values, losses=torch.stack(list(r.losses)) if len(r.losses) else [], count=r.smooth_loss.count, val=r.smooth_loss.val),
                    random=get_random_states(), loaders=[dl.rng.getstate() for dl in self._loaders()], callbacks={n:cb.state_dict() for n, cb in self._stateful().items()})

    def _load(self, saved):
        model, r, old = get_model(self.learn.model), self.learn.recorder, saved['recorder']
        model.load_state_dict(saved['model'])
        self.learn.opt.load_state_dict(saved['opt'])
        if self._scaler() is not None: self._scaler().load_state_dict(saved['scaler'])
        for p, graded in zip(model.parameters(), saved['graded']): p.grad = torch.zeros_like(p) if graded else None
        r.lrs, r.iters, r.losses, r.values = old['lrs'], old['iters'], list(old['losses']), [L(v) for v in old['values']]
        r.smooth_loss.count, r.smooth_loss.val = old['count'], old['val'].cpu()
        self.learn.train_iter, self.seconds, self._done = saved['train_iter'], saved['seconds'], saved['done']
        for n, cb in self._stateful().items(): cb.load_state_dict(saved['callbacks'][n])
        for dl, state in zip(self._loaders(), saved['loaders']): dl.rng.setstate(state)
        set_random_states(**as_states(saved['random']))
        self.learn._with_events = partial(self._unless_done, self.learn._with_events)

    def _unless_done(self, run, f, event_type, *args):
        # not by `fit`'s start_epoch: the events around an epoch that it skips still happen, and the recorder writes the epoch down
        if event_type != 'epoch' or self.learn.epoch >= self._done: run(f, event_type, *args)
