"Numbers of the table by hand; the README shows the shipped results."
import configparser
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pages import prose
from rich.console import Console
from scipy import stats

from sdfast.data.digits import PARTS
from sdfast.data.ffmpeg import MAX_PIXELS
from sdfast.data.video import MAX_ASPECT
from sdfast.metrics.columns import COLUMNS
from sdfast.report.plots import figure, path_figure
from sdfast.report.summary import MARGIN, MARGINS, summary, trade_off
from sdfast.report.tables import margins_markdown, markdown, rich_table, trade_off_markdown
from sdfast.report.write import write_report
from sdfast.strategies import STRATEGIES
from sdfast.study.config import Run
from sdfast.study.progress import LiveProgress

ROOT = Path(__file__).parents[2]


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
    assert r.acc1_verdict == 'better' and r.drift_verdict == 'worse' and r.runs == 4 and r.failed == 0 and pd.isna(table.loc['finetune', 'acc1_diff'])


def test_verdicts_are_adjusted_for_the_number_of_strategies():
    rng, out = np.random.default_rng(1), []
    for s in ('finetune', 'l2sp', 'ewc', 'lwf', 'mas'):
        shift = dict(ewc=.03, mas=.012).get(s, 0.)
        for seed in range(6): out.append({c:None for c in COLUMNS} | dict(strategy=s, seed=seed, lam=1., lr=.05, status='ok', final=True, chosen=True, seconds=1., acc1=.8 + shift + rng.normal(0, .006)))
    rows = pd.DataFrame(out)
    t = summary(rows).set_index('strategy')
    acc = lambda s: rows[rows.strategy == s].acc1.to_numpy(float)
    p = {s:stats.ttest_rel(acc(s), acc('finetune')).pvalue for s in ('l2sp', 'ewc', 'lwf', 'mas')}
    ranked, low = sorted(p, key=p.get), 0.
    for i, s in enumerate(ranked):
        low = max(low, min(1, p[s]*(4 - i)))
        assert t.acc1_p[s] == pytest.approx(p[s]) and t.acc1_p_adj[s] == pytest.approx(low) and t.acc1_verdict[s] == ('better' if low < .05 else 'not distinguishable')
        assert t.acc1_p_flip[s] == pytest.approx(stats.permutation_test((acc(s) - acc('finetune'),), np.mean, permutation_type='samples').pvalue)
        assert t.acc1_bca_low[s] < t.acc1_diff[s] < t.acc1_bca_high[s]
    assert t.acc1_verdict['ewc'] == 'better' and pd.isna(t.acc1_verdict['finetune'])
    plain = summary(rows, method='none').set_index('strategy')
    assert 'not adjusted' in markdown(summary(rows, method='none'), method='none') and 'Benjamini' in markdown(summary(rows, method='bh'), method='bh')
    assert plain.acc1_p_adj.equals(plain.acc1_p.rename('acc1_p_adj'))


def test_mcnemar_is_of_the_mean_over_seeds(tmp_path):
    rng, out, probs = np.random.default_rng(0), [], {}
    label = rng.integers(0, 3, 50)
    for s in ('finetune', 'l2sp'):
        for seed in range(3):
            key = f'{s}{seed}'
            p = rng.dirichlet([1, 1, 1], 50) + np.eye(3)[label]*(.5 if s == 'l2sp' else .1)
            probs.setdefault(s, []).append(p)
            (tmp_path/'runs'/key).mkdir(parents=True)
            pd.DataFrame(p, columns=['0', '1', '2']).assign(path='x', label=label)[['path', 'label', '0', '1', '2']].to_csv(tmp_path/'runs'/key/'scores.csv', index=False)
            out.append({c:None for c in COLUMNS} | dict(key=key, strategy=s, seed=seed, lam=1., lr=.05, status='ok', final=True, seconds=1., acc1=.5))
    right = {s:np.mean(p, 0).argmax(1) == label for s, p in probs.items()}
    a, b = (right['l2sp'] & ~right['finetune']).sum(), (~right['l2sp'] & right['finetune']).sum()
    t = summary(pd.DataFrame(out), folder=tmp_path).set_index('strategy')
    assert t.mcnemar['l2sp'] == pytest.approx(stats.binomtest(a, a + b).pvalue) and t.mcnemar['l2sp'] < .05 and pd.isna(t.mcnemar['finetune'])
    assert '| McNemar p |' in markdown(t.reset_index()) and markdown(t.reset_index()).split('\n')[3].endswith(f'| {t.mcnemar["l2sp"]:.2g} |')
    assert pd.isna(summary(pd.DataFrame(out), folder=tmp_path/'x').set_index('strategy').mcnemar['l2sp'])


