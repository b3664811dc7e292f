"Tables 1 and 2 of the paper from runs, next to the printed numbers."
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..stats import Difference, mcnemar, mean_interval, paired_difference, proportion_interval
from ..study.config import RSPNET
from ..study.paper import (
    DATA_SETS,
    LAMS,
    NAMES,
    OPEN_IN_PAPER,
    PRINTED,
    QUOTED,
    RECIPES,
    RSPNET_START,
    SELECTIONS,
    PaperCell,
    PaperStudy,
)
from .table import Cell, Column, Table, number

__all__ = ['table_2', 'table_1', 'paper_markdown', 'paper_notes']

COLUMNS = ['encoder', 'data', 'method', 'lam', 'selection', 'printed_acc1', 'printed_acc5', 'acc1', 'acc1_low',
           'acc1_high', 'acc5', 'diff', 'diff_low', 'diff_high', 'mcnemar', 'valid_acc1', 'runs', 'failed', 'clips',
           'start']


# ---- numbers

def table_2(
    cells:Sequence[PaperCell], # From `PaperStudy.plan`
    results:dict, # Key of a run -> its row, with `n_test`, for the runs that were done
    out:str|Path, # Folder of the study, which has the scores of each run
    study:PaperStudy, # Its strengths and selections are the rows
)->pd.DataFrame: # A row for each encoder, data set, strength and selection; accuracies in %
    "Accuracies with intervals; paired differences to the baseline, with McNemar's test on the videos"
    rows = []
    for cell, lam, kind in product(cells, (0., *study.lams), study.selections):
        printed = PRINTED.get((cell.encoder, cell.data, lam), (np.nan, np.nan))
        row = dict(encoder=cell.encoder, data=cell.data, lam=lam, selection=SELECTIONS[kind], printed_acc1=printed[0],
                   printed_acc5=printed[1], start=cell.start)
        mine = [results[r.key] for r in cell.select(lam, kind) if r.key in results]
        ok = [r for r in mine if r['status'] == 'ok']
        row |= dict(runs=len(ok), failed=len(mine) - len(ok))
        if ok: row |= measure_accuracy(ok, kind)
        if ok and lam:
            baseline = [results[r.key] for r in cell.select(0., kind) if r.key in results]
            row |= compare_with_baseline(ok, baseline, out, kind)
        rows.append(row)
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


def measure_accuracy(ok, kind):
    "Top-1 with its interval and top-5 in %: over seeds, or of one run over its videos"
    prefix = score_prefix(kind)
    if len(ok) > 1: acc1 = mean_interval([100*r[f'{prefix}acc1'] for r in ok])
    else: acc1 = share_interval(ok[0][f'{prefix}acc1'], ok[0]['n_test'])
    acc5 = 100*np.mean([r[f'{prefix}acc5'] for r in ok])
    row = dict(acc1=acc1.mean, acc1_low=acc1.low, acc1_high=acc1.high, acc5=acc5, clips=ok[0]['n_test'])
    if kind == 'valid': row['valid_acc1'] = 100*np.mean([r['best_valid_acc1'] for r in ok])
    return row


def share_interval(share, n)->Difference:
    "Wilson's interval of a share of `n` videos, in %"
    d = proportion_interval(round(share*n), n)
    return replace(d, mean=100*d.mean, low=100*d.low, high=100*d.high)


def compare_with_baseline(ok, baseline, out, kind):
    "Difference of top-1 paired by seed, in points, and the median over seeds of McNemar's p"
    base = {r['seed']:r for r in baseline if r['status'] == 'ok'}
    pairs = [(r, base[r['seed']]) for r in ok if r['seed'] in base]
    if not pairs: return {}
    column = f'{score_prefix(kind)}acc1'
    diff = paired_difference([100*a[column] for a, _ in pairs], [100*b[column] for _, b in pairs])
    p = [mcnemar(right_answers(out, a, kind), right_answers(out, b, kind)) for a, b in pairs]
    return dict(diff=diff.mean, diff_low=diff.low, diff_high=diff.high, mcnemar=np.median(p))


def score_prefix(kind):
    "Columns of the epoch that a selection tests: under the paper protocol that of the best on test"
    return 'best_' if kind == 'paper' else ''


