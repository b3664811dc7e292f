"""Is it the weights that forgot, or batch norm's running statistics?

    python experiments/bn_statistics.py runs/compare        # about as long as the final runs of the strategies it repeats

Repeats final runs of a finished study (its folder keeps no weights), sets the statistics of the tuned encoder anew on source train
clips, without labels and without touching a weight, and measures retention again. Prints means over seeds and writes
bn_statistics.csv: old head, CKA and drift as fine-tuning left them, and with the source's statistics (`_bn`)."""
import json, sys, warnings
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)

import pandas as pd
from fastcore.script import call_parse

from sdfast.strategies import reestimate_bn
from sdfast.study import Run, fine_tune, source_model


def renewed(encoder, dl):
    "A copy of `encoder` whose batch norm has the mean statistics of the batches of `dl`"
    return reestimate_bn(deepcopy(encoder), dl)


def _row(strategy, seed, left, anew): return dict(strategy=strategy, seed=seed) | asdict(left) | {f'{k}_bn':v for k, v in asdict(anew).items()}


@call_parse
def main(
    study:str, # Folder of a finished study
    strategies:str='finetune,self_distill', # Which to repeat
    seeds:int=3, # How many of the study's seeds
):
    "Retention as fine-tuning left it, and with batch norm's statistics of the source"
    folder, rows = Path(study), []
    if not (folder/'runs.csv').exists(): sys.exit(f'bn_statistics.py: {folder} is no finished study: it has no runs.csv')
    runs = pd.read_csv(folder/'runs.csv')
    for strategy in strategies.split(','):
        for key in runs[(runs.strategy == strategy) & runs.final & (runs.status == 'ok')].key[:seeds]:
            run = Run(**json.loads((folder/'runs'/key/'run.json').read_text()))
            source = source_model(run, folder)
            learn, _ = fine_tune(run, source)
            left, anew = source.retention(learn.model[0]), source.retention(renewed(learn.model[0], source.retention.train_dl))
            rows.append(_row(strategy, run.seed, left, anew))
    if not rows: sys.exit(f'bn_statistics.py: {folder} has no finished final run of {strategies}')
    rows.append(_row('untouched', None, source.retention.reference, source.retention(renewed(source.model[0], source.retention.train_dl))))
    table = pd.DataFrame(rows)
    table.to_csv(folder/'bn_statistics.csv', index=False, float_format='%.6g')
    print(table.groupby('strategy', sort=False)[['source_acc', 'source_acc_bn', 'cka', 'cka_bn', 'drift', 'drift_bn']].mean().round(3).to_string())
