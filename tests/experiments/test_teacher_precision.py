"What a bfloat16 teacher changes, end to end on few clips, and its table by hand."
import importlib.util
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from sdfast.data.datasets import create_task
from sdfast.study.config import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location('teacher_precision', ROOT/'experiments/teacher_precision.py')
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def test_end_to_end(script, clips, tmp_path, monkeypatch, capsys, fresh):
    spec = f'folder:{clips},group=(p\\d)_'
    monkeypatch.setattr(script, 'create_task', lambda *_: create_task(spec))
    monkeypatch.setattr(script, 'Run', partial(Run, task=spec, source=spec, frames=4, size=24, bs=4, source_bs=4))
    script.main(seeds=2, epochs=2, lams='3', quick=True, out=str(tmp_path))
    rows, t = pd.read_csv(tmp_path/'runs.csv'), pd.read_csv(tmp_path/'table.csv')
    assert len(rows) == 4 + 1 and (rows.status == 'ok').all() and (tmp_path/'table.md').read_text() in capsys.readouterr().out
    exact, low = (rows[(rows.strategy == 'self_distill') & (rows.strategy_args.fillna('') == a)].set_index('seed').drift for a in ('', 'teacher_dtype=bfloat16'))
    assert (exact != low).all(), 'it did something'
    r, (a, b) = t[t.measure == 'drift'].iloc[0], stats.ttest_rel(low, exact).confidence_interval()
    assert (r.exact, r.bfloat16) == pytest.approx((exact.mean(), low.mean()), rel=1e-4)
    assert (r['diff'], r.low, r.high) == pytest.approx(((low - exact).mean(), a, b), rel=1e-3) and r.seeds == 2