@pytest.fixture
def path():
    "Six seeds; l2sp trades 2 points of source for 1 of target, linearly; lwf never learns enough; finetune has three learning rates"
    rng, out = np.random.default_rng(0), []
    def add(s, seed, lam, lr, acc, kept, chosen, status='ok'):
        out.append({c:None for c in COLUMNS} | dict(key=f'{s}{lam}{lr}{seed}', strategy=s, seed=seed, lam=lam, lr=lr, status=status, final=True, chosen=chosen, seconds=1., acc1=acc, valid_acc1=acc, source_acc=kept, source_probe=kept))
    for seed in range(6):
        e, k = rng.normal(0, .002, 2)
        for lr, acc, kept in ((.05, .9, .80), (.025, .895, .81), (.0125, .86, .82)): add('finetune', seed, 0., lr, acc + e, kept + k, lr == .05)
        for lam, acc in ((1., .898), (2., .894), (3., .884), (4., .874)): add('l2sp', seed, lam, .05, acc + e, .80 + 2*(.9 - acc) + k + .001*(-1)**seed, lam == 2.)
        for lam in (1., 2.): add('lwf', seed, lam, .05, .7 + e, .85 + k, lam == 1., 'diverged' if lam == 2. and seed == 3 else 'ok')
    out.append({c:None for c in COLUMNS} | dict(strategy='untouched', status='ok', final=True, chosen=True, source_acc=.9, source_probe=.9))
    return pd.DataFrame(out)


