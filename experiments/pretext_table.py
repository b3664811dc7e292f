"""Rows of the paper's Table 1 on given data: each way of pre-training inside, then fine-tuned plainly and with self-distillation.

    python experiments/pretext_table.py                                # the embedded task: see experiments/README.md for the time
    python experiments/pretext_table.py --task ucf101:DATA --source ucf101:DATA --models c3d,r2plus1d --clips 0

For each method and encoder: pre-train on the source's videos without labels (pretrain.py), fine-tune on the target with both strategies,
each with a strength (learning rate, λ) chosen on the valid part from as many trials, and measure accuracy on test and what was kept of the source.
The row `no pre-training` is the same with the random encoder that the methods start from. Beside them stand the numbers that the
paper prints. Writes pretext.csv, runs.csv, table.csv and table.md to --out; what is finished there is not done again."""
import sys
import warnings
from dataclasses import replace
from pathlib import Path

warnings.filterwarnings('ignore', category=FutureWarning)  # of the libraries about each other
warnings.filterwarnings('ignore', category=DeprecationWarning)

import pandas as pd
from fastcore.script import call_parse
from paper_tables import LAMS, NAMES, PRINTED, QUOTED, RECIPE, among
from pretrain import SHORT, StageWatch, make_stage, pretrain, score_text

from sdfast.data.datasets import create_task
from sdfast.errors import InputError, StoreError
from sdfast.pretext import METHODS
from sdfast.report.tables import number
from sdfast.stats import mean_interval, paired_difference, proportion_interval
from sdfast.study.choose import strength_grid
from sdfast.study.compare import compare
from sdfast.study.config import RSPNET, Run, file_id
from sdfast.study.fit import fit_batch_size

NONE = 'none'
TITLES = dict(none='no pre-training', rspnet='RSPNet', pace='Pace', order='VCOP', puzzle='3D ST puzzles', cvrl='CVRL', iic='IIC', mas='MAS')
STRATEGIES = ('finetune', 'self_distill')
KEPT = dict(source_probe='source, new probe', cka='CKA')


def printed(method, strategy, model, data):
    "What the paper prints for a row: top-1 in % for an encoder and data set, of its own or all of them"
    found = []
    for enc in ([model] if model in RECIPE else RECIPE):
        cells = []
        for i, d in enumerate(('ucf101', 'hmdb51')):
            own, quoted = {lam:PRINTED[enc, d, lam][0] for lam in (0., *LAMS)}, QUOTED.get((enc, TITLES.get(method)), (None, None))[i]
            cells.append(None if data not in (None, d) else max(own.values()) if (method, strategy) == ('rspnet', 'self_distill') else quoted if strategy == 'finetune' else None)
        if any(c is not None for c in cells): found.append(f'{NAMES[enc]} ' + ' / '.join(f'{c:.1f}' for c in cells if c is not None))
    return '; '.join(found)


def plan(task, source, models, methods, clips, epochs, pretext_epochs, size, seeds, trial_seeds, workers):
    "`(stages, base runs)`: by model and method, and by model; `InputError` for what cannot work"
    for name, v in dict(seeds=seeds, trial_seeds=trial_seeds).items():
        if v < 1: raise InputError(f'--{name.replace("_", "-")} must be at least 1, not {v}')
    names = among(methods, [NONE, *METHODS], '--methods')
    digits, stages, runs = task.startswith('moving_digits'), {}, {}
    target, src = create_task(task, 'target'), create_task(source, 'source')
    held = target.hold_out()
    for model in dict.fromkeys(filter(None, models.split(','))):
        fields = dict(size=40) if digits else RSPNET | RECIPE.get(model, {})
        fields |= {k:v for k, v in dict(epochs=epochs, size=size).items() if v is not None}
        runs[model] = Run(task=task, source=source, model=model, source_epochs=0, workers=workers, data=f'{src.fingerprint}-{held.fingerprint}', **fields)
        runs[model] = fit(runs[model], held, src)
        for method in names:
            given = dict(model=model, epochs=pretext_epochs, size=size, clips=clips, workers=workers)
            stages[model, method] = None if method == NONE else make_stage(method, source, **given)[0]
    return stages, runs


def fit(run, held, src):
    "Batches that the data fill"
    return replace(run, bs=fit_batch_size(held.count('train'), run.bs), source_bs=fit_batch_size(src.count('train'), run.bs))


