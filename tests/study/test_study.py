"Runs are functions of their `Run`; a study chooses on valid, reads test once, and skips what is done."
import json
from dataclasses import asdict, replace
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import ValueMetric
from helpers import Log, learner, small_run

from sdfast.data import datasets as datasets_module
from sdfast.errors import InputError
from sdfast.metrics.columns import COLUMNS
from sdfast.metrics.features import linear_probe
from sdfast.metrics.retention import Retention
from sdfast.models import encoders as encoders_module
from sdfast.models.encoders import create_model
from sdfast.models.features import extract
from sdfast.report.results import load_results
from sdfast.report.summary import summary
from sdfast.report.write import write_report
from sdfast.strategies import STRATEGIES
from sdfast.study import execute as execute_module
from sdfast.study import loaders as loaders_module
from sdfast.study import source as source_module
from sdfast.study.choose import choose, strength_grid
from sdfast.study.compare import compare
from sdfast.study.config import Run
from sdfast.study.execute import execute, train_run
from sdfast.study.fit import KeepBest, fit_batch_size
from sdfast.study.source import load_source

pytestmark = pytest.mark.usefixtures('fresh')


@pytest.fixture
def base(clips):
    return small_run(clips)


def test_key_is_of_all_fields(base):
    assert base.key == replace(base).key and len(base.key) == 12
    for field, value in asdict(base).items():
        new = 'valid' if field == 'select' else (not value) if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else f'{value}x'
        other = replace(base, **{field: new})
        assert other.key != base.key, field
        told = field in ('strategy', 'strategy_args', 'lam', 'seed', 'epochs', 'lr', 'schedule', 'wd', 'bs', 'valid_frac', 'select', 'patience', 'others', 'with_barrier', 'final', 'task')
        assert (other.source_key == base.source_key) == told, field  # one source model for all strategies and seeds


CLASSIC = ['finetune', 'self_distill', 'fixed_teacher', 'ema_teacher', 'l2sp', 'ewc']


def test_every_strategy_of_the_registry_runs(base, tmp_path):
    names = [s for s in STRATEGIES if s != 'lora' or find_spec('peft')]
    rows = compare(base, {s:strength_grid(s, .01, n=1)[:1] for s in names}, tmp_path, seeds=1)
    assert set(rows.status) == {'ok'}, rows[rows.status != 'ok'][['strategy', 'error']]
    assert rows.strategy.tolist() == [*names, 'untouched'] and rows[rows.strategy != 'untouched'].acc1.notna().all()
    got = rows.set_index('strategy')
    assert got.weight_distance['linear_probe'] == 0 and got.drift['linear_probe'] == 0
    # a source read back from disk has all that strategies ask of it
    source_module._sources.clear()
    si = replace(base, strategy='si', lam=.03, lr=.01)
    assert execute(si, tmp_path)['status'] == 'ok' and execute(replace(si, init=None, source_epochs=0), tmp_path)['error'].startswith('InputError: SI needs the way')
    log = pd.read_csv(tmp_path/'runs'/got.key['self_distill']/'epochs.csv')
    assert {'self_distill', 'self_distill_ratio', 'self_distill_cos', 'self_distill_age', 'moved'} <= set(log.columns)