def test_trade_off_by_hand(path):
    t = trade_off(path).set_index('strategy')
    base = path[(path.strategy == 'finetune') & (path.lr == .05)]
    k = base.source_probe.mean() - .80  # seeds shift target and source alike for all settings
    # l2sp's line crosses .89, a point below finetune: .80 + 2 x .01
    assert t.matched['l2sp'] == pytest.approx(.82 + k) and t.cost['l2sp'] == pytest.approx(.9 - .82 - k)
    # finetune's own path crosses it between its second and third learning rate
    own = .81 + .01*(.895 - .89)/(.895 - .86)
    assert t.matched['finetune'] == pytest.approx(own + k) and t['diff']['l2sp'] == pytest.approx(.82 - own) and t.verdict['l2sp'] == 'better'
    half = stats.t.ppf(.975, 5)*np.std([.001, -.001]*3, ddof=1)/6**.5  # paired: the seeds' shifts cancel, what is left is l2sp's own noise
    assert t['diff']['l2sp'] - t.diff_low['l2sp'] == pytest.approx(half, rel=1e-4) and t.p['l2sp'] == pytest.approx(2*stats.t.sf(t['diff']['l2sp']/half*stats.t.ppf(.975, 5), 5), rel=1e-3)
    assert t.matched['lwf'] == pytest.approx(.80 + k + .05*.01/.2)  # on the line from plain fine-tuning to its first strength
    # volume beyond (finetune - 1 point, what it keeps): a staircase over l2sp's points within the margin
    assert t.volume['l2sp'] == pytest.approx(1e4*(.004*.012 + .004*.004), rel=1e-6) and t.volume_low['l2sp'] < t.volume['l2sp'] < t.volume_high['l2sp']
    # finetune's own: its second rate lies within the margin, .005 of target and .01 of source; paired, both shifted alike by the seed
    own = np.array([.005*.01]*6)
    mine = np.array([.004*(.012 + e) + .004*(.004 + e) for e in [.001, -.001]*3])
    want = stats.ttest_rel(1e4*mine, 1e4*own)
    assert (t.volume_diff['l2sp'], t.volume_p['l2sp']) == pytest.approx((1e4*(mine - own).mean(), want.pvalue)) and np.isnan(t.volume_diff['finetune'])
    assert (t.volume_diff_low['l2sp'], t.volume_diff_high['l2sp']) == pytest.approx(want.confidence_interval(.95)) and t.volume_verdict['l2sp'] == ('better' if t.volume_p_adj['l2sp'] < .05 else 'not distinguishable')
    assert 'lr0.05' in t.front['finetune'] and t.front['l2sp'].split() == ['λ1', 'λ2', 'λ3', 'λ4']
    text = trade_off_markdown(trade_off(path))
    assert f'| {t.volume["l2sp"]:.1f} {t.volume_diff["l2sp"]:+.1f} [{t.volume_diff_low["l2sp"]:+.1f}, {t.volume_diff_high["l2sp"]:+.1f}] {t.volume_verdict["l2sp"]} |' in text
    assert f'| l2sp | {100*t.matched["l2sp"]:.1f} |' in text and 'better' in text and 'Holm' in text
    assert len(path_figure(path).axes) == 2
    # the level does not depend on which setting was chosen
    other = path.assign(chosen=[c if s != 'finetune' else r == .025 for c, s, r in zip(path.chosen, path.strategy, path.lr)])
    pd.testing.assert_frame_equal(trade_off(other), trade_off(path))
    only = summary(path).set_index('strategy')
    assert only.lam['l2sp'] == 2. and only.acc1['l2sp'] == pytest.approx(.894 + base.acc1.mean() - .9)
    with pytest.raises(ValueError, match='failed with some seeds'): trade_off(path.assign(status=['diverged', *path.status[1:]]))


def test_what_is_found_at_other_margins(path):
    "With none a path begins where it equals the reference, whose setting it has in common; l2sp trades 2 for 1, so each point of margin is 2 of source more"
    base = path[(path.strategy == 'finetune') & (path.lr == .05)].source_probe.mean()
    lines = margins_markdown(path).split('\n')
    assert lines[0] == '| strategy | less 0 | less 0.25 | less 0.5 | less 1 | less 2 |' and [l.split(' | ')[0] for l in lines[2:4]] == ['| l2sp', '| lwf']
    for m, cell in zip(MARGINS, lines[2].strip('| ').split(' | ')[1:]):
        t = trade_off(path, margin=m).set_index('strategy')
        assert t.matched['l2sp'] == pytest.approx(base + 2*m) and cell.startswith(f'{100*t["diff"]["l2sp"]:+.1f} [') and cell.endswith(t.verdict['l2sp'])
    assert trade_off(path, margin=0.).set_index('strategy')['diff']['lwf'] == pytest.approx(0, abs=1e-9)


def test_paths_are_written(path, tmp_path):
    write_report(path, tmp_path)
    assert {'paths.png', 'trade_off_source_acc.md', 'trade_off_source_probe.csv', 'table.md'} <= {f.name for f in tmp_path.iterdir()}
    write_report(path[path.chosen], tmp_path/'..'/tmp_path.name)
    assert pd.read_csv(tmp_path/'trade_off_source_probe.csv').strategy.tolist() == ['finetune', 'l2sp', 'lwf']


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
    assert f'{100*r.acc1:.1f} {100*r.acc1_diff:+.1f} [{100*r.acc1_diff_low:+.1f}, {100*r.acc1_diff_high:+.1f}] better' in text
    assert '4 seeds' in text and '| untouched |  | – | 90.0 |' in text
    one = markdown(summary(rows[rows.seed.isin([0]) | rows.seed.isna()]))
    assert '(no interval)' in one and '[' not in one.split('\n\n')[0]
    for width in (80, 190):
        console = Console(width=width, record=True, file=open('/dev/null', 'w'))
        console.print(rich_table(table, 'x', width))
        out = console.export_text()
        assert '…' not in out and 'self_distill' in out and ('kNN' in out) == (width > 100)
    assert len(figure(rows).axes) == 2