def right_answers(out, row, kind):
    "For each test video whether a run classified it correctly"
    name = 'scores_best.csv' if kind == 'paper' else 'scores.csv'
    scores = pd.read_csv(Path(out)/'runs'/row['key']/name, dtype=dict(label=str), keep_default_na=False)
    answers = scores.drop(columns=['path', 'label']).idxmax(axis=1)
    return answers.to_numpy() == scores.label.to_numpy()


def table_1(
    table:pd.DataFrame, # From `table_2`
    selections:Sequence[str], # Of `SELECTIONS`
)->pd.DataFrame: # A row for each encoder, data set, method and selection
    """Quoted methods, the baseline, and self-distillation with the strength that a selection may choose

    The paper protocol chooses by test accuracy, as the paper does. The others choose by valid accuracy, or without
    one take the best of the printed numbers."""
    rows = []
    groups: Any = table.groupby(['encoder', 'data'], sort=False)  # to pandas keys are only hashable, not strings
    for (encoder, data), group in groups:
        cell = dict(encoder=encoder, data=data)
        for (of, method), values in QUOTED.items():
            if of != encoder: continue
            printed = values[DATA_SETS.index(data)]
            quoted = cell | dict(method=method, printed_acc1=printed)
            rows += [quoted | dict(selection=SELECTIONS[kind]) for kind in selections]
        best_printed = max(LAMS, key=lambda lam: PRINTED[encoder, data, lam][0])
        printed_acc1, printed_acc5 = PRINTED[encoder, data, best_printed]
        valid = group[(group.selection == SELECTIONS['valid']) & (group.lam > 0)]
        on_valid = valid.set_index('lam').valid_acc1.dropna()
        for kind in selections:
            mine = group[group.selection == SELECTIONS[kind]].set_index('lam', drop=False)
            start = mine.start.iloc[0]
            baseline = 'RSPNet, 100 epochs' if start == RSPNET_START else f'{start}, in place of RSPNet'
            rows.append(dict(mine.loc[0.], method=baseline))
            scores = mine.acc1.drop(0.).dropna() if kind == 'paper' else on_valid
            lam = scores.idxmax() if len(scores) else best_printed
            row = dict(mine.loc[lam]) if lam in mine.index else cell | dict(selection=SELECTIONS[kind])
            rows.append(row | dict(method='self-distillation', printed_acc1=printed_acc1, printed_acc5=printed_acc5))
    return pd.DataFrame(rows).reindex(columns=COLUMNS)


# ---- text

def paper_markdown(
    table:pd.DataFrame, # From `table_1` or `table_2`
    selections:Sequence[str], # Of `SELECTIONS`, the columns
    notes:Sequence[str]=(), # What a reader must know
)->str: # Markdown, a table a data set
    "Write a table of the paper, ours next to the printed numbers"
    parts = []
    by_data: Any = table.groupby('data', sort=False)  # to pandas keys are only hashable, not strings
    for data, rows in by_data:
        first = 'method' if rows.method.notna().all() else 'λ'
        head = ['encoder', first, 'printed', *(SELECTIONS[kind] for kind in selections)]
        shown = []
        labels = rows.method if first == 'method' else rows.lam.map(lambda lam: f'{lam:g}' if lam else 'baseline')
        for (encoder, label), group in rows.groupby(['encoder', labels], sort=False):
            ours = {r.selection:r for _, r in group.iterrows()}
            cells = [ours_text(ours[SELECTIONS[kind]]) if SELECTIONS[kind] in ours else '' for kind in selections]
            shown.append([_encoder_text(encoder, group), label, *map(Cell, [printed_text(group.iloc[0]), *cells])])
        made = Table([Column(title, numeric=False) for title in head], shown)
        n = rows.clips.dropna()
        on = f' of {n.iloc[0]:.0f} test videos' if len(n) else ''
        parts.append(f'**{NAMES[data]}**, top-1 / top-5 in %{on}\n\n{made.to_markdown()}\n')
    return ''.join([*parts, *(f'- {n}\n' for n in notes)])