def test_compare_end_to_end(base, tmp_path, monkeypatch):
    reads, kepts = [], []
    monkeypatch.setattr(execute_module, '_predict', lambda learn, dl, _f=execute_module._predict: reads.append(1) or _f(learn, dl))
    monkeypatch.setattr(Retention, '__call__', lambda self, encoder, _f=Retention.__call__: kepts.append(_f(self, encoder)) or kepts[-1])
    grids = {s:strength_grid(s, .05, None, 3)[:2] for s in CLASSIC}
    log = Log()
    rows = compare(base, grids, tmp_path, seeds=2, progress=log)
    assert list(rows.columns[:len(COLUMNS)]) == COLUMNS and len(rows) == 6*(2 + 2) + 1 and log.planned == 24 and set(rows.status) == {'ok'}
    assert len(reads) == 12  # test is read by final runs alone, once each
    trial, final = rows[~rows.final.astype(bool)], rows[rows.final.astype(bool) & (rows.strategy != 'untouched')]
    assert trial.acc1.isna().all() and trial.source_acc.isna().all() and rows.valid_acc1[:-1].between(0, 1).all()
    for c in ('acc1', 'acc5', 'source_acc', 'source_probe', 'source_knn', 'cka'): assert final[c].astype(float).between(0, 1.0001).all()
    ref = rows.iloc[-1]
    assert ref.strategy == 'untouched' and (ref.cka, ref.drift, ref.weight_distance) == (1, 0, 0) and rows.anchor.nunique() == 1
    # the strength of each strategy is the one with the best valid accuracy, the strongest of equals
    for s, g in trial.groupby('strategy'):
        strength = 'lr' if s == 'finetune' else 'lam'
        g = g.sort_values(strength, ascending=s != 'finetune')
        best = g[g.valid_acc1 == g.valid_acc1.max()].iloc[-1]
        assert set(final[final.strategy == s][strength]) == {best[strength]}
    # folders
    run = tmp_path/'runs'/final.key.iloc[0]
    assert {p.name for p in run.iterdir() if p.name[0] != '.'} == {'run.json', 'result.json', 'epochs.csv', 'scores.csv', 'source_scores.csv', 'log.txt', 'kept.json', 'curve.csv'}
    log = pd.read_csv(run/'epochs.csv')
    assert len(log) == 2 and {'kept_acc', 'kept_cka', 'kept_drift', 'kept_weights'} <= set(log.columns)
    assert pd.read_csv(run/'curve.csv').cka.tolist() == pytest.approx(log.kept_cka.tolist())
    kept = json.loads((run/'kept.json').read_text())
    assert kept['source_probe'] == final.source_probe.iloc[0] and any(k.startswith('layers.') for k in kept)
    assert not (tmp_path/'runs'/trial.key.iloc[0]/'kept.json').exists()
    scores = pd.read_csv(run/'scores.csv')
    assert (scores[['down', 'right']].idxmax(axis=1) == scores.label).mean() == pytest.approx(final.acc1.iloc[0])
    # again: nothing is done, nothing changes
    stamps = {p:p.stat().st_mtime_ns for p in tmp_path.rglob('result.json')}
    log = Log()
    pd.testing.assert_frame_equal(compare(base, grids, tmp_path, seeds=2, progress=log), rows)
    assert all(skipped for _, skipped in log.rows) and stamps == {p:p.stat().st_mtime_ns for p in tmp_path.rglob('result.json')}
    # what is written
    table = write_report(rows, tmp_path)
    assert all((tmp_path/n).stat().st_size for n in ('runs.csv', 'table.csv', 'table.md', 'figure.png'))
    assert table.strategy.tolist() == [*CLASSIC, 'untouched']
    pd.testing.assert_series_equal(pd.read_csv(tmp_path/'runs.csv').acc1, rows.acc1.astype(float), check_names=False)
    # the old head's answers, before and after: each accuracy again, and a row a source test video
    right = lambda f: (s := pd.read_csv(f))[['down', 'right']].idxmax(axis=1) == s.label
    videos, source = loaders_module.source_data(base)[0].items('test'), tmp_path/'source'/ref.key/'scores.csv'
    assert right(source).mean() == pytest.approx(ref.source_acc)
    files = [tmp_path/'runs'/key/'source_scores.csv' for key in final.key]
    for f, acc, kept in ((source, ref.source_acc, source_module.load_source(base, tmp_path).retention.reference), *zip(files, final.source_acc, kepts, strict=True)):
        s = pd.read_csv(f)
        assert right(f).mean() == pytest.approx(acc) and list(zip(s.path, s.label)) == list(videos) and s[['down', 'right']].to_numpy() == pytest.approx(kept.answers.numpy(), rel=1e-5)
    assert len({f.read_bytes() for f in (source, *files)}) == 13  # each has answers of its own
    page, = load_results(tmp_path)
    by = page.source.groupby(['strategy', 'seed']).right.mean()
    assert all(by[r.strategy, r.seed] == pytest.approx(r.source_acc) for r in final[final.chosen.astype(bool)].itertuples()) and by['untouched', 0] == pytest.approx(ref.source_acc)
    assert (page.classes('source').mean() - (by.drop('untouched').groupby('strategy').mean() - ref.source_acc)).abs().max() < 1e-9  # the two classes have equally many test videos


