"What a terminal and a log show of a study while it runs."
import io

import pytest
from rich.console import Console

from sdfast.runtime.progress import track
from sdfast.study.config import Run
from sdfast.study.progress import LiveProgress


@pytest.mark.parametrize('terminal', [False, True])
def test_live_view(terminal):
    file = io.StringIO()
    ok = dict(strategy='l2sp', lam=.1, lr=.05, seed=0, epochs=2, final=False, status='ok', error='', seconds=1.5,
              valid_acc1=.5, acc1=None, source_acc=None)
    with LiveProgress(Console(width=110, force_terminal=terminal, file=file)) as progress:
        run = Run(strategy='l2sp', lam=.1, epochs=2)
        progress.plan([run]*3)
        progress.start('source task', 5)
        progress.done(ok | dict(status='diverged', error='in epoch 3'), skipped=True)
        progress.start(run, 2)
        progress.epoch(0, .5)
        progress.bars.refresh()
        progress.done(ok)
        progress.done(ok, skipped=True)
    out = file.getvalue()
    assert '1/3 l2sp λ 0.1, seed 0, trial: diverged: in epoch 3' in out
    if terminal: assert 'epoch 1/2' in out and '3/3 runs' in out and 'left' in out
    else: assert '2/3 l2sp λ 0.1, seed 0, trial: valid 50.0%, 1.5 s' in out and '(finished before)' in out


@pytest.mark.parametrize('terminal', [False, True])
def test_phases_have_names(terminal):
    file = io.StringIO()
    with LiveProgress(Console(width=110, force_terminal=terminal, file=file)) as progress:
        assert list(track([1, 2], 'decoding videos')) == [1, 2]
        progress.bars.refresh()
        progress.plan([Run(epochs=2)])
        progress.start(Run(epochs=2), 2)
        progress.epoch(1, 1.)
        for _ in track([1, 2], 'measuring'): progress.bars.refresh()
        progress.epoch(1, 1.)
        progress.bars.refresh()
        last = ' '.join(t.description for t in progress.bars.tasks if t.visible)
    out = file.getvalue()
    assert 'decoding videos' in out and ('measuring' in out) == terminal  # a log has only phases before the first run
    assert 'measuring' not in last and 'seed 0' in last  # training continues
    if terminal: assert '50%' in out and 'epoch 2/2' in out
    else: assert out == 'decoding videos\n'
