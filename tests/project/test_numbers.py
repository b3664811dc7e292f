"The numbers in the README and on the page of experiments are those of the committed results."
import configparser
import json
import re
from pathlib import Path

import pandas as pd
import pytest
import scipy
from pages import prose

from sdfast.data.ffmpeg import MAX_PIXELS
from sdfast.data.indexing import MAX_ASPECT
from sdfast.metrics.columns import COLUMNS
from sdfast.report.summary import summary
from sdfast.report.tables import margins_table, strategy_table, trade_off_table
from sdfast.report.trade_off import MARGIN, trade_off
from sdfast.strategies import STRATEGIES
from sdfast.study.config import Run

ROOT = Path(__file__).parents[2]
RESULTS = ROOT/'experiments/results'
PATHS = RESULTS/'moving_digits_paths'
OLD_SCIPY = tuple(map(int, scipy.__version__.split('.')[:2])) < (1, 17)
FOUR = ['fixed_teacher', 'ema_teacher', 'l2sp', 'ewc']  # not distinguishable from self-distillation


@pytest.fixture(scope='module')
def page(): return prose(ROOT/'experiments/README.md')


@pytest.fixture(scope='module')
def readme(): return prose(ROOT/'README.md')


@pytest.fixture(scope='module')
def rows(): return pd.read_csv(PATHS/'runs.csv')


@pytest.fixture(scope='module')
def table(): return pd.read_csv(PATHS/'table.csv')


@pytest.fixture(scope='module')
def costs(rows):
    "(what is kept, what it is compared with) -> trade-off"
    return {(m, against): trade_off(rows, m, against)
            for m in ('source_acc', 'source_probe') for against in ('finetune', 'self_distill')}


def assert_same(again, committed):
    "A table made again has the numbers of the committed one"
    for column in again:
        if '_bca_' in column and OLD_SCIPY: continue  # its bootstrap intervals differ in the third digit
        pd.testing.assert_series_equal(again[column], committed[column], check_dtype=False, rtol=1e-4, atol=1e-9)


def body(text): return text.split('\n\n')[0]


# ---- tables

@pytest.mark.parametrize('name', [
    'moving_digits', 'moving_digits_source_bs64',
    pytest.param('moving_digits_all', marks=pytest.mark.skipif(OLD_SCIPY, reason='one mean is at a tie of rounding'))])
def test_studies_of_the_embedded_task(page, name):
    text = strategy_table(summary(pd.read_csv(RESULTS/name/'runs.csv'))).to_markdown()
    assert (RESULTS/name/'table.md').read_text() == text
    assert body(text) in page


@pytest.mark.parametrize('name', ['arid6_fights2_mobilenetv2', 'arid6_fights2_tiny'])
def test_studies_of_real_videos(page, name):
    committed, again = pd.read_csv(RESULTS/name/'table.csv'), summary(pd.read_csv(RESULTS/name/'runs.csv'))
    assert_same(again, committed)
    text = body(strategy_table(again.assign(mcnemar=committed.mcnemar)[committed.columns]).to_markdown())
    assert (RESULTS/name/'table.md').read_text().startswith(text + '\n\n'), 'notes of the tasks follow'
    assert text in page


def test_study_of_paths(page, rows, table):
    assert_same(summary(rows), table)
    text = strategy_table(table).to_markdown()
    assert (PATHS/'table.md').read_text() == text
    assert body(text) in page


@pytest.mark.parametrize('kept, n_on_page', [('source_acc', 3), ('source_probe', 2)])
def test_what_keeping_costs(page, rows, costs, kept, n_on_page):
    tables = [trade_off_table(costs[kept, against], kept, against) for against in ('finetune', 'self_distill')]
    tables.append(margins_table(rows, kept, 'self_distill'))
    texts = [t.to_markdown() for t in tables]
    assert (PATHS/f'trade_off_{kept}.md').read_text() == '\n'.join(texts)
    for text in texts[:n_on_page]: assert body(text) in page


def test_the_page_shows_the_sweep(page): assert (RESULTS/'lambda_sweep/table.md').read_text() in page


def test_the_page_lists_every_strategy_as_the_registry_has_it(page):
    for name, strategy in STRATEGIES.items():
        formula = strategy.formula.replace('|', '\\|')
        lams = ', '.join(f'{lam:g}' for lam in strategy.lams) or '(learning rates)'
        assert f'| `{name}` | {formula} | {lams} | {strategy.paper} |' in page, name


# ---- paragraphs on what keeping costs

def interval(r, m='diff', sign='+', scale=100):
    "A number of a trade-off as the page writes it"
    low, high = scale*r[f'{m}_low'], scale*r[f'{m}_high']
    return f'{scale*r[m]:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]'


def negative(r, m='diff'):
    "The difference the other way round"
    return pd.Series({m: -r[m], f'{m}_low': -r[f'{m}_high'], f'{m}_high': -r[f'{m}_low']})


@pytest.fixture(scope='module')
def against_self_distill(costs): return costs['source_acc', 'self_distill'].set_index('strategy')


