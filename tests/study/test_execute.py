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

<<<<<<< HEAD
from sdfast.data import block as block_module
from sdfast.data.datasets import create_task
=======
from sdfast.data import datasets as datasets_module
>>>>>>> aa2f11f ([study] Split the tests by module)
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


<<<<<<< HEAD
def test_the_source_stage_validates_nothing(base, tmp_path, monkeypatch):
    "Nobody reads it, and the weights are the same with it"
    base, seen, given = replace(base, source_valid=True), [], block_module.MultiClip.before_batch
    monkeypatch.setattr(block_module.MultiClip, 'before_batch', lambda self: seen.append(self.training) or given(self))
    source = load_source(base, tmp_path/'without')
    assert seen and all(seen)
    source_module._sources.clear(), seen.clear()
    monkeypatch.setattr(fit_module.SkipValidation, 'before_validate', lambda self: None)
    assert load_source(base, tmp_path/'with').id == source.id and not all(seen)


def test_killed_again_and_again_it_ends_with_the_same_numbers(base, tmp_path):
    whole = compare(base, GRIDS, tmp_path/'whole', seeds=1)
    source_module._sources.clear(), loaders_module.load_data.cache_clear()
    rng, kills, resumed, batches, ended = random.Random(0), 0, 0, mp.Value('i', 0), (0, 0)
    class Count(Progress):
        def epoch(self, epoch, done): batches.value += 1
    while True:
        pid, until = fork(lambda: compare(base, GRIDS, tmp_path/'killed', seeds=1, progress=Count())), batches.value + rng.randint(3, 14)
        while batches.value < until and (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0): time.sleep(.001)
        if ended != (0, 0): break
        time.sleep(rng.uniform(0, .1))  # in the middle of whatever it does now
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
        resumed += bool(list((tmp_path/'killed').glob('runs/*/epoch-*.pt')))
    assert ended == (pid, 0) and kills >= 4 and resumed >= 2, (ended, kills, resumed)
    after = compare(base, GRIDS, tmp_path/'killed', seeds=1)
=======
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
>>>>>>> aa2f11f ([study] Split the tests by module)
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
<<<<<<< HEAD
    assert {k:v for k, v in row.items() if k != 'seconds'} == {k:v for k, v in execute(run, tmp_path/'roomy').items() if k != 'seconds'}


def test_importances_are_computed_once_and_read_by_others(base, tmp_path, monkeypatch):
    first = load_source(base, tmp_path)
    a, b = first.fisher, first.mas
    source_module._sources.clear()
    for n in ('empirical_fisher', 'mas_importance'): monkeypatch.setattr(source_module, n, lambda *a: 1/0)
    again = load_source(base, tmp_path)
    for x, y in ((a, again.fisher), (b, again.mas), (first.si, again.si)): assert x.n == y.n and list(x.diag) == list(y.diag) and all(torch.equal(x.diag[k], y.diag[k]) and torch.equal(x.anchor[k], y.anchor[k]) for k in x.diag)
    next((tmp_path/'source'/base.source_key).glob('fisher-*')).write_bytes(b'damaged')
    source_module._sources.clear()
    with pytest.raises(ZeroDivisionError), pytest.warns(UserWarning, match='fisher-.* is damaged.*computed anew'): load_source(base, tmp_path).fisher


def test_what_an_untouched_encoder_scores_needs_no_clip(base, tmp_path, monkeypatch):
    source = load_source(base, tmp_path)
    monkeypatch.setattr(source_module, 'load_source', lambda *a: 1/0)
    known = untouched(base, tmp_path)
    assert (known.id, known.reference) == (source.id, source.reference)
    monkeypatch.undo()
    file, log = folder_module.reference_file(base, tmp_path), Log()
    file.write_text(file.read_text()[:-9])
    source_module._sources.clear()
    assert untouched(base, tmp_path, log).reference == source.reference and 'measured again' in log.lines[0] and store.read_json(file)['reference'] == source.reference