def test_the_same_numbers_in_another_folder(base, tmp_path):
    def go(out):
        source_module._sources.clear(), loaders_module.load_data.cache_clear()
        run = replace(base, strategy='self_distill', lam=3., final=True)
        return {k:v for k, v in execute(run, tmp_path/out).items() if k != 'seconds'}
    assert go('a') == go('b')


def test_a_strategy_with_lam_0_ends_where_plain_fine_tuning_does(base, tmp_path):
    "Pairing: head, order and clips are the same, whatever a strategy does in between"
    rows = [execute(replace(base, strategy=s, lam=0., final=True), tmp_path) for s, entry in STRATEGIES.items() if entry.lams or s == 'finetune']
    for c in ('valid_acc1', 'acc1', 'source_acc', 'source_probe', 'drift', 'weight_distance'): assert len({r[c] for r in rows}) == 1, c
    assert execute(replace(base, seed=1, final=True), tmp_path)['weight_distance'] != rows[0]['weight_distance']


def test_no_training_forgets_nothing(base, tmp_path):
    row = execute(replace(base, lr=1e-30, final=True), tmp_path)
    ref = load_source(base, tmp_path).retention.reference
    assert row['weight_distance'] == 0 and row['source_probe'] == pytest.approx(ref.source_probe, abs=.3)  # batch norm's statistics move


def test_source_without_training_is_the_given_weights(base, tmp_path):
    from sdfast.models.weights import save_weights
    model = create_model('tiny', 2, width=8)
    save_weights(model[0], tmp_path/'w.safetensors')
    run = replace(base, init=str(tmp_path/'w.safetensors'), source_epochs=0)
    source = load_source(run, tmp_path)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(model[0].state_dict().values(), source.model[0].state_dict().values()))
    assert source.retention.reference.source_acc == pytest.approx(source.retention.reference.source_probe)  # the head is the probe
    source_module._sources.clear()
    assert load_source(run, tmp_path).id == source.id


def test_failures_are_rows(base, tmp_path, monkeypatch):
    row = execute(replace(base, lr=1e30), tmp_path)
    assert row['status'] == 'diverged' and 'not finite' in row['error'] and row['valid_acc1'] is None
    assert execute(replace(base, lr=1e30), tmp_path) == row
    run = replace(base, strategy='self_distill', lam=1.)
    with monkeypatch.context() as m:
        m.setattr(encoders_module, 'create_model', lambda *a, **k: 1/0)
        row = execute(run, tmp_path)
    assert row['status'] == 'failed' and 'ZeroDivisionError' in row['error'] and 'Traceback' in (tmp_path/'runs'/run.key/'log.txt').read_text()
    assert execute(run, tmp_path)['status'] == 'ok'  # tried again: the cause may be gone
    rows = compare(base, {'finetune': [dict(lr=.05)], 'l2sp': [dict(lam=1e38)]}, tmp_path, seeds=2)
    table = summary(rows).set_index('strategy')
    assert table.loc['l2sp', 'failed'] == 2 and table.loc['finetune', 'runs'] == 2 and pd.isna(table.loc['l2sp', 'acc1'])
    write_report(rows, tmp_path)


def test_half_written_runs_are_done_again(base, tmp_path):
    row = execute(base, tmp_path)
    result = tmp_path/'runs'/base.key/'result.json'
    result.unlink()
    (result.parent/'epochs.csv').write_text('half')
    assert {k:v for k, v in execute(base, tmp_path).items() if k != 'seconds'} == {k:v for k, v in row.items() if k != 'seconds'}