def measure(rows, results, data, seen):
    "A row for each encoder, method and strategy, from the runs and the stages; `seen` videos are the source's test"
    table = []
    for (model, method), g in rows.groupby(['model', 'method'], sort=False):
        before = g[g.strategy == 'untouched'].iloc[0]
        stage, probe = results.get((model, method)), proportion_interval(round(before.source_probe*seen), seen)
        for strategy in STRATEGIES:
            mine = g[(g.strategy == strategy) & g.final & (g.chosen == True) & (g.status == 'ok')].set_index('seed')  # noqa: E712
            row = dict(model=model, method=method, strategy=strategy, runs=len(mine), printed=printed(method, strategy, model, data), pretext='; '.join(map(score_text, stage['scores'])) if stage else '')
            if len(mine):
                m = mean_interval(100*mine.acc1)
                row |= dict(strength=mine.lam.iloc[0] if strategy == 'self_distill' else mine.lr.iloc[0], acc1=m.mean, acc1_low=m.low, acc1_high=m.high, acc5=100*mine.acc5.mean())
                row |= {k:mine[k].mean() for k in KEPT} | {f'{k}_before':before[k] for k in KEPT} | dict(source_probe_before_low=probe.low, source_probe_before_high=probe.high)
                for name, other in (('none', rows[(rows.model == model) & (rows.method == NONE) & (rows.strategy == strategy)]), ('plain', g[g.strategy == 'finetune'])):
                    base = other[other.final & (other.chosen == True) & (other.status == 'ok')].set_index('seed').acc1  # noqa: E712
                    if (name, method) == ('none', NONE) or (name, strategy) == ('plain', 'finetune') or not (both := mine.index.intersection(base.index)).size: continue
                    d = paired_difference(100*mine.acc1[both].to_numpy(float), 100*base[both].to_numpy(float))
                    row |= {f'{name}_diff':d.mean, f'{name}_diff_low':d.low, f'{name}_diff_high':d.high}
            table.append(row)
    columns = ['model', 'method', 'strategy', 'strength', 'runs', 'acc1', 'acc1_low', 'acc1_high', 'acc5', 'none_diff', 'none_diff_low', 'none_diff_high', 'plain_diff', 'plain_diff_low',
               'plain_diff_high', 'source_probe_before', 'source_probe_before_low', 'source_probe_before_high', 'source_probe', 'cka_before', 'cka', 'pretext', 'printed']
    return pd.DataFrame(table).reindex(columns=columns)


def span(r, m):
    if pd.isna(r[m]): return ''
    low, mean, high = (number(r[c], '+' if m.endswith('diff') else '') for c in (f'{m}_low', m, f'{m}_high'))
    return mean + (f' [{low}, {high}]' if pd.notna(r[f'{m}_low']) else '')


def markdown(table, failed, notes):
    head = ['encoder', 'pre-training', 'fine-tuning', 'top-1', 'top-5', 'to no pre-training', 'to plain', *(f'{n}: before → after' for n in KEPT.values()), 'paper: UCF101 / HMDB51']
    lines = ['| ' + ' | '.join(head) + ' |', '|---'*3 + '|--:'*(len(head) - 4) + '|---|']
    for _, r in table.iterrows():
        name = {'finetune': f'plain, lr {r.strength:g}', 'self_distill': f'self-distillation, λ {r.strength:g}'}[r.strategy]
        low = f' [{100*r.source_probe_before_low:.1f}, {100*r.source_probe_before_high:.1f}]'
        kept = [f'{100*r[f"{k}_before"]:.1f}{low if k == "source_probe" else ""} → {100*r[k]:.1f}' if pd.notna(r[k]) else '' for k in KEPT]
        lines.append('| ' + ' | '.join([NAMES.get(r.model, r.model), TITLES.get(r.method, r.method), name, span(r, 'acc1'), '' if pd.isna(r.acc5) else f'{r.acc5:.1f}', span(r, 'none_diff'), span(r, 'plain_diff'), *kept, r.printed]) + ' |')
    lines += ['', 'Pre-training, on held-out source videos, with Wilson\'s 95 % intervals:', '']
    lines += [f'- {NAMES.get(r.model, r.model)}, {TITLES.get(r.method, r.method)}: {r.pretext}' for _, r in table.drop_duplicates(['model', 'method']).iterrows() if r.pretext]
    return '\n'.join([*lines, '', *(f'- {TITLES.get(m, m)} on {NAMES.get(e, e)} cannot be run: {why}' for (e, m), why in failed.items()), *(f'- {n}' for n in notes), ''])