def test_the_untouched_encoders_answers_are_sealed(base, tmp_path):
    load_source(base, tmp_path)
    file, log = tmp_path/'source'/base.source_key/'scores.csv', Log()
    data = file.read_bytes()
    def again(run):
        source_module._sources.clear()
        return untouched(run, tmp_path, log)
    for damage in (lambda: file.write_bytes(data[:-3]), file.unlink):
        damage()
        again(base)
        assert file.read_bytes() == data and 'scores.csv' in log.lines[-1] and 'measured again' in log.lines[-1]
    # a study with more to measure has a reference of its own, and the same answers; those that are there stay, as other threads may round otherwise
    n, rounded = len(log.lines), data.replace(b'0.', b'.0')
    file.write_bytes(rounded)
    reference = folder_module.reference_file(base, tmp_path)
    store.write_json(reference, store.read_json(reference) | dict(files={'scores.csv': store.digest(file)}))
    again(replace(base, with_barrier=True))
    assert file.read_bytes() == rounded and len(log.lines) == n
    again(base), again(replace(base, with_barrier=True))
    assert len(log.lines) == n


# --- workers ------------------------------------------------------------------------------------------------------------

def script(out, spec, *args):
    return [sys.executable, str(ROOT/'experiments/compare.py'), '--task', spec, '--source', spec, '--frames', '4', '--size', '24', '--epochs', '4', '--source-epochs', '2', '--bs', '4',
            '--strategies', 'ema_teacher', '--lams', '1,10', '--seeds', '3', '--out', str(out), *args]


ENV = os.environ | dict(OMP_NUM_THREADS='1')


@pytest.fixture(scope='module')
def spec(clips): return f'folder:{clips},group=(p\\d)_'


@pytest.fixture(scope='module')
def alone(spec, tmp_path_factory):
    "Rows of the study that one process does"
    out = tmp_path_factory.mktemp('alone')
    p = subprocess.run(script(out, spec), capture_output=True, text=True, env=ENV, timeout=500)
    assert p.returncode == 0, p.stderr
    return pd.read_csv(out/'runs.csv').drop(columns='seconds')


def worker_pids(out):
    "Of submitit's workers of a study"
    found = []
    for p in Path('/proc').glob('[0-9]*/cmdline'):
        try: line = p.read_text()
        except OSError: continue
        if f'{out}/workers' in line and 'submitit.core._submit' in line: found.append(int(p.parent.name))
    return found


def wait_for(what, seconds=240):
    deadline = time.time() + seconds
    while not (found := what()) and time.time() < deadline: time.sleep(.05)
    assert found
    return found