def test_choices_see_held_out_data_only():
    assert choose([.8, .9, .9]) == 2 and choose([.9, np.nan, .8]) == 0 and choose([np.nan, np.nan]) == 1  # of equals the strongest
    valid, kept = [.95, .945, .94, .93], [.5, .7, .7, .9]
    assert choose(valid, kept) == 0 and choose(valid, kept, 'equal_learning') == 2 and choose(valid, kept, 'equal_learning', margin=.02) == 3
    assert choose(valid, [.5, np.nan, np.nan, np.nan], 'equal_learning') == 0
    assert choose([.95, .95 - .01, .9], [0, 1, 2], 'equal_learning') == 1  # just within, whatever the rounding
    with pytest.raises(InputError, match='cannot be chosen on test'): choose(valid, kept, 'test')
    with pytest.raises(InputError, match='unknown rule'): choose(valid, kept, 'best')
    with pytest.raises(InputError, match='source_valid'): choose(valid, None, 'equal_learning')
    with pytest.raises(InputError, match='test is not honest'): Run(select='test')
    with pytest.raises(InputError, match='last, valid or paper'): Run(select='best')
    with pytest.raises(InputError, match='cannot be chosen on test'): compare(Run(), {'finetune': [{}]}, '.', rule='test')
    with pytest.raises(InputError, match='source_probe or source_acc'): compare(Run(), {'finetune': [{}]}, '.', kept='cka')


def test_trials_of_equal_learning_measure_what_was_kept_without_test(base, tmp_path, monkeypatch):
    run = replace(base, strategy='l2sp', lam=.1, source_valid=True)
    source = load_source(run, tmp_path)
    row = execute(run, tmp_path)
    assert row['acc1'] is row['source_acc'] is row['source_probe'] is None and row['valid_source_probe'] is not None
    # by hand: the probe on what is left of train, scored on the groups held out of it
    learn, _ = train_run(run, source)
    task, dls, _ = loaders_module.source_data(run)
    groups = task.df.groupby('split').group.agg(set)
    assert task.count('valid') and not groups['valid'] & groups['train'] and not groups['valid'] & groups['test']
    train, valid = (extract(learn.model[0], task.dl(dls, s)) for s in ('train', 'valid'))
    assert row['valid_source_probe'] == pytest.approx(linear_probe(*train, *valid))
    assert row['valid_source_acc'] == pytest.approx((source.model[1](valid[0]).argmax(1) == valid[1]).float().mean().item())
    # the choice follows these columns
    def trial(run, *a, **kw):
        i = [1., 2., 3.].index(run.lam) if run.strategy == 'l2sp' else [.05, .025, .0125].index(run.lr)
        return {c:None for c in COLUMNS} | dict(strategy=run.strategy, lam=run.lam, lr=run.lr, seed=run.seed, final=run.final, status='ok', valid_acc1=[.9, .895, .8][i],
                                                valid_source_probe=[.5, .6, .9][i], valid_source_acc=[.7, .6, .9][i], acc1=[.1, .2, .99][i])
    monkeypatch.setattr(execute_module, 'execute', trial)
    grids = dict(l2sp=strength_grid('l2sp', .05, [1, 2, 3]), finetune=strength_grid('finetune', .05))
    for rule, kept, want in (('accuracy', 'source_probe', 1.), ('equal_learning', 'source_probe', 2.), ('equal_learning', 'source_acc', 1.)):
        for path in (False, True):
            rows = compare(base, grids, tmp_path, seeds=2, rule=rule, kept=kept, all_strengths=path)
            mine = rows[(rows.strategy == 'l2sp') & rows.chosen.astype(bool)]
            assert set(mine.lam) == {want} and len(mine) == 2 and mine.final.all() and len(rows) == 1 + (12 if path else 6 + 4)


def test_paths_run_every_strength_with_every_seed(base, tmp_path):
    grids = {s:strength_grid(s, .05, None, 2)[:2] for s in ('finetune', 'l2sp')}
    log = Log()
    rows = compare(base, grids, tmp_path, seeds=2, all_strengths=True, progress=log)
    assert len(rows) == 2*2*2 + 1 and log.planned == 8 and rows.final.all() and rows.acc1[:-1].notna().all() and rows.chosen.sum() == 2*2 + 1
    for s, g in rows[rows.strategy != 'untouched'].groupby('strategy'):
        setting = 'lam' if s == 'l2sp' else 'lr'
        valid = g.astype(dict(valid_acc1=float)).groupby(setting).valid_acc1.mean()
        assert g[g.chosen.astype(bool)][setting].nunique() == 1 and valid[g[g.chosen.astype(bool)][setting].iloc[0]] == valid.max()
    write_report(rows, tmp_path)
    for n in ('paths.png', 'trade_off_source_acc.csv', 'trade_off_source_probe.md'): assert (tmp_path/n).stat().st_size


