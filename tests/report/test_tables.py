"The tables of a study."
import re
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from sdfast.metrics.columns import MEASURES
from sdfast.report.summary import summary
from sdfast.report.tables import chain_table, frame_table, strategy_table, trade_off_table

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shipped(): return summary(pd.read_csv(ROOT/'experiments/results/moving_digits/runs.csv'))


def test_a_row_has_means_differences_and_verdicts(rows):
    table = summary(rows)
    text = strategy_table(table).to_markdown()
    r = table.set_index('strategy').loc['self_distill']
    interval = f'[{100*r.acc1_diff_low:+.1f}, {100*r.acc1_diff_high:+.1f}]'
    assert f'{100*r.acc1:.1f} {100*r.acc1_diff:+.1f} {interval} better' in text
    assert '| untouched |  | – | 90.0 |' in text


def test_caption_counts_seeds(rows):
    assert 'means over 4 seeds,' in strategy_table(summary(rows)).caption
    one = rows[rows.seed.isin([0]) | rows.seed.isna()]
    assert 'means over 1 seed,' in strategy_table(summary(one)).caption


def test_one_seed_has_no_interval(rows):
    one = summary(rows[rows.seed.isin([0]) | rows.seed.isna()])
    text = strategy_table(one).to_markdown().split('\n\n')[0]
    assert '(no interval)' in text
    assert '[' not in text


@pytest.mark.parametrize('width', [80, 190])
def test_a_narrow_terminal_shows_the_main_columns(rows, width):
    console = Console(width=width, record=True, file=open('/dev/null', 'w'))
    console.print(strategy_table(summary(rows), title='x').to_rich(width))
    text = console.export_text()
    assert '…' not in text
    assert 'self_distill' in text
    assert ('kNN' in text) == (width > 100)


def test_columns_are_those_that_were_measured(shipped):
    titles = [c.title for c in strategy_table(shipped).columns]
    assert titles[:3] == ['strategy', 'strength', MEASURES['acc1'].title]
    assert MEASURES['other_probe'].title not in titles
    assert [c.title for c in strategy_table(shipped, ['drift', 'acc1']).columns][2:] == ['drift', 'target acc@1']


def test_latex_has_the_numbers_of_the_markdown(shipped):
    text, markdown = strategy_table(shipped).to_latex(), strategy_table(shipped).to_markdown()
    body = text[text.index('\\toprule'):text.index('\\bottomrule')]
    def numbers(s): return [float(x) for x in re.findall(r'[+-]\d+\.\d', s)]
    assert numbers(body) == numbers(markdown.split('\n\n')[0])
    r = shipped.set_index('strategy').loc['self_distill']
    assert f'self\\_distill & $\\lambda$ {r.lam:g} & {100*r.acc1:.1f} {100*r.acc1_diff:+.1f} [' in text
    assert '95 \\% t interval' in text


def test_latex_has_a_cell_for_each_column(shipped):
    text = strategy_table(shipped).to_latex()
    alignment = re.search(r'\\begin\{tabular\}\{(\w+)\}', text)[1]
    assert alignment == 'll' + 'r'*(len(alignment) - 2)
    body = text[text.index('\\toprule'):text.index('\\bottomrule')]
    counts = [re.sub(r'\\&', '', line).count('&') for line in body.split('\n') if line.endswith('\\\\')]
    assert counts == [len(alignment) - 1]*(len(shipped) + 1)


def test_latex_is_well_formed(shipped):
    text = strategy_table(shipped, ['acc1'], ['a note']).to_latex()
    assert not re.search(r'(?<!\\)[%#_]', text)
    assert text.count('{') == text.count('}')
    begin = r'\\begin\{table\}\n\\centering\n\\caption\{.*\}\n\\begin\{tabular\}\{llr\}\n\\toprule\n.*\n\\midrule\n'
    end = r'\\bottomrule\n\\end\{tabular\}\n\\end\{table\}\n'
    assert re.fullmatch(begin + r'(.* \\\\\n)+' + end, text)


def test_what_has_no_value_is_a_dash():
    names = ['matched', 'cost', 'cost_low', 'cost_high', 'diff', 'diff_low', 'diff_high',
             'volume_diff', 'volume_diff_low', 'volume_diff_high']
    r = dict.fromkeys(names, float('nan')) | dict(strategy='lwf', front='', volume=1.25, volume_low=1., volume_high=1.5)
    r |= dict(verdict='no interval', volume_verdict='no interval')
    row, = trade_off_table(pd.DataFrame([r])).rows
    assert [str(cell) for cell in row] == ['lwf', '–', '–', '–', '1.2', '']


def test_chain_table_names_tasks_and_marks_differences():
    metrics = {'average': .5, 'learned': .5, 'bwt': -.1, 'forgetting.a|b': .1, 'probe_average': .5, 'fwt': .1}
    row = dict(strategy='ewc', lam=1., lr=.1, runs=2, failed=1)
    for m, value in metrics.items():
        row |= {m: value, f'{m}_low': value - .1, f'{m}_high': value + .1}
        row |= {f'{m}_diff': .1, f'{m}_diff_low': .05, f'{m}_diff_high': .15, f'{m}_verdict': 'not distinguishable'}
    table = chain_table(pd.DataFrame([row | dict(bwt_verdict='better')]))
    titles = [c.title for c in table.columns]
    assert titles == ['strategy', 'strength', 'average accuracy', 'when learned', 'BWT', 'forgetting a|b',
                      'average, new probes', 'FWT, new probes']
    cells = [str(cell) for cell in table.rows[0]]
    assert cells[:3] == ['ewc', 'λ 1, 1 failed', '50.0 +10.0 [+5.0, +15.0]']
    assert cells[4] == '-10.0 +10.0* [+5.0, +15.0]'
    assert 'means over 2 seeds' in table.caption


def test_frame_table():
    frame = pd.DataFrame(dict(name=['a', None], x=[1/3, float('nan')], n=[1, 20000], chosen=[True, False]))
    table = frame_table(frame, 'numbers')
    assert table.title == 'numbers'
    assert [c.numeric for c in table.columns] == [False, True, True, False]
    assert table.rows == [['a', '0.3333', '1', 'yes'], ['–', '–', '20000', '']]
