"The sweep of λ, end to end on few clips, and the shipped table from its runs."
import pandas as pd
import pytest
from scripts import ROOT, load_script

SHIPPED = ROOT/'experiments/results/lambda_sweep'
READINGS = 3*2*3  # reductions, teachers, strengths


@pytest.fixture(scope='module')
def script(): return load_script('lambda_sweep')


@pytest.fixture(scope='module')
def out(script, clips, tmp_path_factory):
    "Folder of a sweep of three strengths, one seed"
    out = tmp_path_factory.mktemp('sweep')
    spec = f'folder:{clips},group=(p\\d)_'
    with pytest.MonkeyPatch.context() as m:
        m.setattr(script, 'DATA', dict(task=spec, source=spec, frames=4, size=24, bs=4, source_bs=4))
        m.setattr(script, 'LAMS', (.25, 1., 96.))
        script.main(seeds=1, epochs=2, quick=True, out=str(out))
    return out


@pytest.fixture(scope='module')
def rows(out): return pd.read_csv(out/'runs.csv')


@pytest.fixture(scope='module')
def table(out): return pd.read_csv(out/'table.csv', index_col=0)


def runs_of(rows, name):
    "Finished runs of a row of the table"
    ok = rows[rows.status == 'ok']
    if ' ' not in name: return ok[ok.strategy == name]
    reduction, bn, lam = name.split()
    options = f'reduction={reduction},teacher_bn={bn}'
    return ok[(ok.strategy == 'self_distill') & (ok.lam == float(lam)) & (ok.strategy_args == options)]


def test_every_reading_is_run_and_shown(out, rows, table):
    assert len(rows) == 1 + READINGS + 1  # plain fine-tuning first, the untouched encoder last
    assert len(table) == 1 + READINGS + 1
    assert len((out/'table.md').read_text().split('\n\n')[0].splitlines()) == 2 + len(table)
    assert (out/'figure.png').stat().st_size > 10_000


@pytest.mark.parametrize('bn', ['batch', 'running'])
def test_reductions_differ_in_units_alone(table, bn):
    "4 clips of 96 features: the same loss in three units, of which only rounding differs"
    same = table.loc[[f'mean {bn} 96', f'batchmean {bn} 1', f'sum {bn} 0.25']]
    for c in ('drift', 'weight_distance', 'pull'): assert same[c].max() == pytest.approx(same[c].min(), rel=.02), c


def test_a_running_teacher_differs_from_an_unchanged_net(table):
    assert table.pull['mean running 0.25'] > 10*table.pull['mean batch 0.25'] > 0


def test_rows_are_means_and_paired_differences(rows, table):
    base = runs_of(rows, 'finetune').set_index('seed').source_acc
    for name, r in table.iterrows():
        mine = runs_of(rows, name)
        assert r.runs == len(mine)
        if not r.runs: continue
        assert r.source_acc == pytest.approx(mine.source_acc.mean())
        if ' ' in name: assert r.source_acc_diff == pytest.approx((mine.set_index('seed').source_acc - base).mean())


@pytest.fixture
def shipped(script, monkeypatch):
    "The shipped table from its runs; how hard the term pulled is in folders of runs that are not shipped"
    pull = pd.read_csv(SHIPPED/'table.csv', index_col=0).pull
    monkeypatch.setattr(script, 'pressure', lambda out, r: pull[script.setting_name(r)])
    return script.make_table(pd.read_csv(SHIPPED/'runs.csv').fillna(dict(error='')), None)


def test_the_shipped_table_comes_from_its_runs(script, shipped):
    text = script.render_table(shipped).to_markdown()
    assert text == (SHIPPED/'table.md').read_text()
    assert '+2.7* [+2.1, +3.3]' in text  # starred where the unadjusted interval excludes 0


def test_the_figure_has_a_column_a_reduction(script, shipped):
    axes = script.draw(shipped).axes
    assert [ax.get_title() for ax in axes[:3]] == ["reduction='mean'", "reduction='batchmean'", "reduction='sum'"]


BAD = [(dict(seeds=0), '--seeds and --epochs must be at least 1'), (dict(lr=0.), '--lr must be positive'),
       (dict(epochs=0), '--seeds and --epochs must be at least 1'), (dict(jobs=0), '--jobs must be at least 1')]


@pytest.mark.parametrize('options,text', BAD)
def test_bad_input_is_one_line(script, tmp_path, capsys, options, text):
    with pytest.raises(SystemExit) as e: script.main(out=str(tmp_path), **options)
    err = capsys.readouterr().err
    assert e.value.code == 2
    assert err.startswith(f'lambda_sweep.py: {text}')
    assert err.count('\n') == 1
