"""A table of results, written for a terminal, as Markdown, as LaTeX, or by the page's template.

Rows hold two kinds of cells. A `Cell` is a number that sdfast formatted. A plain `str` is text, often a name that
a user chose or that was read from a file: each format escapes it.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from rich.table import Table as RichTable
from rich.text import Text

from ..data.text import as_markdown, from_markdown

__all__ = ['Cell', 'Column', 'Table']

MISSING = '–'  # shown where there is no value
NO_INTERVAL = '(no interval)'  # shown after a number whose spread is unknown, such as that of a single seed


def number(
    x:float, # Any number
    sign:str='', # '+' to write the sign of positive numbers too
    digits:int=1, # Decimals
)->str: # Such as '-0.5'
    "Format a number; one that rounds to 0 has no minus"
    rounded = round(float(x), digits) + 0.
    return f'{rounded:{sign}.{digits}f}'


def count_of(
    n:int, # How many
    noun:str, # Of what, in the singular
    plural:str='', # By default with an s
)->str: # Such as '1 seed' or '6 seeds'
    "Write a number of things"
    return f'{n} {noun}' if n == 1 else f'{n} {plural or f"{noun}s"}'


def capitalised(
    text:str, # Any text
)->str: # The same, as it begins a sentence
    "Write the first letter as a capital, and leave the others"
    return text[:1].upper() + text[1:]


def _interval_text(low, high, scale, digits, sign):
    "Format an interval, or say that there is none"
    if pd.isna(low): return NO_INTERVAL
    return f'[{number(scale*low, sign, digits)}, {number(scale*high, sign, digits)}]'


@dataclass(frozen=True)
class Cell:
    "A number as a table shows it, and how it differs from a reference"
    mean: str = ''  # such as '89.5', or '–' where there is none
    diff: str = ''  # such as '+2.4'
    interval: str = ''  # of the last number before it, such as '[+1.4, +3.4]'
    verdict: str = ''  # 'better', 'worse' or 'not distinguishable'
    value: float|None = None  # unscaled, to sort by; `None` where there is none

    @classmethod
    def of(cls,
        mean:float, # Value; nan where there is none
        low:float|None=None, # Lower end of the interval of `diff`, or of `mean` without one; nan if it has none
        high:float|None=None, # Upper end
        diff:float|None=None, # Difference to a reference
        verdict:str|None=None, # Shown if there is an interval
        star:bool=False, # Mark the last number with an asterisk
        scale:float=1, # All numbers are multiplied by it: 100 shows a share in %
        digits:int=1, # Decimals
        sign:str='', # '+' to write the sign of a positive `mean`, where it is a difference itself
    )->'Cell':
        "Format a value, its difference to a reference, and the interval of the last of the two"
        if pd.isna(mean): return cls(MISSING)
        mark = '*' if star else ''
        mean_text, diff_text, interval = number(scale*mean, sign, digits), '', ''
        if diff is None:
            mean_text += mark
            if low is not None: interval = _interval_text(low, high, scale, digits, sign)
        elif not pd.isna(diff):
            diff_text = number(scale*diff, '+', digits) + mark
            interval = _interval_text(low, high, scale, digits, '+')
        if interval in ('', NO_INTERVAL): verdict = None
        return cls(mean_text, diff_text, interval, verdict or '', float(mean))

    @property
    def parts(self)->list[str]:
        "What the cell holds, one string for each part"
        return [p for p in (self.mean, self.diff, self.interval, self.verdict) if p]

    def __str__(self): return ' '.join(self.parts)


@dataclass(frozen=True)
class Column:
    "A column of a table"
    title: str  # its heading, plain text
    numeric: bool = True  # aligned right, and sorted by value in the page
    main: bool = True  # kept where the terminal is narrow
    hint: str = ''  # addition to the heading on the page: unit and direction


@dataclass(frozen=True)
class Table:
    "Columns, rows of cells, and notes for the reader"
    columns: Sequence[Column]  # from left to right
    rows: Sequence[Sequence]  # a list for each row, of a `Cell` or a `str` for each column
    caption: str = ''  # how to read the numbers, plain text
    notes: Sequence[str] = field(default_factory=list)  # notes on the data, as Markdown
    title: str = ''  # plain text
    headings: int = 1  # columns that name a row; a terminal and the page stack them

    def to_markdown(self)->str:
        "The table as Markdown, followed by its caption and its notes"
        rule = ''.join('--:|' if c.numeric else '---|' for c in self.columns)
        lines = [_markdown_row([c.title for c in self.columns]), f'|{rule}', *map(_markdown_row, self.rows)]
        text = '\n'.join(lines) + '\n'
        if self.caption: text += f'\n{self.caption}\n'
        if self.notes: text += '\n' + ''.join(f'- {n}\n' for n in self.notes)
        return text

    def _repr_markdown_(self): return self.to_markdown()

    def to_latex(self)->str:
        "The table as LaTeX, notes in its caption; needs the package booktabs"
        sentences = [self.caption, *(from_markdown(n).rstrip('.') + '.' for n in self.notes)]
        alignment = ''.join('r' if c.numeric else 'l' for c in self.columns)
        lines = [
            r'\begin{table}', r'\centering', rf'\caption{{{latex_text(" ".join(sentences))}}}',
            rf'\begin{{tabular}}{{{alignment}}}', r'\toprule', _latex_row([c.title for c in self.columns]), r'\midrule',
            *map(_latex_row, self.rows),
            r'\bottomrule', r'\end{tabular}', r'\end{table}']
        return '\n'.join(lines) + '\n'

    def to_rich(self,
        width:int=80, # Characters in a line of the terminal
    )->RichTable: # For rich's `print`
        "The table for a terminal; if it is too wide, only the main columns"
        shown: Sequence[int] = range(self.headings, len(self.columns))
        if self._width(shown) > width: shown = [i for i in shown if self.columns[i].main]
        notes = [from_markdown(n) for n in self.notes]
        caption = Text('\n'.join([self.caption, *notes]))
        out = RichTable(title=Text(self.title) if self.title else None, caption=caption, show_lines=True)
        out.add_column(Text(self.columns[0].title), no_wrap=True)
        for i in shown:
            column = self.columns[i]
            out.add_column(Text(column.title), justify='right' if column.numeric else 'left', no_wrap=column.numeric)
        for row in self.rows: out.add_row(self._row_name(row), *(Text(_stacked(row[i])) for i in shown))
        return out

    def _row_name(self, row): return Text('\n'.join(map(str, row[:self.headings])))

    def _width(self, shown):
        "Characters that the columns `shown` need next to the row names, frame and padding included"
        names = [self.columns[0].title, *(self._row_name(row).plain for row in self.rows)]
        columns = [names, *([self.columns[i].title, *(_stacked(row[i]) for row in self.rows)] for i in shown)]
        widths = [max(len(line) for text in texts for line in text.split('\n')) for texts in columns]
        return sum(w + 3 for w in widths) + 1


def _stacked(cell):
    "A cell with each part on a line of its own, to be as narrow as possible"
    if isinstance(cell, str): return cell
    return '\n'.join(cell.parts).replace('not distinguishable', 'not\ndistinguishable')


def _markdown_row(cells):
    texts = [as_markdown(c) if isinstance(c, str) else str(c) for c in cells]
    return '| ' + ' | '.join(texts) + ' |'


def _latex_row(cells): return ' & '.join(latex_text(str(c)) for c in cells) + r' \\'


# LaTeX for characters that it would read as commands, or that its fonts lack
LATEX = {
    '\\': r'\textbackslash{}', '~': r'\textasciitilde{}', '^': r'\textasciicircum{}',
    '<': r'\textless{}', '>': r'\textgreater{}', '|': r'\textbar{}',
    '&': r'\&', '%': r'\%', '$': r'\$', '#': r'\#', '_': r'\_', '{': r'\{', '}': r'\}',
    'λ': r'$\lambda$', '–': '--', '→': r'$\to$', '²': '$^2$',
}


def latex_text(
    text:str, # Any text
)->str: # LaTeX that shows it
    "Escape text for LaTeX"
    return ''.join(LATEX.get(c, c) for c in text)
