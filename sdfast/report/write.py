"The files of a study: rows, tables and figures."
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..runtime import store
from .figures import figure, path_figure, render
from .load import load_results
from .rows import PANELS, has_all_strengths
from .summary import summary
from .tables import margins_table, strategy_table, trade_off_table
from .trade_off import trade_off

__all__ = ['write_report', 'write_flips']


def write_report(
    rows:pd.DataFrame, # From `compare`
    out:str|Path, # Folder of the study
    title:str='', # Of the figures
    notes:Sequence[str]=(), # What a reader must know of the tasks, as Markdown
    method:str='holm', # How p values are adjusted for the number of strategies, see `stats.adjust`
)->pd.DataFrame: # The summary
    """Write what a study found: `runs.csv`, `table.csv`, `table.md`, `notes.json` and `figure.png`.

    If all strengths were run to the end, also `paths.png`, and `trade_off_*.csv` and `.md` for each measure of the
    source."""
    out = Path(out)
    table = summary(rows, method=method, folder=out)
    store.write(out/'runs.csv', rows.to_csv(index=False))
    store.write(out/'table.csv', _csv(table))
    store.write(out/'table.md', strategy_table(table, None, notes, method).to_markdown())
    store.write(out/'notes.json', json.dumps(list(notes), indent=1))
    store.write(out/'figure.png', render(figure(rows, title), dpi=130))
    if has_all_strengths(rows):
        store.write(out/'paths.png', render(path_figure(rows, title), dpi=130))
        for kept in PANELS: _write_trade_off(rows, out, kept, notes, method)
    return table


def write_flips(
    folders:Sequence, # Of studies
    out:str|Path, # CSV file to write
)->Path: # The file
    "Write which source videos flipped, and in how many seeds, see `Results.flips`; `study` numbers the studies from 1"
    found = [r.flips().assign(study=i) for i, r in enumerate(load_results(*folders), 1)]
    table, out = pd.concat(found, ignore_index=True), Path(out)
    if not len(table):
        raise InputError(f'{", ".join(map(str, folders))}: no answers on the source are stored, so it is not known '
                         'which videos flipped: repeat the command of the study, which stores them')
    out.parent.mkdir(parents=True, exist_ok=True)
    store.write(out, table.to_csv(index=False))
    return out


def _csv(table): return table.to_csv(index=False, float_format='%.6g')


def _write_trade_off(rows, out, kept, notes, method):
    "Write what keeping costs, compared with plain fine-tuning and with self-distillation if it was run"
    table = trade_off(rows, kept, method=method)
    store.write(out/f'trade_off_{kept}.csv', _csv(table))
    tables, against = [trade_off_table(table, kept, method=method)], 'finetune'
    if 'self_distill' in set(table.strategy):
        against = 'self_distill'
        tables.append(trade_off_table(trade_off(rows, kept, against, method=method), kept, against, method))
    tables.append(margins_table(rows, kept, against, method))
    texts = [t.to_markdown() for t in tables]
    if notes: texts.append(''.join(f'- {n}\n' for n in notes))
    store.write(out/f'trade_off_{kept}.md', '\n'.join(texts))