@pytest.mark.parametrize('terminal', [False, True])
def test_live_view(terminal):
    file = io.StringIO()
    ok = dict(strategy='l2sp', lam=.1, lr=.05, seed=0, epochs=2, final=False, status='ok', error='', seconds=1.5, valid_acc1=.5, acc1=None, source_acc=None)
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


def test_readme_shows_the_shipped_results():
    readme, page, folder = prose(ROOT/'README.md'), prose(ROOT/'experiments/README.md'), ROOT/'experiments/results/moving_digits_paths'
    table, rows = pd.read_csv(folder/'table.csv'), pd.read_csv(folder/'runs.csv')
    again = summary(rows)
    for c in again: pd.testing.assert_series_equal(again[c], table[c], check_dtype=False, rtol=1e-4, atol=1e-9)
    assert markdown(table) == (folder/'table.md').read_text()
    head = markdown(table.drop(columns='mcnemar'), metrics=['acc1', 'source_acc', 'source_probe', 'other_probe']).split('\n\n')
    assert head[0] in readme and head[1].strip() in readme and markdown(table).split('\n\n')[0] in page
    found = {}
    for m in ('source_acc', 'source_probe'):
        a, b = (trade_off(rows, m, against) for against in ('finetune', 'self_distill'))
        texts = [trade_off_markdown(a, m), trade_off_markdown(b, m, 'self_distill'), margins_markdown(rows, m, 'self_distill')]
        assert (folder/f'trade_off_{m}.md').read_text() == '\n'.join(texts)
        for text in texts[:2 if m == 'source_probe' else 3]: assert text.split('\n\n')[0] in page
        found[m] = a.set_index('strategy'), b.set_index('strategy')
    # the figures of the README's paragraphs, and what is said of them
    shown = [head[1].strip()]
    def says(r, m='diff', sign='+', scale=100): return f'{scale*r[m]:{sign}.1f} [{scale*r[f"{m}_low"]:{sign}.1f}, {scale*r[f"{m}_high"]:{sign}.1f}]'
    four, (own, other), probe = ['fixed_teacher', 'ema_teacher', 'l2sp', 'ewc'], found['source_acc'], found['source_probe'][1]
    for s in four:
        shown.append(says(other.loc[s]))
        assert other.verdict[s] == 'not distinguishable'
    r = own.loc['self_distill']
    more = f'{100*r["diff"]:.1f} points [{100*r.diff_low:.1f}, {100*r.diff_high:.1f}] more'
    shown += [f'{100*r.matched:.1f} with self-distillation, {more}', f'self-distillation keeps {more} of what the encoder knew']
    assert r.verdict == 'better' and MARGIN == .01
    none, quarter = (trade_off(rows, 'source_acc', 'self_distill', margin=m).set_index('strategy') for m in (0., .0025))
    for s in four:
        shown.append(f'it keeps {says(-none.loc[s, ["diff", "diff_high", "diff_low"]].rename(dict(diff_high="diff_low", diff_low="diff_high")), sign="")} more')
        assert none.verdict[s] == 'worse' and quarter.verdict[s] == 'not distinguishable' and other.volume_verdict[s] == 'worse'
    r = -other.loc[other.volume_diff[four].idxmax(), ['volume_diff', 'volume_diff_high', 'volume_diff_low']].rename(dict(volume_diff_high='volume_diff_low', volume_diff_low='volume_diff_high'))
    shown.append(f'by {says(r, "volume_diff", "", 1)} points² or more')
    means = rows[rows.strategy != 'untouched'].groupby(['strategy', 'lam', 'lr'])[['acc1', 'source_acc']].mean()
    short = [100*(means.loc['finetune', 0., .05].acc1 - means.acc1[s].max()) for s in four]
    shown.append(f'by {min(short):.1f} to {max(short):.1f} points')
    assert means.acc1['self_distill'].max() > means.acc1['finetune'].max()
    whole, best = means.loc['lp_ft', 11.].iloc[0], means.loc['lp_ft', 3.].iloc[0]
    shown += [f'up to {says(other.loc["lp_ft"], sign="")} more', f'11 of the {Run().epochs} epochs on the head alone, target {100*whole.acc1:.1f})', f'(3 epochs, {100*best.acc1:.1f}, keeping {100*best.source_acc:.1f})']
    shown.append(f'by +{says(probe.loc["ewc"], sign="")}.')
    assert [s for s, v in probe.verdict.items() if v in ('better', 'worse')] == ['ewc']
    # the rest that is a number: settings, limits, and what other tests hold against results
    settings, gain = configparser.ConfigParser(), pd.read_csv(ROOT/'experiments/results/pretext/table.csv').query('strategy == "finetune"').none_diff.dropna()
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    times, pretext = re.search(r'\| (\d+) min; `--quick` ([\d½]+) min;', page), re.search(r'pretext_table.py` \((\d+) min (\d+) s\)', page)
    copies = [row['ratio_more_clips'] for f in (ROOT/'experiments/results/benchmarks').glob('prepared_*.json') for row in json.loads(f.read_text())['speed'] if row['source'] == 'copies']
    shown += [f'{len(PARTS["source"])} classes of digit and motion as the source, {len(PARTS["target"])} few-shot classes as the target', f'Python ≥ {settings["DEFAULT"]["min_python"]} and pip', f'about {times[1]} minutes on 2 CPU cores,  about {times[2]};',
              f'more than {MAX_PIXELS/1e6:.0f} million pixels or {MAX_ASPECT} times as long as wide', f'({pretext[1]} min)', f'by {gain.min():.1f} to {gain.max():.1f} points',
              'is exactly 0', 'changed by exactly 0', 'to 3)', '3D cubic puzzles', 'Table 1', 'Algorithm 1] to 1e-6', 'Apache-2.0']
    assert len(STRATEGIES) == 26 and 'twenty-six ways' in readme and rows.strategy.nunique() == 11 and '*Ten ways' in readme and 'decoded eight times as fast' in readme
    assert len(copies) == 2 and min(copies) >= 8 and 'half the learning rate' in readme and table.lr[0] == Run().lr/2 and int(pretext[2]) < 30
    text = re.sub(r'```.*?```|^ *\|.*?$|`[^`]*`', '', readme, flags=re.S | re.M)
    text = re.sub(r'\]\([^)]*\)', ']', text)
    for phrase in sorted(set(shown), key=len, reverse=True):
        assert phrase in text, phrase
        text = text.replace(phrase, '')
    assert not re.findall(r'.*(?:(?<![A-Za-z])\d|½).*', text)  # no number is left that nothing vouches for
    for name in ('moving_digits', 'moving_digits_all', 'moving_digits_source_bs64'):
        folder = ROOT/'experiments/results'/name
        text = markdown(summary(pd.read_csv(folder/'runs.csv')))
        assert (folder/'table.md').read_text() == text and text.split('\n\n')[0] in page, name
    for name in ('arid6_fights2_mobilenetv2', 'arid6_fights2_tiny'):
        folder = ROOT/'experiments/results'/name
        table, again = pd.read_csv(folder/'table.csv'), summary(pd.read_csv(folder/'runs.csv'))
        for c in again: pd.testing.assert_series_equal(again[c], table[c], check_dtype=False, rtol=1e-4, atol=1e-9)
        text = markdown(again.assign(mcnemar=table.mcnemar)[table.columns]).split('\n\n')[0]  # notes of the tasks stand below it
        assert (folder/'table.md').read_text().startswith(text + '\n\n') and text in page, name


