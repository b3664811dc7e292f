"""Does a lower learning rate for the encoder alone keep as much of the source as self-distillation?

    python experiments/encoder_lr.py             # the embedded task, 6 seeds: 30 runs, 12 minutes of CPU time
    python experiments/encoder_lr.py --quick     # the same at a reduced size

Plain fine-tuning with the head at lr and the encoder at lr/8, a control that has no teacher, is compared with plain
fine-tuning and with self-distillation at λ = 10, 30 and 100. Seeds are paired, every setting runs to the end, and
nothing is chosen. What decides, set before the first run: the accuracy of the source's old head, of which the slow
encoder should keep less than self-distillation at λ = 30 if the teacher does more than slow the encoder down; target
accuracy is shown next to it. Writes runs.csv, table.csv and table.md to --results, by default --out."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

from dataclasses import replace

from fastcore.script import call_parse, store_true

from sdfast.commands.common import make_folder, study_session
from sdfast.report.summary import summary
from sdfast.report.tables import strategy_table
from sdfast.runtime import store
from sdfast.strategies import STRATEGIES
from sdfast.study.paired import final_run, run_settings

DATA = dict(task='moving_digits', source='moving_digits')
SETTINGS = [('finetune', 0.), ('slow_encoder', 7.), *(('self_distill', lam) for lam in (10., 30., 100.))]
CAPTION = ('Accuracies in %, means over seeds, each followed by the paired difference to finetune with its 95 % t '
           'interval. Verdicts: the paired t test, adjusted by Holm. Every setting is shown.')


STRATEGIES['slow_encoder'] = STRATEGIES['encoder_lr']  # its name when these runs were made, which is in their keys


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    seeds:int=6, # Runs of each setting
    out:str='runs/encoder_lr', # Folder of the runs; finished runs in it are not done again
    results:str='', # Folder for the tables; by default --out
    quick:store_true=False, # 2 seeds, 2 epochs, few clips
):
    "Compare a slow encoder with plain fine-tuning and self-distillation on the embedded task"
    with study_session('encoder_lr.py', out) as (progress, where):
        base = final_run(**DATA, quick=quick, epochs=2 if quick else 12)
        runs = [replace(base, strategy=strategy, lam=lam) for strategy, lam in SETTINGS]
        rows = run_settings(runs, min(seeds, 2) if quick else seeds, out, progress, where)
        names = [f'{r.strategy} {r.lam:g}' if r.lam > 0 else r.strategy for r in rows.itertuples()]
        table = summary(rows.assign(strategy=names))
        text = replace(strategy_table(table), caption=CAPTION).to_markdown()
        folder = make_folder(results or out)
        store.write(folder/'runs.csv', rows.to_csv(index=False))
        store.write(folder/'table.csv', table.to_csv(index=False, float_format='%.6g'))
        store.write(folder/'table.md', text)
        print(text)
