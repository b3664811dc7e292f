"""Which measurement of a fine-tuned encoder predicts how much it has forgotten?

    python experiments/what_predicts.py                  # from results/protocol/digits, seconds
    python experiments/what_predicts.py --study FOLDER

Reads the final runs of a study of protocol.py. What is lost is the untouched encoder's accuracy on the source's test
part less that of the run, by the old head and by a new probe. Each measurement is compared with it by Spearman's rank
correlation, separately for each source model:

- `across`: over all runs of a source model, whatever their arm;
- `within`: over the runs of one arm (other seeds, and other settings where the two rules chose others), mean over
  arms.

Shown is the mean over source models, with a percentile interval by bootstrap over source models. lr is the learning
rate that the run was given; all have the same number of steps. Writes predictors.csv, predictors.md, predictors.png."""
from sdfast.commands.start import start

if __name__ == '__main__': start()

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from fastcore.script import call_parse
from scipy.stats import spearmanr

from sdfast.commands.common import make_folder, one_line_errors
from sdfast.errors import InputError
from sdfast.report.figures import render
from sdfast.report.looks import look
from sdfast.report.table import Cell, Column, Table
from sdfast.runtime import store

PREDICTORS = dict(
    kl='KL to the untouched encoder', drift='drift of features', cka='1 - CKA', procrustes='Procrustes distance',
    weight_distance='distance of weights', barrier='loss barrier', lr='learning rate')
LOSSES = dict(source_acc='old head', source_probe='new probe')
FEWEST = 5  # runs of an arm, or of a source model, that a rank correlation needs


def read_runs(file):
    "The final runs of a study, each once, with what they have lost"
    if not Path(file).exists(): raise InputError(f'{file} does not exist: run protocol.py with --results first')
    rows = pd.read_csv(file)
    rows = rows[rows.final.astype(bool) & (rows.status == 'ok')].drop_duplicates(['source_seed', 'key'])
    start = rows[rows.arm == 'untouched'].set_index('source_seed')
    rows = rows[rows.arm != 'untouched'].assign(cka=1 - rows.cka_unbiased)
    for m in LOSSES: rows[f'lost_{m}'] = rows.source_seed.map(start[m]) - rows[m]
    return rows


def rank_correlation(a, b):
    "Spearman's; nan for few runs or where one of both is constant"
    known = a.notna() & b.notna()
    a, b = a[known], b[known]
    if len(a) < FEWEST or a.nunique() < 2 or b.nunique() < 2: return np.nan
    return float(spearmanr(a, b).statistic)


def of_models(runs, predictor, lost, within):
    "A rank correlation for each source model; nan where it has none"
    def one(rows): return rank_correlation(rows[predictor], rows[f'lost_{lost}'])
    def of_model(rows):
        if not within: return one(rows)
        found = [one(of_arm) for _, of_arm in rows.groupby('arm')]
        return np.nanmean(found) if np.isfinite(found).any() else np.nan
    return np.array([of_model(rows) for _, rows in runs.groupby('source_seed')])


def bootstrap(values, resamples=10_000, seed=0):
    "Mean over source models, and the percentile interval of resampled source models; nan with fewer than two"
    values = values[np.isfinite(values)]
    mean = float(values.mean()) if len(values) else np.nan
    if len(values) < 2: return mean, np.nan, np.nan
    chosen = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[chosen].mean(1), [2.5, 97.5])
    return mean, float(low), float(high)


def predictors(runs):
    "A row for each predictor, what is lost, and way to compare"
    rows = []
    for lost in LOSSES:
        for way in ('across', 'within'):
            for predictor in PREDICTORS:
                of_each = of_models(runs, predictor, lost, way == 'within')
                mean, low, high = bootstrap(of_each)
                rows.append(dict(lost=lost, way=way, predictor=predictor, correlation=mean, low=low, high=high,
                                 models=int(np.isfinite(of_each).sum())))
    return pd.DataFrame(rows)


def as_table(found, runs):
    "For people: predictors by what they are compared with, the best first"
    ways = [(lost, way) for lost in LOSSES for way in ('across', 'within')]
    columns = [Column('predictor', numeric=False), *(Column(f'{LOSSES[lost]}, {way}') for lost, way in ways)]
    by = found.set_index(['predictor', 'lost', 'way'])
    order = sorted(PREDICTORS, key=lambda p: -np.nan_to_num(by.loc[(p, *ways[0])].correlation, nan=-2))
    rows = [[PREDICTORS[p], *(_cell(by.loc[(p, *way)]) for way in ways)] for p in order]
    models = runs.source_seed.nunique()
    caption = (f"Spearman's rank correlation with the accuracy on the source that is lost, mean over {models} source "
               f'models with its 95 % interval by bootstrap over them. {len(runs)} final runs of '
               f'{runs.arm.nunique()} arms. Across: all runs of a model; within: those of one arm, mean over arms.')
    return Table(columns, rows, caption)


def _cell(row):
    if np.isnan(row.correlation): return Cell('constant or not measured')
    interval = '' if np.isnan(row.low) else f' [{row.low:+.2f}, {row.high:+.2f}]'
    return Cell(f'{row.correlation:+.2f}{interval}', value=row.correlation)


def drawn(runs):
    "What each run has lost by the old head against each predictor"
    shown = [p for p in PREDICTORS if runs[p].nunique() > 1]
    size = (3*len(shown), 4.6)
    fig, axes = plt.subplots(1, len(shown), figsize=size, sharey=True, layout='constrained', squeeze=False)
    for ax, p in zip(axes[0], shown):
        for arm, rows in runs.groupby('arm', sort=False):
            colour, marker = _look(arm)
            ax.scatter(rows[p], 100*rows.lost_source_acc, s=14, color=colour, marker=marker, linewidths=0, alpha=.7,
                       label=arm)
        ax.set_xlabel(PREDICTORS[p])
        above = runs[p][runs[p] > 0]
        if p != 'lr' and len(above):
            ax.set_xscale('symlog', linthresh=float(above.quantile(.05)), linscale=.4)
            ax.xaxis.get_major_locator().set_params(numticks=4)
    fig.legend(*axes[0][0].get_legend_handles_labels(), loc='outside lower center', ncols=11, fontsize=8, frameon=False)
    axes[0][0].set_ylabel('lost by the old head, points')
    plt.close(fig)
    return fig


def _look(arm):
    "That of its strategy; of early stopping and merged models, which are of plain fine-tuning, one of their own"
    name = arm.replace('early_stopping', 'finetune+early_stopping').replace('+', ' ')
    return look(name)


@call_parse
def main(
    study:str='experiments/results/protocol/digits', # Folder of a study's runs.csv
    out:str='', # Folder to write to, by default that of the study
):
    "Compare predictors of forgetting"
    with one_line_errors('what_predicts.py', out or study):
        folder = make_folder(out or study)
        runs = read_runs(Path(study)/'runs.csv')
        found = predictors(runs)
        store.write(folder/'predictors.csv', found.to_csv(index=False, float_format='%.4g'))
        text = as_table(found, runs).to_markdown()
        store.write(folder/'predictors.md', text)
        store.write(folder/'predictors.png', render(drawn(runs), dpi=110))
        print(text)
