"A run is a function of its `Run`; killed or interrupted, it ends with the same numbers."
import json
import random
import subprocess
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from helpers import Log, forget, timeless
from processes import kill_until_done

from sdfast.data import datasets as datasets_module
from sdfast.errors import InputError, StoreError
from sdfast.strategies import STRATEGIES
from sdfast.study.choose import strength_grid
from sdfast.study.compare import compare
from sdfast.study.config import Run
from sdfast.study.execute import execute, train_run
from sdfast.study.folder import finished
from sdfast.study.source import load_source

pytestmark = pytest.mark.usefixtures('fresh')
GRIDS = dict(ewc=[dict(lam=.1)], si=[dict(lam=.1)], ema_teacher=[dict(lam=1.)], wise_ft=[dict(lam=.3)])


def read_epochs(row, out): return pd.read_csv(out/'runs'/row['key']/'epochs.csv')


# ---- what a run finds

def test_the_same_numbers_in_another_folder(base, tmp_path):
    run = replace(base, strategy='self_distill', lam=3., final=True)
    a = execute(run, tmp_path/'a')
    forget()
    assert timeless(execute(run, tmp_path/'b')) == timeless(a)


def test_a_strategy_with_lam_0_ends_where_plain_fine_tuning_does(base, tmp_path):
    "Runs are paired: head, order and clips are the same, whatever a strategy does in between"
    names = [s for s, entry in STRATEGIES.items() if entry.lams or s == 'finetune']
    rows = [execute(replace(base, strategy=s, lam=0., final=True), tmp_path) for s in names]
    for c in ('valid_acc1', 'acc1', 'source_acc', 'source_probe', 'drift', 'weight_distance'):
        assert len({r[c] for r in rows}) == 1, c
    other = execute(replace(base, seed=1, final=True), tmp_path)
    assert other['weight_distance'] != rows[0]['weight_distance']


def test_every_strategy_of_the_registry_runs(base, tmp_path):
    names = [s for s in STRATEGIES if s != 'lora' or find_spec('peft')]
    rows = compare(base, {s:strength_grid(s, .01, n=1)[:1] for s in names}, tmp_path, seeds=1)
    assert set(rows.status) == {'ok'}, rows[rows.status != 'ok'][['strategy', 'error']]
    assert rows.strategy.tolist() == [*names, 'untouched']
    assert rows[rows.strategy != 'untouched'].acc1.notna().all()
    got = rows.set_index('strategy')
    assert got.weight_distance['linear_probe'] == 0
    assert got.drift['linear_probe'] == 0
    log = pd.read_csv(tmp_path/'runs'/got.key['self_distill']/'epochs.csv')
    columns = {'self_distill', 'self_distill_ratio', 'self_distill_cos', 'self_distill_age', 'moved'}
    assert columns <= set(log.columns)


def test_a_stored_source_has_all_that_strategies_need(base, tmp_path):
    si = replace(base, strategy='si', lam=.03, lr=.01)
    load_source(si, tmp_path)
    forget()
    assert execute(si, tmp_path)['status'] == 'ok'
    untrained = execute(replace(si, init=None, source_epochs=0), tmp_path)
    assert untrained['error'].startswith('InputError: SI needs to see how the weights were learned')


def test_no_training_forgets_nothing(base, tmp_path):
    row = execute(replace(base, lr=1e-30, final=True), tmp_path)
    ref = load_source(base, tmp_path).retention.reference
    assert row['weight_distance'] == 0
    assert row['source_probe'] == pytest.approx(ref.source_probe, abs=.3)  # batch norm's statistics move


def test_other_tasks_and_the_barrier_are_columns(base, tmp_path):
    row = execute(replace(base, others=base.task, with_barrier=True, final=True), tmp_path)
    kept = json.loads((tmp_path/'runs'/row['key']/'kept.json').read_text())
    name = datasets_module.create_task(base.task).name
    assert row['other_probe'] == kept[f'others.{name}']
    assert row['barrier'] >= 0
    assert 0 <= row['source_acc_bn'] <= 1
    assert execute(replace(base, final=True), tmp_path)['barrier'] is None