def explain(runs, stages, seeds):
    one, stage = next(iter(runs.values())), next((s for s in stages.values() if s), None)
    how = [f'Means over {seeds} seeds with Student\'s 95 % t interval; differences are paired by seed. All in %. What was kept: on the source\'s test videos, before fine-tuning (a linear probe with Wilson\'s interval) → after; '
           'learning rates and λ chosen on the valid part, from as many trials each.', f'Fine-tuning: {one.epochs} epochs, {one.frames} frames of {one.size}x{one.size}, encoder {", ".join(runs)}, one pre-training each.']
    if stage: how.append(f'Pre-training: {stage.epochs} epochs' + (f' on {stage.clips} videos of each source class' if stage.clips else '') + ', without labels.')
    data = one.task.split(':')[0]
    if data not in ('ucf101', 'hmdb51'): how.append('The paper\'s numbers are of other data and encoders, there to say which row is which: nothing here reproduces them.')
    return how


def work(out, **o):
    "Check, pre-train, fine-tune, write"
    stages, runs = plan(**o)
    out, rows, results, failed = Path(out), [], {}, {}
    try: out.mkdir(parents=True, exist_ok=True)
    except OSError as e: raise InputError(f'--out {out} cannot be made: {e}') from None
    data = o['task'].split(':')[0]
    with StageWatch() as progress:
        for (model, method), stage in stages.items():
            run = runs[model]
            progress.plan([])
            if stage is not None:
                try: results[model, method] = pretrain(stage, out/'pretrain', progress)
                except InputError as e:
                    failed[model, method] = str(e).split(':\n\t')[-1]
                    progress.say(f'{method}, {model}: {failed[model, method]}')
                    continue
                progress.say(f'{method}, {model}: ' + '; '.join(map(score_text, results[model, method]['scores'])))
                weights = results[model, method]['weights']
                run = replace(run, init=weights, data=f'{run.data}-{file_id(weights)}')
            grids = {s:strength_grid(s, run.lr, None, 3) for s in STRATEGIES}
            rows.append(compare(run, grids, out, seeds=o['seeds'], trial_seeds=o['trial_seeds'], progress=progress).assign(method=method))
    if not rows: raise InputError('nothing could be run: ' + '; '.join(failed.values()))
    rows = pd.concat(rows, ignore_index=True)
    table = measure(rows, results, data if data in ('ucf101', 'hmdb51') else None, create_task(o['source'], 'source').count('test'))
    text = markdown(table, failed, explain(runs, stages, o['seeds']))
    rows.to_csv(out/'runs.csv', index=False)
    pd.DataFrame([dict(model=m, method=p, **s, epochs=r['epochs'], train=r['train'], valid_loss=r['valid_loss']) for (m, p), r in results.items() for s in r['scores']]).to_csv(out/'pretext.csv', index=False, float_format='%.6g')
    table.to_csv(out/'table.csv', index=False, float_format='%.6g')
    (out/'table.md').write_text(text)
    progress.say(text)
    progress.say(f'written to {out}: pretext.csv, runs.csv, table.csv, table.md')


def _fail(message, status=2):
    print(f'pretext_table.py: {message}', file=sys.stderr)
    return status


@call_parse  # runs at once in a script, so it comes last
def main(
    task:str='moving_digits', # Target task, see compare.py
    source:str='moving_digits', # Source task: its train videos, without labels, to pre-train on; its labels measure what is kept
    models:str='tiny', # Encoders, such as c3d,r2plus1d
    methods:str=','.join([NONE, *SHORT]), # Which, in any order; none is the random encoder
    clips:int=50, # Videos of each source class to pre-train on; 0: all
    pretext_epochs:int=None, # By default each method's: the reference's, or 10 for moving_digits
    epochs:int=None, # Of fine-tuning: 12 for moving_digits, else 100
    size:int=None, # Side of the square: 40 for moving_digits, else 112
    seeds:int=3, # Final runs of each row
    trial_seeds:int=1, # Trials of each strength
    workers:int=0, # Loading processes; 0 keeps decoded videos in memory if they fit
    out:str='runs/pretext', # Folder to write to; what is finished in it is not done again
):
    "The paper's Table 1 with pre-training inside"
    options = dict(locals())
    try: work(**options)
    except (InputError, StoreError) as e: sys.exit(_fail(e))
    except KeyboardInterrupt: sys.exit(_fail(f'stopped; what is finished is in {out}, the same command goes on from there', 130))
