"""What a study left in its folder, read again from the files alone: rows, courses, answers, versions.

What a folder lacks, as an old one or one of which only `runs.csv` was kept, is an empty table or `None`."""
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InputError
from ..strategies.registry import STRATEGIES
from ..study.choose import choose
from ..study.settings import recorded_command
from .summary import final_runs, has_strength

__all__ = ['Results', 'load_results']

SETUP = ('source', 'task', 'model', 'anchor')  # with the epochs of fine-tuning: what studies to be merged must share


@dataclass
class Results:
    "A study, or several of one set-up merged"
    rows: pd.DataFrame  # as from `compare`; strategies with several options have them behind their names
    folders: list  # where it was read from
    commands: list = field(default_factory=list)  # that repeat it, see `recorded_command`
    notes: list = field(default_factory=list)  # what a reader must know, as Markdown

    @cached_property
    def final(self)->pd.DataFrame:
        "Final runs of the chosen strengths that ended well"
        return final_runs(self.rows)[lambda d: d.status == 'ok']

    @cached_property
    def tuned(self)->pd.DataFrame: return self.final[self.final.strategy != 'untouched']

    @property
    def failed(self)->pd.DataFrame: return self.rows[self.rows.status != 'ok']

    def file(self, *parts)->Path|None: return next((f for d in self.folders if (f := Path(d).joinpath(*map(str, parts))).exists()), None)

    def text(self, *parts)->str: return f.read_text(errors='replace') if (f := self.file(*parts)) else ''

    @cached_property
    def run(self)->dict:
        "Fields of a final `Run`, as `run.json` has them"
        return next((json.loads(t) for k in self.tuned.key if (t := self.text('runs', k, 'run.json'))), {})

    @cached_property
    def versions(self)->list[dict]:
        "What the runs were made with, most used first, and the number of `runs` of each"
        found = Counter()
        for k in self.rows.key:
            d = json.loads(self.text('runs', k, 'result.json') or '{}')
            if 'versions' in d: found[tuple((d['versions'] | {n:d[n] for n in ('python', 'threads') if n in d}).items())] += 1
        return [dict(v) | dict(runs=n) for v, n in found.most_common()]

    @cached_property
    def course(self)->pd.DataFrame:
        "`curve.csv` of the chosen final runs below each other, with `strategy` and `seed`"
        found = [pd.read_csv(f).assign(strategy=r.strategy, seed=r.seed) for r in self.tuned.itertuples() if (f := self.file('runs', r.key, 'curve.csv')) and f.stat().st_size > 2]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame()

    def _answers(self, strategy, seed, *parts):
        "`(path, label, answer, right, p)` of each video: the class it was taken for, and the probability of its own"
        if (f := self.file(*parts)) is None: return None
        s = pd.read_csv(f, dtype=dict(path=str, label=str), keep_default_na=False, na_values={})
        probs = s.drop(columns=['path', 'label'])
        answer, own = probs.idxmax(axis=1), probs.columns.get_indexer(s.label)
        return pd.DataFrame(dict(strategy=strategy, seed=seed, path=s.path, label=s.label, answer=answer, right=answer == s.label, p=probs.to_numpy(float)[np.arange(len(s)), own]))

    @cached_property
    def target(self)->pd.DataFrame:
        "Answers on the target's test videos, of the chosen final runs"
        return self._all([self._answers(r.strategy, r.seed, 'runs', r.key, 'scores.csv') for r in self.tuned.itertuples()])

    @cached_property
    def source(self)->pd.DataFrame:
        "Answers of the old head on the source's test videos: `untouched` and after fine-tuning; empty if either was not recorded"
        key = self.rows.key[self.rows.strategy == 'untouched']
        before = self._answers('untouched', 0, 'source', key.iloc[0], 'scores.csv') if len(key) else None
        after = [self._answers(r.strategy, r.seed, 'runs', r.key, 'source_scores.csv') for r in self.tuned.itertuples()]
        return self._all([before, *after]) if before is not None and any(a is not None for a in after) else self._all([])

    @staticmethod
    def _all(found):
        found = [f for f in found if f is not None]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=['strategy', 'seed', 'path', 'label', 'answer', 'right', 'p'])

    def classes(self, of:str)->pd.DataFrame:
        """Accuracy of each class (rows) by each strategy (columns), means over seeds, less the first column's; most lost by plain
        fine-tuning first. `of` is 'source', against the untouched encoder, or 'target', against plain fine-tuning"""
        a = getattr(self, of)
        if not len(a): return pd.DataFrame()
        t = a.groupby(['label', 'strategy', 'seed']).right.mean().groupby(['label', 'strategy']).mean().unstack()
        t = t[[s for s in self.rows.strategy.unique() if s in t and s != 'untouched']].sub(t['untouched' if of == 'source' else 'finetune'], axis=0)
        if of == 'target': t = t.drop(columns='finetune')
        by = t['finetune'] if 'finetune' in t else t.mean(axis=1)
        return t.loc[by.sort_values(kind='stable').index]

    def clips(self, n:int=4, by:str='finetune')->tuple[pd.DataFrame, pd.DataFrame]:
        """The `n` source videos most, and the `n` least forgotten by the strategy `by`, of those that the untouched encoder knew: `path`,
        `label`, the probability of its class `before` and `after` (mean over seeds), and which `answer` came most"""
        a = self.source
        if not (a.strategy == by).any(): return pd.DataFrame(), pd.DataFrame()
        before, after = a[(a.strategy == 'untouched') & a.right].set_index('path'), a[a.strategy == by].groupby('path')
        most = a[a.strategy == by].groupby(['path', 'answer']).size().sort_values(ascending=False, kind='stable').reset_index().drop_duplicates('path').set_index('path').answer  # of equals the first by name
        t = pd.DataFrame(dict(label=before.label, before=before.p, after=after.p.mean(), answer=most)).loc[before.index]
        for s, g in a[a.strategy != 'untouched'].groupby('strategy', sort=False): t[f'right.{s}'] = g.groupby('path').right.sum().reindex(t.index)
        t = t.iloc[(t.after - t.before).argsort(kind='stable')].rename_axis('path').reset_index()
        n = min(n, len(t)//2)
        return t.head(n), t.tail(n)[::-1]


def _read(folder):
    file = Path(folder)/'runs.csv'
    if not file.exists():
        raise InputError(f'{folder} has no runs.csv, so it holds no finished study: give the --out folder of compare.py; an interrupted study is finished by the same command')
    rows = pd.read_csv(file, keep_default_na=False, na_values=[''], dtype=dict(task=str, source=str, model=str, error=str, strategy_args=str))
    if missing := [c for c in ('key', *SETUP, 'strategy', 'lam', 'lr', 'seed', 'epochs', 'acc1', 'status', 'final') if c not in rows]:
        raise InputError(f'{file} is not of a comparison of strategies: it has no column {missing[0]!r}' + ('; a chain of tasks (sequence.py) has tables of its own' if 'stage' in rows else ''))
    if unknown := sorted(set(rows.strategy) - {'untouched', *STRATEGIES}): raise InputError(f'{file}: unknown strategy {unknown[0]!r}')
    if not (rows.strategy == 'finetune').any(): raise InputError(f'{file} has no runs of finetune, which all others are compared with')
    if 'strategy_args' not in rows: rows['strategy_args'] = None
    if 'chosen' not in rows: rows['chosen'] = None
    file = Path(folder)/'notes.json'
    notes = json.loads(file.read_text()) if file.exists() else []
    setup = (*(rows[c].dropna().iloc[0] for c in SETUP), int(rows.epochs.dropna().iloc[0]))
    return setup, rows, recorded_command(folder), notes


def load_results(
    *folders, # Of studies, as `compare` wrote them
)->list[Results]: # One for each set-up: source, target, model, weights before fine-tuning, and epochs
    """Read the folders of studies, and merge those of one set-up: equal runs count once (of different ones that should be equal it raises), and where folders chose different strengths of a
    strategy, or none, the one with the best accuracy on valid is taken. Raises `InputError` for a folder that holds no finished comparison"""
    groups = {}
    for folder in folders:
        setup, *read = _read(folder)
        groups.setdefault(setup, []).append((folder, *read))
    return [_merge(*zip(*g)) for g in groups.values()]


def _merge(folders, rows, commands, noted):
    # a run that failed in one folder may have ended well in another; one that is chosen anywhere is a candidate
    rows = pd.concat(rows, ignore_index=True)
    rows = rows.assign(order=rows.index, bad=rows.status != 'ok', other=[c is False or c == 'False' for c in rows.chosen]).sort_values(['bad', 'other', 'order']).drop_duplicates('key')
    # an older sdfast may have given the same run another key
    twice = rows.duplicated(same := ['strategy', 'strategy_args', 'lam', 'lr', 'seed', 'final'], keep=False) & (rows.status == 'ok') & (rows.strategy != 'untouched')
    for (strategy, *_), g in rows[twice].groupby(same, dropna=False):
        if g.acc1.nunique() > 1 or g.valid_acc1.nunique() > 1:
            raise InputError(f'{", ".join(map(str, folders))} cannot be merged: two runs of {strategy} with seed {int(g.seed.iloc[0])} differ in their numbers, so something else differs, too; make a page of each')
    rows = rows.drop_duplicates(same).sort_values('order').drop(columns=['order', 'bad', 'other']).reset_index(drop=True)
    rows['chosen'] = [bool(f) if pd.isna(c) else str(c) == 'True' for c, f in zip(rows.chosen, rows.final)]
    rows['final'] = rows.final.astype(bool)
    notes, several = list(dict.fromkeys(n for ns in noted for n in ns)), rows.groupby('strategy').strategy_args.apply(lambda a: a.fillna('').nunique() > 1)
    rows['strategy'] = [f'{s} {a}' if several[s] and isinstance(a, str) and a else s for s, a in zip(rows.strategy, rows.strategy_args)]
    for strategy, g in rows[rows.final & rows.chosen & (rows.strategy != 'untouched')].groupby('strategy', sort=False):
        settings = sorted({(l, r) for l, r in zip(g.lam, g.lr)}, key=lambda s: (s[0], -s[1]))
        if len(settings) < 2: continue
        valid = [g[(g.lam == l) & (g.lr == r)].valid_acc1.astype(float).mean() if (g[(g.lam == l) & (g.lr == r)].status == 'ok').all() else np.nan for l, r in settings]
        lam, lr = settings[choose(valid)]
        rows.loc[rows.final & (rows.strategy == strategy), 'chosen'] = [l == lam and r == lr for l, r in rows.loc[rows.final & (rows.strategy == strategy), ['lam', 'lr']].itertuples(index=False)]
        notes.append(f'{strategy}: the runs leave open which of {len(settings)} settings was chosen; taken is {f"λ {lam:g}" if has_strength(strategy) else f"lr {lr:g}"}, the best on valid.')
    return Results(rows, list(folders), list(dict.fromkeys(filter(None, commands))), notes)
