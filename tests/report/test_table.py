"The table model and its formats."
import re
from dataclasses import replace

import pytest
from made_study import CLASSES, EVIL
from rich.console import Console

from sdfast.data.text import as_markdown
from sdfast.report.table import Cell, Column, Table, latex_text, number

NAN = float('nan')


def test_a_number_that_rounds_to_zero_has_no_minus():
    assert number(-.04) == '0.0'
    assert number(-.04, '+') == '+0.0'
    assert number(-.06, '+') == '-0.1'
    assert number(.12345, digits=3) == '0.123'


def test_a_cell_with_a_difference():
    cell = Cell.of(.895, .014, .034, .024, 'better', scale=100)
    assert cell.parts == ['89.5', '+2.4', '[+1.4, +3.4]', 'better']
    assert str(cell) == '89.5 +2.4 [+1.4, +3.4] better'
    assert cell.value == .895


@pytest.mark.parametrize('cell, text', [
    (Cell.of(NAN, .1, .2, .1, 'better'), '–'),
    (Cell.of(.5, NAN, NAN, .1, 'no interval'), '0.5 +0.1 (no interval)'),
    (Cell.of(.5, NAN, NAN, NAN, None), '0.5'),
    (Cell.of(.5), '0.5'),
    (Cell.of(.5, .4, .6), '0.5 [0.4, 0.6]'),
    (Cell.of(.5, NAN, NAN), '0.5 (no interval)'),
    (Cell.of(.5, .4, .6, verdict='better', sign='+'), '+0.5 [+0.4, +0.6] better'),
    (Cell.of(.5, .4, .6, .5, star=True), '0.5 +0.5* [+0.4, +0.6]'),
    (Cell.of(.5, star=True), '0.5*'),
    (Cell(), ''),
])
def test_cells(cell, text): assert str(cell) == text


@pytest.fixture
def table():
    names = [Column('strategy', numeric=False), Column('strength', numeric=False)]
    columns = [*names, Column('a|b', main=False), Column('kept')]
    rows = [
        ['self_distill', 'λ 1', Cell.of(.5), Cell.of(2., .4, .6, .5, 'not distinguishable')],
        ['<b>', '', Cell(), Cell('–')]]
    return Table(columns, rows, 'What it is.', ['one \\[x\\]', 'two'], 'title [b]', headings=2)


def test_markdown(table):
    assert table.to_markdown() == '''\
| strategy | strength | a\\|b | kept |
|---|---|--:|--:|
| self_distill | λ 1 | 0.5 | 2.0 +0.5 [+0.4, +0.6] not distinguishable |
| \\<b\\> |  |  | – |

What it is.

- one \\[x\\]
- two
'''


def test_markdown_without_notes_ends_with_the_caption(table):
    assert replace(table, notes=[]).to_markdown().endswith('| – |\n\nWhat it is.\n')


def test_latex(table):
    assert table.to_latex() == r'''\begin{table}
\centering
\caption{What it is. one [x]. two.}
\begin{tabular}{llrr}
\toprule
strategy & strength & a\textbar{}b & kept \\
\midrule
self\_distill & $\lambda$ 1 & 0.5 & 2.0 +0.5 [+0.4, +0.6] not distinguishable \\
\textless{}b\textgreater{} &  &  & -- \\
\bottomrule
\end{tabular}
\end{table}
'''


def printed(table, width):
    console = Console(width=width, record=True, file=open('/dev/null', 'w'))
    console.print(table.to_rich(width))
    return console.export_text()


def test_terminal_shows_what_fits(table):
    wide, narrow = printed(table, 80), printed(table, 39)
    assert 'a|b' in wide
    assert 'a|b' not in narrow
    for text in (wide, narrow):
        assert 'self_distill' in text
        assert 'λ 1' in text
        assert '…' not in text


def test_terminal_reads_no_markup(table):
    text = printed(table, 80)
    assert 'title [b]' in text
    assert 'one [x]' in text
    assert '[+0.4, +0.6]' in text


# ---- LaTeX: any text is shown, and none is run

UNTEX = {
    r'\textbackslash{}': '\\', r'\textasciitilde{}': '~', r'\textasciicircum{}': '^', r'\textless{}': '<',
    r'\textgreater{}': '>', r'\textbar{}': '|', r'$\lambda$': 'λ', r'$\to$': '→', '$^2$': '²', '--': '–'}


def untex(text):
    "What LaTeX sets for text, by a reader of its own: any other command or bare special character is an error"
    tokens = '|'.join(map(re.escape, UNTEX)) + r'|\\[&%$#_{}]|[^\\&%$#_{}~^<>|]'
    assert ''.join(m[0] for m in re.finditer(tokens, text, re.S)) == text, text
    return re.sub(tokens, lambda m: UNTEX.get(m[0], m[0][-1]), text, flags=re.S)


@pytest.mark.parametrize('text', [
    EVIL, *CLASSES, r'\input{/etc/passwd} 100%~#^{}|', '$$ \\ \\\\ & [x] *', 'λ 0.1 → 2 points², –'])
def test_latex_shows_any_text_and_runs_none(text): assert untex(latex_text(text)) == text


def test_notes_are_in_the_caption_of_the_latex(table):
    notes = [f'{as_markdown("a_&_b*")}: 1 of 15 videos are missing', 'two']
    text = replace(table, caption='100 % never on test.', notes=notes).to_latex()
    caption = re.search(r'\\caption\{(.*)\}\n', text)[1]
    assert untex(caption) == '100 % never on test. a_&_b*: 1 of 15 videos are missing. two.'