def test_a_run_over_all_files_ends(torture_folder, tmp_path):
    "Odd and broken videos, too"
    spec = f'folder:{torture_folder}'
    row = execute(Run(task=spec, source='', size=32, frames=4, bs=4, epochs=1, final=True), tmp_path)
    assert row['status'] == 'ok', row['error']
    scores = pd.read_csv(tmp_path/'runs'/row['key']/'scores.csv', dtype=dict(label=str))
    assert list(zip(scores.path, scores.label)) == datasets_module.create_task(spec).items('test')
    np.testing.assert_allclose(scores[['a', 'b', 'c']].sum(1), 1, atol=1e-4)


# ---- which epoch is measured

def test_the_best_epoch_on_valid_is_measured(base, tmp_path):
    run = replace(base, epochs=4, lr=.4, select='valid', final=True)
    row = execute(run, tmp_path)
    log = read_epochs(row, tmp_path)
    assert row['best_epoch'] == log.accuracy.idxmax()
    assert row['valid_acc1'] == row['best_valid_acc1'] == pytest.approx(log.accuracy.max())
    assert row['best_acc1'] is None
    if row['best_epoch'] < 3:
        course = pd.read_csv(tmp_path/'runs'/run.key/'curve.csv').weight_distance
        assert row['weight_distance'] == pytest.approx(course[row['best_epoch']], rel=1e-5) != course[3]


def test_a_best_epoch_needs_a_valid_part(base, tmp_path):
    run = replace(base, select='valid', valid_frac=0.)
    with pytest.raises(InputError, match='no valid part'): train_run(run, load_source(run, tmp_path))


def test_only_the_last_epoch_is_validated_unless_one_is_chosen(base, tmp_path):
    "What callbacks show is there for each epoch, and skipped validations change no number of the row"
    run = replace(base, strategy='self_distill', lam=3., final=True)
    def epochs(run): return pd.read_csv(tmp_path/'runs'/run.key/'epochs.csv')
    row = execute(run, tmp_path)
    table = epochs(run)
    assert table.accuracy.notna().tolist() == table.valid_loss.notna().tolist() == [False, True]
    others = table.drop(columns=['accuracy', 'valid_loss', 'self_distill_cos', 'self_distill_age'], errors='ignore')
    assert {'train_loss', 'moved', 'kept_drift'} <= set(others) and others.notna().all(axis=None)
    chosen = replace(run, select='valid')
    again = execute(chosen, tmp_path)
    assert epochs(chosen).accuracy.notna().all()
    pd.testing.assert_frame_equal(epochs(chosen)[others.columns], others)
    if again['best_epoch'] == 1: assert again['acc1'] == row['acc1'] and again['drift'] == row['drift']


def test_reading_test_in_between_does_not_change_training(base, tmp_path):
    "With `select='paper'` test is read after each epoch; without a valid part nothing is validated on"
    run = replace(base, source='', valid_frac=0., strategy='self_distill', lam=3., clips=3, epochs=4, final=True)
    last, paper = execute(run, tmp_path), execute(replace(run, select='paper'), tmp_path)
    assert last['status'] == paper['status'] == 'ok', (last['error'], paper['error'])
    scores = [(tmp_path/'runs'/r['key']/'scores.csv').read_text() for r in (last, paper)]
    assert scores[0] == scores[1]
    assert (last['acc1'], last['acc5']) == (paper['acc1'], paper['acc5'])
    assert last['best_acc1'] is None
    assert last['valid_acc1'] is None
    a, b = read_epochs(last, tmp_path), read_epochs(paper, tmp_path)
    assert a.accuracy.isna().all()
    assert paper['best_epoch'] == b.test_accuracy.idxmax()
    assert paper['best_acc1'] is not None
    for c in ('train_loss', 'self_distill', 'moved'):
        assert a[c].notna().all(), c
        assert a[c].tolist() == b[c].tolist(), c