def test_workers_are_killed_and_the_study_ends_the_same(alone, spec, tmp_path):
    "First a worker, then the process that the user started; the same command ends as if nothing had been"
    out = tmp_path/'jobs'
    p = subprocess.Popen(script(out, spec, '--jobs', '2'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    try:
        wait_for(lambda: list(out.glob('runs/*/epoch-*.pt')) or list(out.glob('runs/*/result.json')))
        seen = wait_for(lambda: worker_pids(out))
        os.kill(seen[0], signal.SIGKILL)
        s = wait_for(lambda: (s := status_module.snapshot(out)) and any(x['state'] == 'ok' for x in s['pieces']) and s)
        assert s['total'] == 10 and '--jobs 2' in s['command']
        os.kill(p.pid, signal.SIGKILL)
        p.communicate(timeout=60)
        wait_for(lambda: not worker_pids(out), 60)  # nobody waits for them
    finally: p.kill()
    again = subprocess.run(script(out, spec, '--jobs', '2'), capture_output=True, text=True, env=ENV, timeout=500)
    assert again.returncode == 0, again.stderr
    assert 'finished before' in again.stdout
    pd.testing.assert_frame_equal(pd.read_csv(out/'runs.csv').drop(columns='seconds'), alone)
    shown = subprocess.run([sys.executable, str(ROOT/'experiments/status.py'), str(out)], capture_output=True, text=True, timeout=200)
    assert '10 of 10 done, 0 running, 0 failed' in shown.stdout and 'best on valid so far' in shown.stdout


def test_a_run_that_kills_its_workers_becomes_a_row(base, tmp_path):
    load_source(base, tmp_path)
    work = RunJob(str(tmp_path))
    runs = [replace(base, seed=i, epochs=1) for i in range(3)]
    (tmp_path/'deadly.py').write_text('import os, signal\nfrom sdfast.study import Runs\n\n\nclass Deadly(Runs):\n    def do(self, run, since, watch):\n        if run.seed == 1:\n'
                                      '            self.folder(run).mkdir(parents=True, exist_ok=True)\n            os.kill(os.getpid(), signal.SIGKILL)\n        return super().do(run, since, watch)\n')
    sys.path.insert(0, str(tmp_path))
    os.environ['PYTHONPATH'] = f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}'
    try:
        from deadly import Deadly
        log = Log()
        rows = run_all(runs, Deadly(str(tmp_path)), tmp_path, log, Launcher(1, 'local'))
    finally:
        sys.path.remove(str(tmp_path))
        os.environ['PYTHONPATH'] = os.environ['PYTHONPATH'].split(':', 1)[1]
    assert [r['status'] for r in rows] == ['ok', 'failed', 'ok'] and 'was killed' in rows[1]['error'] and any('ended before the work did' in l for l in log.lines)
    assert execute(runs[1], tmp_path)['status'] == 'ok' and work.read(runs[1], 0., log)['status'] == 'ok'


def test_workers_measure_what_they_need_of_the_source(base, tmp_path, monkeypatch):
    "The process that starts them trains the source and measures nothing; what the untouched encoder scores is written by one of them"
    grids = {s:strength_grid(s, .01, n=1)[:1] for s in ('finetune', 'linear_probe')}
    monkeypatch.setattr(retention_module, 'Retention', lambda *a, **k: 1/0)
    rows = compare(base, grids, tmp_path, seeds=1, launcher=Launcher(2, 'local'))
    assert set(rows.status) == {'ok'} and rows.strategy.tolist() == ['finetune', 'linear_probe', 'untouched'] and rows.source_acc.notna().all() and not source_module._sources and not loaders_module.load_data.cache_info().currsize


def test_what_no_worker_can_do_is_told_at_once(base, tmp_path):
    "Not taken for a worker that was killed, nor written down as the runs' failure"
    grids = {s:strength_grid(s, .01, n=1)[:1] for s in ('finetune', 'linear_probe')}
    bad = tmp_path/'bad.csv'
    bad.write_text('path,label,split,group\n')
    with pytest.raises(InputError, match='bad'): compare(replace(base, others=f'csv:{bad}'), grids, tmp_path/'out', seeds=1, launcher=Launcher(2, 'local'))
    assert len(list((tmp_path/'out/workers').glob('*submitted.pkl'))) == 2 and not list((tmp_path/'out').glob('runs/*/result.json'))


@pytest.mark.parametrize('jobs, trials, started', [(16, 3, 9), (4, 3, 4), (2, 12, 2)])
def test_as_many_workers_as_there_will_be_work_for(base, tmp_path, monkeypatch, jobs, trials, started):
    "Those that do the trials go on to the final runs, which may be more"
    asked = []
    monkeypatch.setattr(launch_module, '_start', lambda n, *a: asked.append(n) or 1/0)
    with pytest.raises(ZeroDivisionError): run_all([replace(base, seed=i) for i in range(trials)], RunJob(str(tmp_path)), tmp_path, launcher=Launcher(jobs, 'local'), total=9, then=lambda rows, progress: [])
    assert asked == [started]


@pytest.mark.parametrize('jobs', [0, 2])
def test_workers_go_on_with_what_follows(base, tmp_path, monkeypatch, jobs):
    "What follows from all results comes behind them, in the order in which it was given; workers are started once"
    load_source(base, tmp_path)
    runs = [replace(base, seed=i, epochs=1) for i in range(3)]
    (tmp_path/'following.py').write_text('from dataclasses import replace\n\n\ndef follow(rows, watch):\n    watch.say(f\'seeds {[r["seed"] for r in rows]}\')\n'
                                         '    return [replace(base(), seed=int(10 + 5*i + r["seed"]), epochs=1) for i, r in reversed(list(enumerate(rows)))]\n'
                                         '\n\ndef base():\n    import json\n    from pathlib import Path\n    from sdfast.study import Run\n    return Run(**json.loads((Path(__file__).parent/"base.json").read_text()))\n')
    (tmp_path/'base.json').write_text(json.dumps(asdict(base)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', f'{tmp_path}:{os.environ.get("PYTHONPATH", "")}')
    sys.modules.pop('following', None)
    from following import follow
    log = Log()
    rows = run_all(runs, RunJob(str(tmp_path)), tmp_path, log, Launcher(jobs, 'local') if jobs else None, total=6, then=follow)
    assert [r['seed'] for r in rows] == [0, 1, 2, 22, 16, 10] and {r['status'] for r in rows} == {'ok'}
    assert [l for l in log.lines if l.startswith('seeds')] == ['seeds [0, 1, 2]'] and status_module.snapshot(tmp_path)['total'] == len(status_module.snapshot(tmp_path)['pieces']) == 6
    assert len(list((tmp_path/'workers').glob('*submitted.pkl'))) == jobs and len(list((tmp_path/'runs').iterdir())) == 6  # nor did they do others
    assert run_all(runs, RunJob(str(tmp_path)), tmp_path, log, then=follow) == rows


BAD = [(dict(jobs=0), '--jobs must be at least 1'), (dict(cluster='pbs'), 'local or slurm'), (dict(options='partition=p'), 'is for --launcher slurm')]


@pytest.mark.parametrize('kwargs,text', BAD)
def test_launchers_that_cannot_be(kwargs, text):
    with pytest.raises(InputError, match=text): Launcher(**kwargs)


def test_slurm_options_are_checked_first(monkeypatch):
    import shutil
    monkeypatch.setattr(shutil, 'which', lambda c: '/bin/true')
    for bad in ('colour=red', 'partition', 'time=soon'):
        with pytest.raises(InputError, match='--slurm'): Launcher(4, 'slurm', bad)
    assert Launcher(4, 'slurm', 'partition=p, time=30,mem=1.5').options == dict(slurm_partition='p', timeout_min=30, mem_gb=1.5)
    monkeypatch.setattr(shutil, 'which', lambda c: None)
    with pytest.raises(InputError, match='no sbatch'): Launcher(4, 'slurm')


# --- watching -----------------------------------------------------------------------------------------------------------

def test_status_of_a_study_at_work(base, tmp_path, capsys):
    from rich.console import Console
    with pytest.raises(InputError, match='has no study'): status_module.snapshot(tmp_path)
    runs = [replace(base, seed=i) for i in range(4)]
    work = RunJob(str(tmp_path))
    execute(runs[0], tmp_path)
    execute(replace(runs[1]), tmp_path)
    work.fail(runs[1].__class__(**(runs[1].__dict__ | dict(seed=1))), 'lost <b>')
    with pytest.raises(KeyboardInterrupt):
        class Stop(Log):
            def epoch(self, epoch, done):
                if epoch == 1: raise KeyboardInterrupt
        execute(runs[2], tmp_path, Stop())
    store.write_json(tmp_path/'plan.json', dict(command='python x.py', total=6, folders=[f'runs/{r.key}' for r in runs]))
    s = status_module.snapshot(tmp_path)
    assert [p['state'] for p in s['pieces']] == ['ok', 'failed', 'stopped', 'waiting'] and s['pieces'][2]['epoch'] == 1
    with store.claim(work.folder(runs[2])):
        s = status_module.snapshot(tmp_path)
        assert s['pieces'][2]['state'] == 'running' and str(os.getpid()) in s['pieces'][2]['owner']
        left, seconds = status_module.time_left(s['pieces'], s['total']), [s['pieces'][i]['result']['seconds'] for i in (0,)]
        assert left == pytest.approx((3 + 4*3)*seconds[0]/4, rel=.01)  # three epochs of it and three runs more, by the pace of the finished one
        console = Console(width=160, record=True, file=open(os.devnull, 'w'))
        console.print(status_module.show_status(tmp_path))
        text = console.export_text()
    for word in ('python x.py', '1 of 6 done, 1 running, 1 failed', 'left', 'best on valid so far', 'failed: lost <b>', '1/4'): assert word in text, word


def test_logging_changes_nothing_and_goes_on(base, tmp_path, monkeypatch):
    pytest.importorskip('tensorboard', reason="pip install -e '.[log]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = replace(base, strategy='self_distill', lam=3.)
    plain = execute(run, tmp_path/'plain')
    row = execute(run, tmp_path, log=('tensorboard',))
    assert {k:v for k, v in row.items() if k != 'seconds'} == {k:v for k, v in plain.items() if k != 'seconds'}
    events = EventAccumulator(str(tmp_path/'tensorboard'/run.key)).Reload()
    assert {'train_loss', 'valid_loss', 'accuracy', 'self_distill'} <= set(events.Tags()['scalars']) and len(events.Scalars('accuracy')) == 4
    assert events.Scalars('self_distill')[-1].value == pytest.approx(pd.read_csv(tmp_path/'runs'/run.key/'epochs.csv').self_distill.iloc[-1], rel=1e-5)


def test_wandb_offline(base, tmp_path, monkeypatch):
    pytest.importorskip('wandb', reason="pip install -e '.[log]'")
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    run = replace(base, strategy='self_distill', lam=3.)
    plain = execute(run, tmp_path/'plain')
    row = execute(run, tmp_path, log=('wandb',))
    assert row['status'] == 'ok', row['error']
    assert {k:v for k, v in row.items() if k != 'seconds'} == {k:v for k, v in plain.items() if k != 'seconds'}
    files = list(tmp_path.glob('wandb/offline-run-*/run-*.wandb'))
    assert len(files) == 1 and run.key in files[0].name and files[0].stat().st_size > 1000


def test_unknown_loggers_are_told():
    from sdfast.runtime.loggers import check_loggers
    with pytest.raises(InputError, match='known are tensorboard, wandb'): check_loggers('comet')
    assert check_loggers('') == ()


# --- several processes for each run -------------------------------------------------------------------------------------

def test_torchrun_trains_as_one_process_does(write, tmp_path):
    "Square videos, all frames and a net without batch norm: nothing is drawn that could differ"
    for kind in ('right', 'down'):
        (tmp_path/'v'/kind).mkdir(parents=True)
        for i in range(12):
            x = np.zeros((4, 32, 32), np.uint8)
            for t in range(4):
                r, c = (8 + i, 2 + 6*t) if kind == 'right' else (2 + 6*t, 8 + i)
                x[t, r:r + 6, c:c + 6] = 255
            write(tmp_path/'v'/kind/f'p{i//2}_{i}.mp4', x)
    spec = f'folder:{tmp_path/"v"},group=(p\\d)_'
    def go(out, *launch):
        args = script(out, spec, '--size', '32', '--model', 'test_convnext', '--strategies', 'self_distill', '--lams', '3', '--seeds', '1', '--epochs', '3', '--source-epochs', '1', '--lr', '.01', '--source-lr', '.01')
        p = subprocess.run([sys.executable, *launch, *args[1:]], capture_output=True, text=True, env=ENV, timeout=500)
        assert p.returncode == 0, p.stderr
        return p.stdout, pd.read_csv(out/'runs.csv'), [pd.read_csv(f) for k in pd.read_csv(out/'runs.csv').key for f in out.glob(f'runs/{k}/epochs.csv')]
    _, one, logs1 = go(tmp_path/'one')
    said, two, logs2 = go(tmp_path/'two', '-m', 'torch.distributed.run', '--nproc_per_node', '2')
    assert said.count('2/2 ') == 1 and set(two.status) == {'ok'}  # one process speaks
    for c in ('valid_acc1', 'acc1', 'source_acc', 'source_probe'): assert one[c].fillna(-1).tolist() == two[c].fillna(-1).tolist(), c
    np.testing.assert_allclose(one.weight_distance, two.weight_distance, rtol=1e-4)
    assert len(logs1) == len(logs2) == 2
    for a, b in zip(logs1, logs2): np.testing.assert_allclose(a.valid_loss, b.valid_loss, rtol=1e-5)


def test_a_run_over_all_files_ends(torture_folder, tmp_path):
    row = execute(Run(task=f'folder:{torture_folder}', source='', size=32, frames=4, bs=4, epochs=1, final=True), tmp_path)
    assert row['status'] == 'ok', row['error']
    scores = pd.read_csv(tmp_path/'runs'/row['key']/'scores.csv', dtype=dict(label=str))
    task = create_task(f'folder:{torture_folder}')
    assert list(zip(scores.path, scores.label)) == task.items('test')
    np.testing.assert_allclose(scores[['a', 'b', 'c']].sum(1), 1, atol=1e-4)
=======
    assert timeless(row) == timeless(execute(run, tmp_path/'roomy'))
>>>>>>> aa2f11f ([study] Split the tests by module)
