"Rows of runs to a table (terminal, Markdown, csv) and a figure; and the live view of a study at work."
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..runtime import store
from .plots import figure, path_figure
from .summary import PANELS, final_runs, summary, trade_off
from .tables import margins_markdown, markdown, trade_off_markdown

__all__ = ['write_report']



def write_report(
    rows:pd.DataFrame, # From `compare`
    out:str|Path, # Folder of the study, to write `runs.csv`, `table.csv`, `table.md`, `notes.json` and `figure.png` to, with paths also `trade_off_*` and `paths.png`
    title:str='', # Of the figures
    notes:Sequence[str]=(), # What a reader must know of the tasks
    method:str='holm', # How p values are adjusted for the number of strategies, see `stats.adjust`
)->pd.DataFrame: # The summary
    "Write what a study found"
    out, table = Path(out), summary(rows, method=method, folder=out)
    store.write(out/'runs.csv', rows.to_csv(index=False))
    store.write(out/'table.csv', table.to_csv(index=False, float_format='%.6g'))
    store.write(out/'table.md', markdown(table, notes, method=method))
    store.write(out/'notes.json', json.dumps(list(notes), indent=1))
    figure(rows, title).savefig(out/'figure.png', dpi=130)
    if len(final_runs(rows, chosen=False)) > len(final_runs(rows)):
        path_figure(rows, title).savefig(out/'paths.png', dpi=130)
        for m in PANELS:
            t = trade_off(rows, m, method=method)
            store.write(out/f'trade_off_{m}.csv', t.to_csv(index=False, float_format='%.6g'))
            texts, against = [trade_off_markdown(t, m, method=method)], 'self_distill' if 'self_distill' in set(t.strategy) else 'finetune'
            if against != 'finetune': texts.append(trade_off_markdown(trade_off(rows, m, against, method=method), m, against, method))
            texts += [margins_markdown(rows, m, against, method), *(['\n'.join([*(f'- {n}' for n in notes), ''])] if notes else [])]
            store.write(out/f'trade_off_{m}.md', '\n'.join(texts))
    return table