def self_distillation_phrases(costs):
    "What self-distillation keeps more than plain fine-tuning"
    r = costs['source_acc', 'finetune'].set_index('strategy').loc['self_distill']
    assert r.verdict == 'better'
    assert MARGIN == .01
    more = f'{interval(r, sign="").replace(" [", " points [")} more'
    return [f'{100*r.matched:.1f} with self-distillation, {more}']


def peer_phrases(rows, against_self_distill):
    "How four others compare with self-distillation, at the margin and without one"
    phrases = []
    none, quarter = (trade_off(rows, 'source_acc', 'self_distill', margin=m).set_index('strategy') for m in (0., .0025))
    for s in FOUR:
        assert against_self_distill.verdict[s] == quarter.verdict[s] == 'not distinguishable'
        assert against_self_distill.volume_verdict[s] == none.verdict[s] == 'worse'
        phrases.append(interval(against_self_distill.loc[s]))
        phrases.append(f'it keeps {interval(negative(none.loc[s]), sign="")} more')
    nearest = against_self_distill.loc[against_self_distill.volume_diff[FOUR].idxmax()]
    volume = interval(negative(nearest, 'volume_diff'), 'volume_diff', '', 1)
    return [*phrases, f'by {volume} points² or more']


def learning_phrases(rows, against_self_distill):
    "How much of the target each learns"
    means = rows[rows.strategy != 'untouched'].groupby(['strategy', 'lam', 'lr'])[['acc1', 'source_acc']].mean()
    short = [100*(means.loc['finetune', 0., .05].acc1 - means.acc1[s].max()) for s in FOUR]
    assert means.acc1['self_distill'].max() > means.acc1['finetune'].max()
    whole, best = means.loc['lp_ft', 11.].iloc[0], means.loc['lp_ft', 3.].iloc[0]
    return [
        f'by {min(short):.1f} to {max(short):.1f} points',
        f'up to {interval(against_self_distill.loc["lp_ft"], sign="")} more',
        f'11 of the {Run().epochs} epochs on the head alone, target {100*whole.acc1:.1f})',
        f'(3 epochs, {100*best.acc1:.1f}, keeping {100*best.source_acc:.1f})']


def probe_phrases(costs):
    "Which one differs from self-distillation by a new probe"
    probe = costs['source_probe', 'self_distill'].set_index('strategy')
    assert [s for s, v in probe.verdict.items() if v in ('better', 'worse')] == ['ewc']
    return [f'by +{interval(probe.loc["ewc"], sign="")}.']


def test_paragraphs_on_what_keeping_costs(page, rows, costs, against_self_distill):
    phrases = [*self_distillation_phrases(costs), *peer_phrases(rows, against_self_distill),
               *learning_phrases(rows, against_self_distill), *probe_phrases(costs)]
    for phrase in phrases: assert phrase in page, phrase


@pytest.fixture(scope='module')
def slow_encoder():
    "measure -> paired differences, self-distillation at λ = 30 less the slow encoder: mean and 95 % t interval"
    runs = pd.read_csv(RESULTS/'encoder_lr/runs.csv').set_index(['strategy', 'lam', 'seed']).sort_index()
    found = {}
    for m in ('source_acc', 'acc1'):
        d = 100*(runs.loc[('self_distill', 30.)][m] - runs.loc[('slow_encoder', 7.)][m])
        half = scipy.stats.t.ppf(.975, len(d) - 1)*d.std()/len(d)**.5
        found[m] = d.mean(), d.mean() - half, d.mean() + half
    return found


def test_a_lower_learning_rate_for_the_encoder(page, readme, slow_encoder):
    assert (RESULTS/'encoder_lr/table.md').read_text().strip() in (ROOT/'experiments/README.md').read_text()
    kept, learned = slow_encoder['source_acc'], slow_encoder['acc1']
    assert kept[1] < 0 < kept[2] and learned[1] > 0
    assert 'keeps {:+.1f} points [{:+.1f}, {:+.1f}] more than the slow encoder'.format(*kept) in page
    assert 'learns it {:+.1f} points [{:+.1f}, {:+.1f}] better'.format(*learned) in page
    assert f'while the target is learned {learned[0]:.1f} points less well' in readme


# ---- the README

NAMES = dict(untouched='untouched encoder', finetune='plain fine-tuning',
             self_distill='self-distillation (`SelfDistill`)', lp_ft='head first, then everything (`LPFT`)')


def readme_row(row):
    "Means in %; a star where the strategy is better than plain fine-tuning"
    cells = []
    for m in ('acc1', 'source_acc', 'source_probe'):
        better = row.get(f'{m}_verdict') == 'better'
        cells.append('–' if pd.isna(row[m]) else f'{100*row[m]:.1f}{" *" if better else ""}')
    strength = f', λ = {row.lam:g}' if row.strategy == 'self_distill' else ''
    return f'| {NAMES[row.strategy]}{strength} | {" | ".join(cells)} |'