def test_shipped_runs_are_complete():
    for folder in (ROOT/'experiments/results').iterdir():
        if not folder.is_dir() or folder.name == 'benchmarks': continue
        rows = pd.read_csv(folder/'runs.csv')
        if {'stage', 'method'} & set(rows): continue  # of a chain of tasks, see test_sequence.py; after pre-training, see test_pretrain.py
        # a column that came later is missing in a file from before it
        must = {'key', 'task', 'source', 'model', 'strategy', 'lam', 'seed', 'epochs', 'lr', 'valid_acc1', 'acc1', 'source_acc', 'source_probe', 'status', 'error', 'final', 'anchor'}
        assert must <= set(rows.columns) <= {*COLUMNS, 'anchor'} and (rows.strategy == 'untouched').sum() == 1
        final = rows[rows.final & (rows.strategy != 'untouched')]
        setting = [c for c in ('strategy', 'strategy_args', 'lam', 'lr') if c in final]
        assert final.groupby(setting, dropna=False).seed.apply(lambda s: tuple(sorted(s))).nunique() == 1, 'seeds are paired'
        assert rows[~rows.final].groupby('strategy').size().nunique() <= 1, 'each strategy has as many trials'
        assert rows[~rows.final].acc1.isna().all(), 'trials do not read test'


