"""The results of a study, read from the files in its folder: rows, courses over epochs, answers, versions.

If files are missing, because the folder is old or only `runs.csv` was kept, the result is an empty table or `None`.
Damaged files are left out, too, with a warning, and listed in `left_out`.
"""
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ..metrics.flips import count_flips
from ..runtime import store
from .files import find_file, try_read
from .rows import final_runs
from .table import count_of

__all__ = ['Results']

ANSWER_COLUMNS = ['strategy', 'seed', 'path', 'label', 'answer', 'right', 'p']
FLIP_COLUMNS = ['strategy', 'path', 'label', 'before', 'runs', 'forgotten', 'learned']


@dataclass
class Results:
    "The results of a study, or of several merged ones with the same set-up"
    rows: pd.DataFrame  # as from `compare`; if a strategy ran with different options, they follow its name
    folders: list  # folders that were read
    commands: list = field(default_factory=list)  # commands that repeat the study, see `recorded_command`
    notes: list = field(default_factory=list)  # notes on the tasks for readers, as Markdown
    left_out: list = field(default_factory=list)  # damaged files that were to be read

    @cached_property
    def final(self)->pd.DataFrame:
        "Successful final runs with the chosen strengths"
        runs = final_runs(self.rows)
        return runs[runs.status == 'ok']

    @cached_property
    def tuned(self)->pd.DataFrame:
        "The runs of `final`, without the untouched encoder"
        return self.final[self.final.strategy != 'untouched']

    @property
    def failed(self)->pd.DataFrame:
        "Runs that failed or diverged"
        return self.rows[self.rows.status != 'ok']

    def file(self, *parts)->Path|None:
        "Find a file in the first folder that has it undamaged"
        return find_file(self.folders, *parts, left_out=self._leave_out)

    def _leave_out(self, file):
        if file in self.left_out: return
        self.left_out.append(file)
        warnings.warn(f'{file} is damaged and is left out; the command of the study makes it again')

    def text(self, *parts)->str:
        "Read a file; empty if no folder has it"
        file = self.file(*parts)
        return try_read(lambda f: f.read_text(errors='replace'), file, self._leave_out, '')

    def _json(self, *parts):
        return try_read(partial(store.read_json, checked=False), self.file(*parts), self._leave_out, {})

    @cached_property
    def run(self)->dict:
        "Fields of a final `Run`, as `run.json` has them"
        found = (self._json('runs', key, 'run.json') for key in self.tuned.key)
        return next((run for run in found if run), {})

    @cached_property
    def versions(self)->list[dict]:
        "Versions with which the runs were made, most frequent first, and the number of `runs` of each"
        found: Counter[tuple] = Counter()
        for key in self.rows.key:
            result = self._json('runs', key, 'result.json')
            if 'versions' not in result: continue
            more = {name: result[name] for name in ('python', 'threads') if name in result}
            found[tuple((result['versions'] | more).items())] += 1
        return [dict(versions) | dict(runs=n) for versions, n in found.most_common()]

    @cached_property
    def course(self)->pd.DataFrame:
        "`curve.csv` of the chosen final runs, one after the other, with `strategy` and `seed`"
        found = []
        for run in self.tuned.itertuples():
            curve = try_read(_read_curve, self.file('runs', run.key, 'curve.csv'), self._leave_out)
            if curve is None: continue
            of_run: dict[str, Any] = dict(strategy=run.strategy, seed=run.seed)
            found.append(curve.assign(**of_run))
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame()

    @cached_property
    def target(self)->pd.DataFrame:
        "Answers on the target's test videos, of the chosen final runs"
        return _all_answers([self._run_answers(run, 'scores.csv') for run in self.tuned.itertuples()])

    @cached_property
    def source(self)->pd.DataFrame:
        "Answers of the old head on the source's test videos, `untouched` and tuned; empty if either is missing"
        keys = self.rows.key[self.rows.strategy == 'untouched']
        before = None
        if len(keys): before = self._answers('untouched', 0, 'source', keys.iloc[0], 'scores.csv')
        after = [self._run_answers(run, 'source_scores.csv') for run in self.tuned.itertuples()]
        is_missing = before is None or all(a is None for a in after)
        return _all_answers([] if is_missing else [before, *after])

    def _run_answers(self, run, name): return self._answers(run.strategy, run.seed, 'runs', run.key, name)

    def _answers(self, strategy, seed, *parts):
        read = partial(_answers, strategy=strategy, seed=seed)
        return try_read(read, self.file(*parts), self._leave_out)

    def classes(self,
        of:str, # 'source': compared with the untouched encoder; 'target': with plain fine-tuning
    )->pd.DataFrame: # Differences of accuracy: a row for each class, a column for each strategy
        "Change of each class's accuracy, means over seeds; the classes that plain fine-tuning loses most come first"
        answers = getattr(self, of)
        if not len(answers): return pd.DataFrame()
        per_seed = answers.groupby(['label', 'strategy', 'seed']).right.mean()
        accuracy = per_seed.groupby(['label', 'strategy']).mean().unstack()
        reference = accuracy['untouched' if of == 'source' else 'finetune']
        strategies = [s for s in self.rows.strategy.unique() if s in accuracy and s != 'untouched']
        change = accuracy[strategies].sub(reference, axis=0)
        if of == 'target': change = change.drop(columns='finetune')
        order = change['finetune'] if 'finetune' in change else change.mean(axis=1)
        return change.loc[order.sort_values(kind='stable').index]

    def class_sizes(self,
        of:str, # 'source' or 'target'
    )->str: # Such as '80 test clips, 18 to 22 of each class'
        "Say how many test clips the answers are of"
        answers = getattr(self, of)
        n = answers.groupby('label').path.nunique()
        each = str(n.min()) if n.min() == n.max() else f'{n.min()} to {n.max()}'
        return f'{count_of(answers.path.nunique(), "test clip")}, {each} of each class'

    def clips(self,
        n:int=4, # Number of videos in each table
        by:str='finetune', # A strategy
    )->tuple[pd.DataFrame, pd.DataFrame]: # The most and the least forgotten, a row for each video
        """Source videos that a strategy forgot most and least, of those that the untouched encoder got right.

        Columns: `path`, `label`, the probability of its class `before` and `after` (mean over seeds), the most
        frequent `answer`, and in how many seeds each strategy was right (`right.STRATEGY`)."""
        answers = self.source
        mine = answers[answers.strategy == by]
        if not len(mine): return pd.DataFrame(), pd.DataFrame()
        before = answers[(answers.strategy == 'untouched') & answers.right].set_index('path')
        after = mine.groupby('path').p.mean()
        table = pd.DataFrame(dict(label=before.label, before=before.p, after=after, answer=_most_frequent(mine)))
        table = table.loc[before.index]
        for strategy, group in answers[answers.strategy != 'untouched'].groupby('strategy', sort=False):
            table[f'right.{strategy}'] = group.groupby('path').right.sum().reindex(table.index)
        order = (table.after - table.before).argsort(kind='stable')
        table = table.iloc[order].rename_axis('path').reset_index()
        n = min(n, len(table)//2)
        return table.head(n), table.tail(n)[::-1]


    def flips(self)->pd.DataFrame: # Rows `strategy, path, label, before, runs, forgotten, learned`
        """In how many seeds each source video was forgotten or learned by the old head, see `count_flips`.

        For each strategy those that were forgotten most often come first. Empty if no answers are stored."""
        answers = self.source
        before = answers[answers.strategy == 'untouched'].set_index('path')
        found = []
        for strategy, mine in answers[answers.strategy != 'untouched'].groupby('strategy', sort=False):
            after = mine.pivot(index='seed', columns='path', values='right')[before.index]
            counts = count_flips(torch.tensor(before.right.to_numpy(bool)), torch.tensor(after.to_numpy(bool)))
            table = pd.concat([before.reset_index()[['path', 'label']], counts], axis=1)
            table.insert(0, 'strategy', strategy)
            found.append(table.sort_values('forgotten', ascending=False, kind='stable'))
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=FLIP_COLUMNS)


def _read_curve(file):
    "The course of a run; `None` if no epoch was measured"
    if file.stat().st_size in (1, 2): return None
    curve = pd.read_csv(file)
    curve['epoch'].astype(int)
    return curve


def _answers(file, strategy, seed):
    "`(path, label, answer, right, p)` of each video: p is the probability of its own class"
    scores = pd.read_csv(file, dtype=dict(path=str, label=str), keep_default_na=False, na_values={})
    probs = scores.drop(columns=['path', 'label'])
    answer = probs.idxmax(axis=1)
    own = probs.columns.get_indexer(scores.label)
    p = probs.to_numpy(float)[np.arange(len(scores)), own]
    columns = dict(strategy=strategy, seed=seed, path=scores.path, label=scores.label, answer=answer,
                   right=answer == scores.label, p=p)
    return pd.DataFrame(columns)


def _all_answers(found):
    found = [f for f in found if f is not None]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=ANSWER_COLUMNS)


def _most_frequent(answers):
    "The most frequent answer for each video; of equally frequent ones the first by name"
    counts = answers.groupby(['path', 'answer']).size().sort_values(ascending=False, kind='stable')
    return counts.reset_index().drop_duplicates('path').set_index('path').answer
