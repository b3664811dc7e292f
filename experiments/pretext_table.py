"""What do the rows of the paper's Table 1 come to on given data, with pre-training inside?

    python experiments/pretext_table.py                                # the embedded task: see experiments/README.md
    python experiments/pretext_table.py --task ucf101:DATA --source ucf101:DATA --models c3d,r2plus1d --clips 0

For each method and encoder: pre-train on the source's videos (pretrain.py), fine-tune on the target with plain
fine-tuning and with self-distillation, each with a strength (learning rate, λ) chosen on the valid part from the same
number of trials, and measure accuracy on test and what was kept of the source. The row `no pre-training` is the same
with the random encoder that the methods start from, and another row gives it three times as many epochs. With --draws
3, each method pre-trains three times, from three random encoders, and each is fine-tuned with all seeds: intervals are
then over draws and seeds. The paper's printed numbers are shown next to the rows. Writes pretext.csv, runs.csv,
table.csv and table.md to --out; what is finished there is not done again."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

from dataclasses import replace
from itertools import product

import pandas as pd
from fastcore.script import call_parse

from sdfast.commands.common import make_folder, one_line_errors, pick_names
from sdfast.data.datasets import create_task
from sdfast.errors import InputError
from sdfast.pretext import METHODS
from sdfast.report.clips import clip_counts, clips_sentence
from sdfast.report.pretext import LONG, NONE, STRATEGIES, pretext_markdown, pretext_table
from sdfast.runtime import store
from sdfast.study.choose import strength_grid
from sdfast.study.compare import compare
from sdfast.study.config import RSPNET, Run, file_id
from sdfast.study.fit import fit_batch_size
from sdfast.study.paper import DATA_SETS, RECIPES
from sdfast.study.pretrain import StageProgress, make_stage, pretrain, score_text
from sdfast.study.supervised import SUPERVISED

TRIALS = 3  # strengths of each strategy
WAYS = [NONE, LONG, *METHODS, SUPERVISED]


def make_run(model, task, source, epochs, size, workers, quick):
    "The run that all rows of an encoder share; the weights it starts from come later"
    target = create_task(task, 'target').hold_out()
    src = create_task(source, 'source')
    if task.startswith('moving_digits'): fields = dict(size=40)
    else: fields = RSPNET | RECIPES.get(model, {})
    fields |= {k:v for k, v in dict(epochs=epochs, size=size).items() if v is not None}
    run = Run(task=task, source=source, model=model, source_epochs=0, workers=workers, quick=quick,
              data=f'{src.fingerprint}-{target.fingerprint}', **fields)
    return replace(run, bs=fit_batch_size(target.count('train'), run.bs),
                   source_bs=fit_batch_size(src.count('train'), run.source_bs))


def pretrain_encoder(stage, out, progress):
    "The result of a stage; raises `InputError`, without the event that fastai names, if it cannot be run"
    try: result = pretrain(stage, out/'pretrain', progress)
    except InputError as e: raise InputError(str(e).split(':\n\t')[-1]) from None
    progress.say(f'{stage.method}, {stage.model}, draw {stage.seed}: ' + '; '.join(map(score_text, result['scores'])))
    return result


def fine_tune(run, out, seeds, trial_seeds, progress):
    "Rows of both strategies"
    progress.plan([])
    grids = {s:strength_grid(s, run.lr, None, TRIALS) for s in STRATEGIES}
    return compare(run, grids, out, seeds=seeds, trial_seeds=trial_seeds, progress=progress)


def explain(runs, stages, draws, seeds, rows):
    "Notes for the reader"
    run = next(iter(runs.values()))
    stage = next((s for s in stages.values() if s), None)
    if draws == 1:
        means = (f"Means over {seeds} seeds of fine-tuning with Student's 95 % t interval; differences are paired by "
                 'seed. There is one pre-training of each kind, and the intervals do not cover other draws of it.')
        probe = "Wilson's interval"
    else:
        means = (f'Means over {draws} pre-trainings crossed with {seeds} seeds of fine-tuning, with the 95 % interval '
                 'of the crossed random-effects model, which covers other pre-trainings and seeds; differences are '
                 'paired by both.')
        probe = "Student's interval over draws"
    notes = [f'{means} All in %. '
             f'{clips_sentence(clip_counts(rows), ["acc1", "source_probe"])} '
             f"What was kept: on the source's test videos, before fine-tuning (a linear probe with {probe}) → "
             "after; learning rates and λ chosen on the valid part, from as many trials each.",
             f'Fine-tuning: {run.epochs} epochs, {run.frames} frames of {run.size}x{run.size}, '
             f'encoder {", ".join(runs)}; the row of three times as long: {3*run.epochs}.']
    if stage:
        clips = f' on {stage.clips} videos of each source class' if stage.clips else ''
        notes.append(f'Pre-training: {stage.epochs} epochs{clips}, without labels unless the row says so.')
    if run.task.split(':')[0] not in DATA_SETS:
        notes.append("The paper's numbers are of other data and encoders, there to say which row is which: nothing "
                     'here reproduces them.')
    return notes


def write_tables(out, rows, results, table, text):
    scores = [dict(model=model, method=method, draw=draw, **score, epochs=result['epochs'], train=result['train'],
                   valid_loss=result['valid_loss'])
              for (model, method), found in results.items() for draw, result in enumerate(found)
              for score in result['scores']]
    store.write(out/'runs.csv', rows.to_csv(index=False))
    store.write(out/'pretext.csv', pd.DataFrame(scores).to_csv(index=False, float_format='%.6g'))
    store.write(out/'table.csv', table.to_csv(index=False, float_format='%.6g'))
    store.write(out/'table.md', text)


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    task:str='moving_digits', # Target task, see compare.py
    source:str='moving_digits', # Source task: pre-training sees its train videos, its labels measure what is kept
    models:str='tiny', # Encoders, such as c3d,r2plus1d
    methods:str=','.join(WAYS), # Ways to pre-train; none: the random encoder; none_long: it with three times the epochs
    clips:int=50, # Videos of each source class to pre-train on; 0: all
    pretext_epochs:int=None, # By default each method's: the reference's, or 10 for moving_digits
    epochs:int=None, # Epochs of fine-tuning: 12 for moving_digits, else 100
    size:int=None, # Side of the square: 40 for moving_digits, else 112
    draws:int=1, # Pre-trainings of each kind, from as many random encoders
    seeds:int=3, # Final runs of each pre-training
    trial_seeds:int=1, # Trials of each strength
    workers:int=0, # Loading processes; 0 keeps decoded videos in memory if they fit
    quick:bool=False, # Few videos, one epoch: to see that everything works
    out:str='runs/pretext', # Folder to write to; what is finished in it is not done again
):
    "The paper's Table 1 with pre-training inside"
    with one_line_errors('pretext_table.py', out):
        if quick: clips, pretext_epochs, epochs = 2, 1, 1
        for name, v in dict(draws=draws, seeds=seeds, trial_seeds=trial_seeds).items():
            if v < 1: raise InputError(f'--{name.replace("_", "-")} must be at least 1, not {v}')
        encoders = list(dict.fromkeys(m for m in models.split(',') if m))
        names = pick_names(methods, WAYS, '--methods')
        runs = {model:make_run(model, task, source, epochs, size, workers, quick) for model in encoders}
        given = dict(epochs=pretext_epochs, size=size, clips=clips, workers=workers)
        stages = {}
        for key in product(encoders, names, range(draws)):
            model, method, draw = key
            random = method in (NONE, LONG)
            stages[key] = None if random else make_stage(method, source, model=model, seed=draw, **given)[0]

        folder = make_folder(out)
        rows, results, failed = [], {}, {}
        with StageProgress() as progress:
            for (model, method, draw), stage in stages.items():
                progress.plan([])
                run = replace(runs[model], source_seed=draw)
                if method == LONG: run = replace(run, epochs=3*run.epochs)
                if stage is not None:
                    if (model, method) in failed: continue
                    try: result = pretrain_encoder(stage, folder, progress)
                    except InputError as e:
                        failed[model, method] = str(e)
                        progress.say(f'{method}, {model}: {e}')
                        continue
                    results.setdefault((model, method), []).append(result)
                    weights = result['weights']
                    run = replace(run, init=weights, data=f'{run.data}-{file_id(weights)}')
                rows.append(fine_tune(run, folder, seeds, trial_seeds, progress).assign(method=method, draw=draw))
            if not rows: raise InputError('nothing could be run: ' + '; '.join(failed.values()))

            rows = pd.concat(rows, ignore_index=True)
            data = task.split(':')[0]
            n_source = create_task(source, 'source').count('test')
            table = pretext_table(rows, results, data if data in DATA_SETS else None, n_source)
            text = pretext_markdown(table, failed, explain(runs, stages, draws, seeds, rows))
            write_tables(folder, rows, results, table, text)
            progress.say(text)
            progress.say(f'written to {folder}: pretext.csv, runs.csv, table.csv, table.md')
