"Rows of runs to a table (terminal, Markdown, csv) and a figure; and the live view of a study at work."
from collections.abc import Sequence

import pandas as pd
from rich.table import Table

from ..data.text import from_markdown
from ..metrics.columns import MEASURES, TABLE_COLUMNS
from .summary import MARGIN, MARGINS, has_strength, trade_off

__all__ = ['rich_table', 'markdown', 'trade_off_markdown', 'margins_markdown', 'latex']



def number(
    x:float,
    sign:str='', # '+': also of what is not negative
    digits:int=1, # Behind the point
)->str:
    "Text of a number; what rounds to 0 has no minus"
    return f'{round(float(x), digits) + 0.:{sign}.{digits}f}'


def cell_text(row, m):
    "Text of a metric: its mean, and its paired difference with interval and verdict where there is one"
    scale, digits = MEASURES[m].scale, MEASURES[m].digits
    def f(x, sign=''): return number(scale*x, sign, digits)
    if pd.isna(row[m]): return '–', ''
    if pd.isna(row.get(f'{m}_diff')): return f(row[m]), ''
    if pd.isna(row[f'{m}_diff_low']): return f(row[m]), f'{f(row[f"{m}_diff"], "+")} (no interval)'
    return f(row[m]), f'{f(row[f"{m}_diff"], "+")} [{f(row[f"{m}_diff_low"], "+")}, {f(row[f"{m}_diff_high"], "+")}] {row[f"{m}_verdict"]}'


def strength_text(row):
    if row.strategy == 'untouched': return ''
    return (f'λ {row.lam:g}' if has_strength(row.strategy) else f'lr {row.lr:g}') + (f', {row.failed} failed' if row.failed else '')


CAPTION = ('Accuracies in %, means over {n} seeds; {where} the paired difference to finetune with its 95 % t interval. Better, worse or not distinguishable: '
           'by the paired t test, {adjusted}. {mcnemar}Strengths chosen on valid parts, never on test.')
MCNEMAR = "McNemar's test compares the means over seeds of two strategies' answers video by video, unadjusted. "
ADJUSTED = dict(holm='adjusted for the number of strategies (Holm)', bh='with the false discovery rate over strategies held at 5 % (Benjamini-Hochberg)', none='not adjusted for the number of strategies')


def table_caption(table, where, method):
    return CAPTION.format(where=where, n=table.runs[table.strategy != 'untouched'].max(), adjusted=ADJUSTED[method], mcnemar=MCNEMAR if 'mcnemar' in table else '')


def rich_table(
    table:pd.DataFrame, # From `summary`
    title:str='', # Above it
    width:int=80, # Columns of the terminal
    notes:Sequence[str]=(), # What a reader must know of the tasks, below it
    method:str='holm', # How p values were adjusted
)->Table: # For rich's `print`
    "The summary for a terminal of `width` columns; a narrow one leaves out all but target, old head and probe. `notes` of its tasks stand below"
    metrics = [m for m in TABLE_COLUMNS if m in table and (width >= 30 + 22*sum(m in table for m in TABLE_COLUMNS) or m in ('acc1', 'source_acc', 'source_probe'))]
    t = Table(title=title, caption='\n'.join([table_caption(table, 'below', method), *notes]), show_lines=True)
    t.add_column('strategy', no_wrap=True)
    for m in metrics: t.add_column(MEASURES[m].title, justify='right', no_wrap=True)
    for _, row in table.iterrows():
        t.add_row(f'{row.strategy}\n{strength_text(row)}', *('\n'.join(filter(None, cell_text(row, m))).replace(' [', '\n[').replace('] ', ']\n').replace('not dis', 'not\ndis') for m in metrics))
    return t


def markdown(
    table:pd.DataFrame, # From `summary`
    notes:Sequence[str]=(), # What a reader must know of the tasks
    metrics:Sequence[str]|None=None, # Which columns; by default all of `TABLE_COLUMNS` that were measured
    method:str='holm', # How p values were adjusted
)->str: # Markdown
    "The summary as a Markdown table with its caption"
    metrics, test = [m for m in metrics or TABLE_COLUMNS if m in table], 'mcnemar' in table
    lines = ['| ' + ' | '.join(['strategy', 'strength', *(MEASURES[m].title for m in metrics)] + ['McNemar p']*test) + ' |', '|' + '---|'*2 + '--:|'*(len(metrics) + test)]
    for _, row in table.iterrows():
        cells = [row.strategy, strength_text(row), *(' '.join(filter(None, cell_text(row, m))) for m in metrics)] + (['' if pd.isna(row.mcnemar) else f'{row.mcnemar:.2g}'] if test else [])
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join([*lines, '', table_caption(table, "behind", method), *(f'\n- {n}' for n in notes[:1]), *(f'- {n}' for n in notes[1:]), ''])


def _ci(r, m, sign='', scale=100):
    "Text of a number of `trade_off` with its interval"
    if pd.isna(r[m]): return '–'
    def f(x): return number(scale*x, sign)
    return f(r[m]) + (' (no interval)' if pd.isna(r[f'{m}_low']) else f' [{f(r[f"{m}_low"])}, {f(r[f"{m}_high"])}]')