def test_other_tasks_and_the_barrier_are_columns(base, tmp_path):
    row = execute(replace(base, others=base.task, with_barrier=True, final=True), tmp_path)
    kept = json.loads((tmp_path/'runs'/row['key']/'kept.json').read_text())
    name = datasets_module.create_task(base.task).name
    assert row['other_probe'] == kept[f'others.{name}'] and row['barrier'] >= 0 and 0 <= row['source_acc_bn'] <= 1
    assert execute(replace(base, final=True), tmp_path)['barrier'] is None


def test_the_best_epoch_on_valid_is_what_is_measured(base, tmp_path):
    run = replace(base, epochs=4, lr=.4, select='valid', final=True)
    row = execute(run, tmp_path)
    log = pd.read_csv(tmp_path/'runs'/run.key/'epochs.csv')
    assert row['best_epoch'] == log.accuracy.idxmax() and row['valid_acc1'] == row['best_valid_acc1'] == pytest.approx(log.accuracy.max()) and row['best_acc1'] is None
    if row['best_epoch'] < 3:
        curve = pd.read_csv(tmp_path/'runs'/run.key/'curve.csv')
        assert row['weight_distance'] == pytest.approx(curve.weight_distance[row['best_epoch']], rel=1e-5) != curve.weight_distance[3]
    with pytest.raises(InputError, match='no valid part'): train_run(replace(run, valid_frac=0.), load_source(run, tmp_path))


def test_the_last_epoch_on_all_of_train_is_the_same_where_the_best_on_test_is_kept_beside_it(base, tmp_path):
    "What is read of test in between changes nothing of the training; without a valid part there is nothing to validate on"
    run = replace(base, source='', valid_frac=0., strategy='self_distill', lam=3., clips=3, epochs=4, final=True)
    last, paper = execute(run, tmp_path), execute(replace(run, select='paper'), tmp_path)
    assert last['status'] == paper['status'] == 'ok', (last['error'], paper['error'])
    scores = [(tmp_path/'runs'/r['key']/'scores.csv').read_text() for r in (last, paper)]
    assert scores[0] == scores[1] and (last['acc1'], last['acc5']) == (paper['acc1'], paper['acc5']) and last['best_acc1'] is last['valid_acc1'] is None
    a, b = (pd.read_csv(tmp_path/'runs'/r['key']/'epochs.csv') for r in (last, paper))
    assert a.accuracy.isna().all() and paper['best_epoch'] == b.test_accuracy.idxmax() and paper['best_acc1'] is not None
    for c in ('train_loss', 'self_distill', 'moved'): assert a[c].notna().all() and a[c].tolist() == b[c].tolist(), c


def test_early_stopping_counts_epochs_without_a_better_one(base, tmp_path):
    accs = iter([.5, .6, .6, .55, .4, .9])
    stop = KeepBest(load=False, patience=3)
    learn = learner(cbs=stop, metrics=ValueMetric(lambda: next(accs), 'accuracy'))
    learn.fit(9)
    assert len(learn.recorder.values) == 5 and (stop.epoch_, stop.best) == (1, .6) and next(accs) == .9
    row = execute(replace(base, epochs=6, lr=1e-30, patience=2), tmp_path)  # nothing gets better
    assert len(pd.read_csv(tmp_path/'runs'/row['key']/'epochs.csv')) == 3 and row['status'] == 'ok'


def test_grids_and_batches():
    assert [g['lr'] for g in strength_grid('finetune', .1, n=3)] == [.1, .05, .025] and [g['lam'] for g in strength_grid('ewc', .1, [3, 1])] == [1, 3]
    assert {len(s.lams) for s in STRATEGIES.values()} == {0, 3} and [g['lr'] for g in strength_grid('linear_probe', .1, n=2)] == [.1, .05]
    assert fit_batch_size(100, 32) == 32 and fit_batch_size(63, 32) == 16 and fit_batch_size(2, 32) == 1
    with pytest.raises(InputError, match='same number of trials'): compare(Run(), {'finetune': [{}], 'ewc': [{}, {}]}, '.')
    with pytest.raises(InputError, match='name=value'): Run(model_args='x').options()
    assert Run(model_args='pad_type=same,width=8,flag=true').options() == dict(pad_type='same', width=8, flag=True)