def test_the_pages_say_what_watching_costs():
    cost = json.loads((ROOT/'experiments/results/retention_curve.json').read_text())
    assert cost['ratio'] < 1.1 and cost['share'] < .1 and 'less than a tenth' in prose(ROOT/'README.md')  # the goal, and the claim
    assert cost['share'] == pytest.approx(np.median([r['share'] for r in cost['rows']])) and cost['ratio'] == pytest.approx(np.median([r['ratio'] for r in cost['rows']]))
    for text in (f'{cost["ratio"]:.2f} times as long', f'{cost["share"]:.1%} of the time'.replace('%', ' %'), f'{cost["clips"]} clips', f'{cost["low"]:.2f} to {cost["high"]:.2f}'): assert text in prose(ROOT/'experiments/README.md'), text


def test_the_results_page_shows_the_sweep():
    assert (ROOT/'experiments/results/lambda_sweep/table.md').read_text() in prose(ROOT/'experiments/README.md')


def test_the_docs_list_every_strategy_as_the_registry_has_it():
    page = prose(ROOT/'experiments/README.md')
    for name, s in STRATEGIES.items():
        formula, lams = s.formula.replace('|', '\\|'), ', '.join(f'{l:g}' for l in s.lams) or '(learning rates)'
        assert f'| `{name}` | {formula} | {lams} | {s.paper} |' in page, name


