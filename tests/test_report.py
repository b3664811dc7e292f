"Numbers of the table by hand; the README shows the shipped results."
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from sdfast.report import LiveWatch, figure, markdown, rich_table, summary
from sdfast.strategies import STRATEGIES
from sdfast.study import COLUMNS, Run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def rows():
    rng, out = np.random.default_rng(0), []
    for strategy in ('finetune', 'self_distill'):
        for seed in range(4):
            for final in (False, True):
                out.append({c:None for c in COLUMNS} | dict(strategy=strategy, seed=seed, lam=3., lr=.05, status='ok', final=final, seconds=1., valid_acc1=.5)
                           | ({m:rng.uniform(.4, .6) + .3*(strategy != 'finetune') for m in ('acc1', 'acc5', 'source_acc', 'source_probe', 'source_knn', 'cka', 'drift', 'weight_distance')} if final else {}))
    out.append({c:None for c in COLUMNS} | dict(strategy='untouched', status='ok', final=True, source_acc=.9, source_probe=.9, source_knn=.9, cka=1., drift=0., weight_distance=0.))
    return pd.DataFrame(out)


def test_summary_by_hand(rows):
    table = summary(rows).set_index('strategy')
    a, b = (rows[(rows.strategy == s) & rows.final].acc1.to_numpy(float) for s in ('self_distill', 'finetune'))
    want = stats.ttest_rel(a, b).confidence_interval(.95)
    r = table.loc['self_distill']
    assert (r.acc1, r.acc1_diff, r.acc1_diff_low, r.acc1_diff_high) == pytest.approx((a.mean(), (a - b).mean(), want.low, want.high))
    assert r.acc1_verdict == 'higher' and r.runs == 4 and r.failed == 0 and pd.isna(table.loc['finetune', 'acc1_diff'])


def test_pairs_are_by_seed_and_failures_leave_the_pair_out(rows):
    mixed = summary(rows.sample(frac=1, random_state=1)).set_index('strategy')
    assert mixed.loc['self_distill', 'acc1_diff_low'] == pytest.approx(summary(rows).set_index('strategy').loc['self_distill', 'acc1_diff_low'])
    i = rows.index[(rows.strategy == 'finetune') & rows.final & (rows.seed == 2)]
    rows.loc[i, 'status'], rows.loc[i, 'acc1'] = 'diverged', None
    r = summary(rows).set_index('strategy').loc['self_distill']
    keep = lambda s: rows[(rows.strategy == s) & rows.final & (rows.seed != 2)].acc1.to_numpy(float)
    assert r.acc1_diff == pytest.approx((keep('self_distill') - keep('finetune')).mean())


def test_tables_say_what_they_show(rows):
    table = summary(rows)
    text = markdown(table)
    r = table.set_index('strategy').loc['self_distill']
    assert f'{100*r.acc1:.1f} {100*r.acc1_diff:+.1f}* [{100*r.acc1_diff_low:+.1f}, {100*r.acc1_diff_high:+.1f}]' in text
    assert '4 seeds' in text and '| untouched |  | – | 90.0 |' in text
    one = markdown(summary(rows[rows.seed.isin([0]) | rows.seed.isna()]))
    assert '(no interval)' in one and '[' not in one.split('\n\n')[0]
    for width in (80, 160):
        console = Console(width=width, record=True, file=open('/dev/null', 'w'))
        console.print(rich_table(table, 'x', width))
        out = console.export_text()
        assert '…' not in out and 'self_distill' in out and ('kNN' in out) == (width > 100)
    assert len(figure(rows).axes) == 2


@pytest.mark.parametrize('terminal', [False, True])
def test_live_view(terminal):
    file = io.StringIO()
    ok = dict(strategy='l2sp', lam=.1, lr=.05, seed=0, epochs=2, final=False, status='ok', error='', seconds=1.5, valid_acc1=.5, acc1=None, source_acc=None)
    with LiveWatch(Console(width=110, force_terminal=terminal, file=file)) as watch:
        run = Run(strategy='l2sp', lam=.1, epochs=2)
        watch.plan([run]*3)
        watch.start('source task', 5)
        watch.done(ok | dict(status='diverged', error='in epoch 3'), skipped=True)
        watch.start(run, 2)
        watch.epoch(0, .5)
        watch.bars.refresh()
        watch.done(ok)
        watch.done(ok, skipped=True)
    out = file.getvalue()
    assert '1/3 l2sp λ 0.1, seed 0, trial: diverged: in epoch 3' in out
    if terminal: assert 'epoch 1/2' in out and '3/3 runs' in out and 'left' in out
    else: assert '2/3 l2sp λ 0.1, seed 0, trial: valid 50.0%, 1.5 s' in out and '(finished before)' in out


def test_readme_shows_the_shipped_results():
    readme, folder = (ROOT/'README.md').read_text(), ROOT/'experiments/results/moving_digits'
    rows = pd.read_csv(folder/'runs.csv')
    text = markdown(summary(rows))
    assert (folder/'table.md').read_text() == text and text.split('\n\n')[0] in readme


def test_shipped_runs_are_complete():
    for folder in (ROOT/'experiments/results').iterdir():
        if not folder.is_dir(): continue
        rows = pd.read_csv(folder/'runs.csv')
        # a column that came later is missing in a file from before it
        must = {'key', 'task', 'source', 'model', 'strategy', 'lam', 'seed', 'epochs', 'lr', 'valid_acc1', 'acc1', 'source_acc', 'source_probe', 'status', 'error', 'final', 'anchor'}
        assert must <= set(rows.columns) <= {*COLUMNS, 'anchor'} and (rows.strategy == 'untouched').sum() == 1
        final = rows[rows.final & (rows.strategy != 'untouched')]
        setting = [c for c in ('strategy', 'strategy_args', 'lam') if c in final]
        assert final.groupby(setting, dropna=False).seed.apply(lambda s: tuple(sorted(s))).nunique() == 1, 'seeds are paired'
        assert rows[~rows.final].groupby('strategy').size().nunique() <= 1, 'each strategy has as many trials'
        assert rows[~rows.final].acc1.isna().all(), 'trials do not read test'


def test_the_results_page_shows_the_sweep():
    assert (ROOT/'experiments/results/lambda_sweep/table.md').read_text() in (ROOT/'experiments/README.md').read_text()


def test_the_docs_list_every_strategy_as_the_registry_has_it():
    page = (ROOT/'experiments/README.md').read_text()
    for name, s in STRATEGIES.items():
        formula, lams = s.formula.replace('|', '\\|'), ', '.join(f'{l:g}' for l in s.lams) or '(learning rates)'
        assert f'| `{name}` | {formula} | {lams} | {s.paper} |' in page, name
