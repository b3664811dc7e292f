"The sweep of lambda, end to end on few clips, and the shipped one's table from its runs."
import importlib.util
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from sdfast.data.datasets import create_task
from sdfast.study.config import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location('lambda_sweep', ROOT/'experiments/lambda_sweep.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_reading_end_to_end(script, clips, tmp_path, monkeypatch, capsys):
    spec = f'folder:{clips},group=(p\\d)_'
    monkeypatch.setattr(script, 'create_task', lambda *_: create_task(spec))
    monkeypatch.setattr(script, 'Run', partial(Run, task=spec, source=spec, frames=4, size=24, bs=4, source_bs=4))
    monkeypatch.setattr(script, 'LAMS', (.25, 1., 96.))
    script.main(seeds=1, epochs=2, quick=True, out=str(tmp_path))
    rows, t, text = pd.read_csv(tmp_path/'runs.csv'), pd.read_csv(tmp_path/'table.csv', index_col=0), (tmp_path/'table.md').read_text()
    assert len(rows) == 1 + 3*2*3 + 1 and len(t) == 1 + 3*2*3 + 1 and (tmp_path/'figure.png').stat().st_size > 10_000 and text in capsys.readouterr().out
    # 4 clips of 96 features: the same loss in three units, of which only rounding differs
    for bn in ('batch', 'running'):
        same = t.loc[[f'mean {bn} 96', f'batchmean {bn} 1', f'sum {bn} 0.25']]
        for c in ('drift', 'weight_distance', 'pull'): assert same[c].max() == pytest.approx(same[c].min(), rel=.02), (bn, c)
    assert t.pull['mean running 0.25'] > 10*t.pull['mean batch 0.25'] > 0  # the running teacher differs from an unchanged net
    for name, r in t.iterrows():
        mine, base = (rows[(rows.strategy == s) & (rows.status == 'ok')] for s in ('self_distill' if ' ' in name else name, 'finetune'))
        if ' ' in name:
            reduction, bn, lam = name.split()
            mine = mine[(mine.lam == float(lam)) & (mine.strategy_args == f'reduction={reduction},teacher_bn={bn}')]
            if r.runs: assert r.source_acc_diff == pytest.approx((mine.set_index('seed').source_acc - base.set_index('seed').source_acc).mean())
        assert r.runs == len(mine) and (not r.runs or r.source_acc == pytest.approx(mine.source_acc.mean()))


def test_the_shipped_table_comes_from_its_runs(script, monkeypatch):
    "Stars where the unadjusted interval excludes 0 included; how hard the term pulled is in folders of runs that are not shipped"
    folder = ROOT/'experiments/results/lambda_sweep'
    pull = pd.read_csv(folder/'table.csv', index_col=0).pull
    monkeypatch.setattr(script, 'pressure', lambda out, r: pull[script.name(r)])
    t = script.table(pd.read_csv(folder/'runs.csv').fillna(dict(error='')), None)
    text = script.markdown(t)
    assert text == (folder/'table.md').read_text().split('\n\n')[0] and '+2.7* [+2.1, +3.3]' in text
    fig = script.figure(t)
    assert [ax.get_title() for ax in fig.axes[:3]] == ["reduction='mean'", "reduction='batchmean'", "reduction='sum'"]


def test_bad_input_is_one_line(script):
    for args in (dict(seeds=0), dict(epochs=0), dict(lr=0.)):
        with pytest.raises(SystemExit, match=r'lambda_sweep.py: --seeds and --epochs must be at least 1, --lr positive'): script.main(**args)
