"Columns that fastai's recorder has only while a fit runs."
from collections.abc import Sequence

from fastai.callback.core import CancelEpochException, CancelFitException
from fastai.learner import Learner, ValueMetric

__all__ = ['Columns']


class Columns:
    """Mix-in for a callback that adds columns to the recorder while a fit runs and removes them when the fit ends.

    Call `starts` and `show` in `before_fit`. `leave` is called when the fit ends or fails. fastai itself notifies
    callbacks of its own exceptions only, so after another exception `leave` is called immediately if an epoch failed;
    if the fit failed before its first epoch, it is called when the callback is removed from the learner or when the
    next `validate` or `get_preds` starts."""
    learn: Learner
    _columns: Sequence[ValueMetric] = ()
    _waiting = False  # columns have been added, but no epoch has started yet

    def starts(self)->bool:
        "Whether this `before_fit` belongs to a fit, and not to `validate` or `get_preds`"
        if not self.learn.lock.locked(): return True
        if self._waiting: self.leave()
        return False

    def show(self, columns:dict)->None:
        """Add columns, name -> function.

        Call it in fits only: the results of `validate` and `get_preds` must keep their length."""
        self._drop()
        self._columns = [ValueMetric(f, n) for n, f in columns.items()]
        self.learn.metrics = self.learn.metrics + self._columns
        self._waiting = True
        epoch = self.learn._do_epoch

        def guarded():
            self._waiting = False
            try: epoch()
            except (CancelEpochException, CancelFitException): raise
            except BaseException:
                self.leave()
                raise
        self.learn._do_epoch = guarded

    def leave(self)->None:
        "Remove the columns; a subclass also removes its hooks and frees its graphs here"
        if self.learn is None: return  # not in a `Learner`
        self._drop()
        self._waiting = False
        self.learn.__dict__.pop('_do_epoch', None)

    def __setattr__(self, name, value):
        # `fit(cbs=...)` removes its callbacks after an exception, too, which sets `learn` to None
        if name == 'learn' and value is None and self._waiting: self.leave()
        super().__setattr__(name, value)

    def _drop(self):
        mine, self._columns = {id(c) for c in self._columns}, ()
        self.learn.metrics = type(self.learn.metrics)(m for m in self.learn.metrics if id(m) not in mine)

    def after_fit(self):
        if not self.learn.lock.locked(): self.leave()