def test_the_page_shows_what_protection_costs():
    page, folder = prose(ROOT/'experiments/README.md'), ROOT/'experiments/results/benchmarks'
    nets = dict(r2plus1d_18='R(2+1)D-18', r2plus1d="the paper's R(2+1)D", c3d='C3D')
    nets_at_full = json.loads((folder/'step_112.json').read_text())['models'].values()
    handing_back = [[r[f'{w}_handing_back']['ratio']/r[w]['ratio'] for r in nets_at_full] for w in ('plain', 'self_distill')]
    assert 'a plain step takes {:.2f} to {:.2f} times as long when freed memory is returned, and a step of self-distillation {:.2f} to {:.2f} times'.format(*(f(v) for v in handing_back for f in (min, max))) in page
    for d in (json.loads((folder/f'step_{size}.json').read_text()) for size in (112, 56)):
        assert d['threads'] == 2 and d['kept_freed_memory'] and d['rounds'] == {112: 3, 56: 7}[d['size']]
        for net, name in nets.items():
            r = d['models'][net]
            cells = [f'{r[w]["ratio"]:.2f}' for w in ('fastai', 'plain_handing_back', 'self_distill_handing_back', 'self_distill', 'self_distill_bf16', 'l2sp', 'ewc')]
            median, least = (r['self_distill'][k]/r['fastai'][k] for k in ('median', 'min'))
            row = [f'{name}, {d["frames"]}x{d["size"]}x{d["size"]}', *cells, ', '.join(f'+{r[w]["added"]:.3f}' for w in ('l2sp', 'ewc')), f'{median:.2f} ({least:.2f})']
            assert '| ' + ' | '.join(row) + ' |' in page, row
            # what the page says of goals
            full = d['size'] == 112
            assert (median <= 1) == full and (least <= 1) == (full and net != 'c3d') and r['self_distill']['ratio'] > 1.22
            assert (r['self_distill_bf16']['ratio'] <= 1.12) == (full and net == 'r2plus1d_18') and all((round(r[w]['ratio'], 2) <= 1.02) == full for w in ('l2sp', 'ewc'))
    assert (ROOT/'experiments/results/teacher_precision/table.md').read_text().rstrip() in page
    tiny, large = ({m:{k:v['ratio'] for k, v in d['ways'].items()} | dict(error=d['error']) for m, d in json.loads((folder/f).read_text())['models'].items()} for f in ('fisher_tiny.json', 'fisher.json'))
    assert f'{tiny["tiny"]["fisher"]:.2f} (Fisher) and {tiny["tiny"]["mas"]:.2f} (MAS)' in page and f'takes {tiny["tiny"]["loop"]:.1f};' in page and tiny['tiny']['fisher'] > 1.4
    large = [large[m] for m in ('r2plus1d', 'r2plus1d_18', 'c3d')]
    assert "{:.2f} with the paper's R(2+1)D, {:.2f} with R(2+1)D-18, {:.2f} with C3D, where the loop takes {:.2f}, {:.2f} and {:.2f}".format(*(d[w] for w in ('fisher', 'loop') for d in large)) in page
    four = json.loads((folder/'fisher_4.json').read_text())
    assert four['chunk'] == 4 and '{:.2f}, {:.2f} and {:.2f} ([fisher_4.json]'.format(*(four['models'][m]['ways']['fisher']['ratio'] for m in ('r2plus1d', 'r2plus1d_18', 'c3d'))) in page
    assert all(d['fisher'] <= 1.4 and d['mas'] <= 1.4 for d in large) and f'by up to {100*max(d["error"] for d in large):.1f} %' in page
    s = {(r[''], r['n']):r['s'] for r in json.loads((folder/'scale.json').read_text())['rows']}
    assert 'built into a task in {:.1f} s, split in {:.1f}, their answers collected in {:.1f} and reported in {:.1f} s'.format(*(s[f'videos: {w}', 100_000] for w in ('build', 'split', 'collect', 'report'))) in page
    assert f'the status takes {s["runs: status", 9960]:.1f} s and the report {s["runs: report", 9960]:.1f}.' in page
    start = {r['module']:r for r in json.loads((folder/'startup.json').read_text())['rows']}
    rows = json.loads((folder/'throughput.json').read_text())['models']['tiny']['rows']
    assert 'on {:.0f} clips of 8x40x40 a second, {:.0f} with self-distillation'.format(*(rows['float32'][k] for k in ('plain', 'self_distill'))) in page
    assert 'default layout on {:.0f} and {:.0f}, compiled on {:.0f} and {:.0f}.'.format(*(rows[f'float32, {w}'][k] for w in ('contiguous', 'compiled') for k in ('plain', 'self_distill'))) in page
    assert f'`import sdfast` takes {start["sdfast"]["median"]:.2f} s' in page and f'{start["sdfast.all"]["ratio"]:.2f} times as long' in page