def _against(r, m='', scale=100):
    "Text of a difference of `trade_off` with interval and verdict"
    verdict = r[f'{m}verdict']
    return _ci(r, f'{m}diff', '+', scale) + ('' if verdict == 'no interval' else f' {verdict}')


def trade_off_markdown(
    table:pd.DataFrame, # From `trade_off`
    kept:str='source_probe', # As there
    against:str='finetune', # As there
    method:str='holm', # As there
)->str: # Markdown
    "What keeping costs, as a Markdown table with its caption"
    lines = [f'| strategy | kept at equal learning | forgotten | against {against}\'s path | volume, against {against}\'s | on the front |', '|---|--:|--:|--:|--:|---|']
    for _, r in table.iterrows():
        diff, volume = ('', _ci(r, 'volume', scale=1)) if r.strategy == against else (_against(r), f'{r.volume:.1f} {_against(r, "volume_", 1)}')
        lines.append(f'| {r.strategy} | {"–" if pd.isna(r.matched) else f"{100*r.matched:.1f}"} | {_ci(r, "cost") if "cost" in table else ""} | {diff} | {volume} | {r.front} |')
    return '\n'.join([*lines, '', f'{MEASURES[kept].title[0].upper()}{MEASURES[kept].title[1:]}, in %. Equal learning: the target accuracy of finetune, at its best learning rate on valid, less {100*MARGIN:g} point, on the path of a strategy\'s strengths; – if it nowhere '
                      f'learns that much. Forgotten: what the untouched encoder has more. 95 % t intervals of the jackknife over seeds, verdicts {ADJUSTED[method]}. Volume: '
                      'points² that a path dominates beyond finetune (less the same margin), paired by seed. A maximum over a path is optimistic, a little more over more settings.', ''])


def margins_markdown(
    rows:pd.DataFrame, # As for `trade_off`
    kept:str='source_probe', # As there
    against:str='finetune', # As there
    method:str='holm', # As there
)->str: # Markdown
    "Whether the differences of `trade_off` hang on its margin, as a Markdown table with its caption"
    tables = [trade_off(rows, kept, against, method=method, margin=m).set_index('strategy') for m in MARGINS]
    lines = ['| strategy | ' + ' | '.join(f'less {100*m:g}' for m in MARGINS) + ' |', '|---|' + '--:|'*len(MARGINS)]
    lines += [f'| {s} | ' + ' | '.join(_against(t.loc[s]) for t in tables) + ' |' for s in tables[0].index if s != against]
    return '\n'.join([*lines, '', f'{MEASURES[kept].title[0].upper()}{MEASURES[kept].title[1:]}: what each path keeps more than {against}\'s where both learn the target as well as finetune does, less so many points. '
                      f'Intervals and verdicts as above. With no margin a path counts from where it meets finetune\'s own accuracy, and chance decides whether it does: there the jackknife is rough. A dash: one of the two nowhere learns that much.', ''])


_TEX = {'\\':r'\textbackslash{}', '&':r'\&', '%':r'\%', '$':r'\$', '#':r'\#', '_':r'\_', '{':r'\{', '}':r'\}', '~':r'\textasciitilde{}', '^':r'\textasciicircum{}',
        '<':r'\textless{}', '>':r'\textgreater{}', '|':r'\textbar{}', 'λ':r'$\lambda$', '–':'--', '→':r'$\to$', '²':'$^2$'}


def latex_text(text): return ''.join(_TEX.get(c, c) for c in text)


def latex_table(head, rows, caption):
    body = [' & '.join(map(latex_text, row)) + r' \\' for row in rows]
    return '\n'.join([r'\begin{table}', r'\centering', f'\\caption{{{latex_text(caption)}}}', r'\begin{tabular}{l' + 'r'*(len(head) - 1) + '}', r'\toprule',
                      ' & '.join(map(latex_text, head)) + r' \\', r'\midrule', *body, r'\bottomrule', r'\end{tabular}', r'\end{table}', ''])


def latex(
    table:pd.DataFrame, # From `summary`
    metrics:Sequence[str]|None=None, # Which columns; by default all of `TABLE_COLUMNS` that were measured
    method:str='holm', # How p values were adjusted
    notes:Sequence[str]=(), # What a reader must know of the tasks, as Markdown: into the caption
)->str: # LaTeX
    "The summary as a LaTeX table; needs the package booktabs"
    metrics = [m for m in metrics or TABLE_COLUMNS if m in table]
    rows = [[r.strategy, strength_text(r), *(' '.join(filter(None, cell_text(r, m))) for m in metrics)] for _, r in table.iterrows()]
    return latex_table(['strategy', 'strength', *(MEASURES[m].title for m in metrics)], rows, ' '.join([table_caption(table, 'behind', method), *(f'{from_markdown(n).rstrip(".")}.' for n in notes)]))