def test_a_run_ends_early_without_improvement(base, tmp_path):
    row = execute(replace(base, epochs=6, lr=1e-30, patience=2), tmp_path)  # nothing gets better
    assert row['status'] == 'ok'
    assert len(read_epochs(row, tmp_path)) == 3


# ---- interruptions

def results(out):
    "Contents of all `result.json`, without times"
    found = {}
    for f in out.glob('runs/*/result.json'):
        result = json.loads(f.read_text())
        for k in ('seconds', 'ended', 'sha256'): del result[k]
        del result['files']['log.txt']
        found[f.parent.name] = result
    return found


def test_killed_again_and_again_it_ends_with_the_same_numbers(longer, tmp_path):
    whole = compare(longer, GRIDS, tmp_path/'whole', seeds=1)
    forget()
    rng, out, resumed = random.Random(0), tmp_path/'killed', []
    def work(progress): compare(longer, GRIDS, out, seeds=1, progress=progress)
    def killed(): resumed.append(bool(list(out.glob('runs/*/epoch-*.pt'))))
    kills = kill_until_done(work, lambda _: rng.randint(3, 14), lambda: rng.uniform(0, .1), killed)
    assert kills >= 4
    assert sum(resumed) >= 2
    after = compare(longer, GRIDS, out, seeds=1)
    pd.testing.assert_frame_equal(after.drop(columns='seconds'), whole.drop(columns='seconds'))
    assert results(out) == results(tmp_path/'whole')  # digests of scores, epochs and curves, too
    source = f'source/{longer.source_key}/scores.csv'
    assert (out/source).read_bytes() == (tmp_path/'whole'/source).read_bytes()
    for f in out.glob('runs/*/epochs.csv'): assert len(pd.read_csv(f)) == 4
    assert not list(out.rglob('epoch-*.pt'))
    assert not list(out.glob('runs/*/.*.tmp'))


class Stop(Log):
    "Interrupts a run in an epoch"
    def __init__(self, at):
        super().__init__()
        self.at, self.training = at, False

    def start(self, what, epochs): self.training = not isinstance(what, str)

    def epoch(self, epoch, done):
        if self.training and epoch == self.at: raise KeyboardInterrupt


class Epochs(Log):
    "Remembers the epochs that were trained"
    def __init__(self):
        super().__init__()
        self.seen = set()

    def epoch(self, epoch, done): self.seen.add(epoch)


def test_a_run_resumes_and_does_not_start_again(longer, tmp_path):
    run = replace(longer, strategy='self_distill', lam=3., final=True)
    whole = execute(run, tmp_path/'whole')
    load_source(run, tmp_path/'cut')
    with pytest.raises(KeyboardInterrupt): execute(run, tmp_path/'cut', Stop(at=2))
    assert len(list((tmp_path/'cut'/'runs'/run.key).glob('epoch-00002-*.pt'))) == 1
    row = execute(run, tmp_path/'cut', epochs := Epochs())
    assert epochs.seen == {2, 3}
    assert timeless(row) == timeless(whole)


def test_a_full_disk_stops_the_study_which_resumes(longer, tmp_path):
    "A real disk, of 3 MB"
    disk = tmp_path/'disk'
    disk.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', str(disk)]
    if subprocess.run(mount, capture_output=True).returncode: pytest.skip('no tmpfs can be mounted here')
    try:
        run = replace(longer, strategy='ema_teacher', lam=1., final=True)
        load_source(run, disk)
        filler = disk/'filler'
        with open(filler, 'wb', buffering=0) as f, pytest.raises(OSError):
            while True: f.write(b'x'*1000)
        with pytest.raises(StoreError, match='No space left on device'): execute(run, disk)
        assert finished(run, disk) is None
        assert not list(disk.rglob('.*.tmp'))
        filler.unlink()
        row = execute(run, disk)
    finally: subprocess.run(['umount', '-l', str(disk)], check=True)  # weights may still be mapped into memory
    assert timeless(row) == timeless(execute(run, tmp_path/'roomy'))