def test_the_page_shows_what_a_study_takes():
    page, (six, more) = prose(ROOT/'experiments/README.md'), json.loads((ROOT/'experiments/results/benchmarks/study.json').read_text())['rows']
    minutes, seconds = divmod(round(six['seconds']), 60)
    assert f'`python experiments/compare.py` takes {minutes} min {seconds} s from an empty cache with two workers' in page and six['workers'] == more['workers'] == 2 and six['seconds'] > 240 and not more['source']
    assert f'{six["source"]:.0f} s to train the source, {six["runs"]:.0f} for the {six["n_runs"]} runs and {six["beyond"]:.0f} to write the clips' in page
    assert f'after the study of six takes {more["seconds"]:.0f} s' in page and f'{more["runs"]:.0f} s are its {more["n_runs"]} runs' in page
    quick, _ = json.loads((ROOT/'experiments/results/benchmarks/study_quick.json').read_text())['rows']
    assert f'`--quick` takes {quick["seconds"]:.0f} s ([study_quick.json]' in page and quick['n_runs'] == 24
    # the same study with another source net
    folder = ROOT/'experiments/results/moving_digits_workers'
    table = summary(pd.read_csv(folder/'runs.csv'))
    assert (folder/'table.md').read_text() == markdown(table)
    old, new = (t.set_index('strategy') for t in (pd.read_csv(folder.with_name('moving_digits')/'table.csv'), table))
    def lost(s): return '{:.1f} points instead of {:.1f}'.format(*(100*(t.source_acc['untouched'] - t.source_acc[s]) for t in (new, old)))
    assert f'the untouched old head scores {100*new.source_acc["untouched"]:.1f} instead of {100*old.source_acc["untouched"]:.1f}. Of that, plain fine-tuning loses {lost("finetune")}, and self-distillation {lost("self_distill").replace(" points", "")}.' in page
    others = ['self_distill', 'fixed_teacher', 'ema_teacher', 'l2sp', 'ewc']
    for t in (old, new): assert (t.source_acc_verdict[others] == 'better').all() and (t.acc1_verdict[others] == 'not distinguishable').all()


def test_the_page_shows_what_reading_costs():
    page, folder = prose(ROOT/'experiments/README.md'), ROOT/'experiments/results/benchmarks'
    runs = [json.loads((folder/f'decode_{i}.json').read_text()) for i in (1, 2, 3)]
    avi, long = ([{r['reader']:r for r in d['groups'][g]['readers']} for d in runs] for g in ('UCF101 AVI', 'H.264, long GOP'))
    for who, name in dict(floor='floor', sdfast='sdfast', pyav='PyAV, straightforward code', torchcodec='torchcodec', decord='decord').items():
        cells = []
        for r, digits in ((avi[0][who], 2), (long[0][who], 1)):
            cells += [f'{r["ms_median"]:.{digits}f}', '1' if who == 'floor' else f'{r["ratio_to_floor"]:.2f}' + (f' [{r["low_to_floor"]:.2f}, {r["high_to_floor"]:.2f}]' if who == 'sdfast' else '')]
        assert '| ' + ' | '.join([name, *cells]) + ' |' in page
    three = ['{:.2f}, {:.2f} and {:.2f}'.format(*(r['sdfast']['ratio_to_floor'] for r in k)) for k in (avi, long)]
    faster = [r['decord']['slower_than_sdfast'] for r in avi]
    assert f'the three runs gave {three[0]} on the AVI' in page and f'and {three[1]} on H.264' in page and f'sdfast is {min(faster):.1f} to {max(faster):.1f} times as fast as decord' in page
    assert all(r['sdfast']['ratio_to_floor'] <= 1.5 for r in avi) and min(faster) >= 1.8 and all(r['sdfast']['ratio_to_floor'] <= 1.15 for r in long)
    load = json.loads((folder/'loader.json').read_text())
    rate = {r['workers']:f'{r["clips_a_second"]:.0f}' for r in load['rows']}
    assert f'gives {rate["0"]} clips a second in the loading process itself' in page and f'{rate["1"]}, {rate["2"]} and {rate["4"]} with 1, 2 and 4 workers' in page and f'{rate["0, from memory"]} from memory' in page
    assert f'take {load["crossing"]["transforms_ms_a_clip"]:.1f} ms a clip' in page