def test_table_of_the_readme(readme, table):
    for _, row in table[table.strategy.isin(NAMES)].iterrows(): assert readme_row(row) in readme
    text = strategy_table(table).caption
    assert 'Means over 6 seeds' in readme and 'means over 6 seeds' in text
    assert 'paired t test' in text and 'Holm' in text


def setting_phrases(page):
    "Settings, limits and times"
    settings = configparser.ConfigParser()
    settings.read(ROOT/'settings.ini', encoding='utf-8')
    pretext_table = pd.read_csv(RESULTS/'pretext/table.csv')
    gain = pretext_table.query('strategy == "finetune"').none_diff.dropna()
    minutes, quick_minutes = re.search(r'\| (\d+) min; `--quick` ([\d½]+) min;', page).groups()
    pretext_minutes, pretext_seconds = re.search(r'pretext_table.py` \((\d+) min (\d+) s\)', page).groups()
    assert int(pretext_seconds) < 30, 'minutes are rounded down'
    return [
        f'Python ≥ {settings["DEFAULT"]["min_python"]}.',
        f'about {minutes} minutes on 2 CPU cores ( about {quick_minutes})',
        f'more than {MAX_PIXELS/1e6:.0f} million pixels or {MAX_ASPECT} times as long as wide',
        f'({pretext_minutes} min)', f'by {gain.min():.1f} to {gain.max():.1f} points']


# what other tests hold against results, and names
HELD_ELSEWHERE = [
    'is exactly 0', 'changed by exactly 0', 'to 3)', '3D cubic puzzles', 'Table 1', 'Algorithm 1] to 1e-6',
    'Apache-2.0', 'Something-Something v2', 'V-JEPA 2', 'Means over 6 seeds',
    'start at λ = 10', 'learned 0.4 points less well', 'exit status 1']


def test_the_advised_strength_is_safe(readme, rows, table):
    "The README starts at λ = 10 and goes up in steps of three; the collapse is two steps above the table's strength"
    path = rows[rows.strategy == 'self_distill'].groupby('lam')[['acc1', 'source_acc']].mean()
    plain = table.set_index('strategy').loc['finetune']
    assert 'start at λ = 10' in readme and readme.count('SelfDistill(lam=10)') == 3
    assert (path.loc[3:100] > [plain.acc1, plain.source_acc - .005]).all(axis=None)
    assert path.source_acc[300] < .5


def test_every_number_in_the_readme(readme, page):
    text = re.sub(r'```.*?```|^ *\|.*?$|`[^`]*`', '', readme, flags=re.S | re.M)
    text = re.sub(r'\]\([^)]*\)', ']', text)
    for phrase in sorted({*setting_phrases(page), *HELD_ELSEWHERE}, key=len, reverse=True):
        assert phrase in text, phrase
        text = text.replace(phrase, '')
    assert not re.findall(r'.*(?:(?<![A-Za-z])\d|½).*', text), 'a number that no test holds against a result'


def test_numbers_in_words(readme, rows, table):
    assert pd.read_csv(RESULTS/'moving_digits_all/runs.csv').query('strategy != "untouched"').strategy.nunique() == 26
    assert 'twenty-six strategies' in readme  # whose results are linked
    assert rows.strategy.nunique() == 11
    assert 'intervals and seven other strategies' in readme


def test_prepared_copies_are_decoded_eight_times_as_fast(readme):
    files = sorted((RESULTS/'benchmarks').glob('prepared_*.json'))
    speeds = [row for f in files for row in json.loads(f.read_text())['speed'] if row['source'] == 'copies']
    assert len(speeds) == 2
    assert min(row['ratio_more_clips'] for row in speeds) >= 8
    assert 'decoded eight times as fast' in readme


# ---- rows

NEEDED = {
    'key', 'task', 'source', 'model', 'strategy', 'lam', 'seed', 'epochs', 'lr', 'valid_acc1', 'acc1', 'source_acc',
    'source_probe', 'status', 'error', 'final', 'anchor'}
# chains of tasks and pre-training have tests of their own
COMPARISONS = [f.parent.name for f in sorted(RESULTS.glob('*/runs.csv'))
               if not {'stage', 'method'} & set(pd.read_csv(f, nrows=0))]


@pytest.mark.parametrize('name', COMPARISONS)
def test_shipped_runs_are_complete(name):
    rows = pd.read_csv(RESULTS/name/'runs.csv')
    known = {*COLUMNS, 'anchor', 'cka_biased'}
    assert NEEDED <= set(rows.columns) <= known, 'a column that came later may be missing'
    assert (rows.strategy == 'untouched').sum() == 1
    final = rows[rows.final & (rows.strategy != 'untouched')]
    setting = [c for c in ('strategy', 'strategy_args', 'lam', 'lr') if c in final]
    seeds = final.groupby(setting, dropna=False).seed.apply(lambda s: tuple(sorted(s)))
    trials = rows[~rows.final]
    assert seeds.nunique() == 1, 'seeds are paired'
    assert trials.groupby('strategy').size().nunique() <= 1, 'each strategy has the same number of trials'
    assert trials.acc1.isna().all(), 'trials do not read test'