def _encoder_text(encoder, group):
    "Its name in the paper, and what takes its place"
    others = [s for s in group.start.dropna().unique() if s != RSPNET_START]
    return f'{NAMES[encoder]}: {others[0]}' if others else NAMES[encoder]


def printed_text(row):
    if pd.isna(row.printed_acc1): return ''
    acc5 = '–' if pd.isna(row.printed_acc5) else f'{row.printed_acc5:.1f}'
    return f'{row.printed_acc1:.1f} / {acc5}'


def ours_text(row):
    "Top-1 with interval, top-5; against the baseline the difference and McNemar's p; runs that failed"
    if pd.isna(row.runs) or not row.runs + row.failed: return ''
    if not row.runs: return f'{row.failed} of {row.failed} failed'
    where = ' (no interval)' if pd.isna(row.acc1_low) else f' [{row.acc1_low:.1f}, {row.acc1_high:.1f}]'
    parts = [f'{row.acc1:.1f}{where} / {row.acc5:.1f}']
    if row.lam and pd.notna(row.method): parts.append(f'λ {row.lam:g}')
    if pd.notna(row['diff']):
        interval = '' if pd.isna(row.diff_low) else f' [{number(row.diff_low, "+")}, {number(row.diff_high, "+")}]'
        parts.append(f'{number(row["diff"], "+")}{interval}, p {row.mcnemar:.2g}')
    if row.failed: parts.append(f'{row.failed} failed')
    return '; '.join(parts)


def paper_notes(
    study:PaperStudy, # What was done
    cells:Sequence[PaperCell], # From its `plan`
    chosen:bool=False, # Whether strengths were chosen, as in table 1
)->list[str]: # Sentences
    "Explain what the numbers mean, and where the runs leave the protocol"
    one = cells[0].runs[0]
    schedule = 'cosine to lr/1000 by epoch' if one.schedule == 'epoch_cosine' else one.schedule
    notes = [f'λ·distance with reduction={study.reduction!r}, teacher_bn={study.teacher_bn!r}; fold {study.fold}; '
             f'{schedule}; test accuracy of the mean logits of {one.clips} clips a video.']
    if study.seeds > 1:
        notes.append(f"Intervals (95 %) are Student's t over {study.seeds} seeds. They are followed by the paired "
                     "difference to the baseline with its interval and McNemar's exact p per video, the median over "
                     "seeds, not corrected for the number of cells.")
    else:
        notes.append("Intervals (95 %) are Wilson's over test videos, of one trained model: the spread of repeated "
                     "training is not in them. They are followed by the paired difference to the baseline and "
                     "McNemar's exact p per video, not corrected for the number of cells.")
    explained = dict(last='last epoch: trained on all of train.',
                     valid=f'best on valid: {study.valid_frac:.0%} of train held out by group, the epoch chosen on it.',
                     paper='paper protocol: trained on all of train, the epoch chosen by one-clip accuracy on test. '
                           'Too high by construction; to be compared with the printed numbers only.')
    notes += [explained[kind] for kind in SELECTIONS if kind in study.selections]
    assumed = '; '.join(f'{what} ({taken})' for what, taken in OPEN_IN_PAPER.items())
    notes.append(f'The paper does not say, so these are assumptions: {assumed}.')
    other = protocol_differences(cells)
    if other: notes.append(f"NOT the paper's protocol: {', '.join(other)}.")
    if chosen:
        fallback = '' if 'valid' in study.selections else ', or without one the best of the printed numbers'
        notes.append('λ of table 1: for the paper protocol the best on test, as the paper does; else the best on valid'
                     f'{fallback}.')
    return notes


def protocol_differences(cells):
    "What the runs do differently from the paper's code base"
    one = cells[0].runs[0]
    shared = ('epochs', 'frames', 'size', 'clips')
    found = []
    for cell in {c.encoder:c for c in cells}.values():
        run = cell.runs[0]
        for name, usual in RECIPES[cell.encoder].items():
            found.append((f'{NAMES[cell.encoder]} {name}', getattr(run, name), usual))
    found += [(name, getattr(one, name), RSPNET[name]) for name in shared]
    return [f'{name} {mine} instead of {usual}' for name, mine, usual in found if mine != usual]
