"A chain of tasks is trained once, goes on where it stopped, and its numbers can be recomputed from its files."
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace as NS

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.torch_core import set_seed
from helpers import learner, same, small_run, state
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sdfast.errors import InputError
from sdfast.metrics.continual import (
    average_accuracy,
    backward_transfer,
    forward_transfer,
    task_forgetting,
)
from sdfast.models.encoders import create_model
from sdfast.models.weights import state_hash
from sdfast.report import chains as chains_module
from sdfast.report.chains import accuracy_matrices, sequence_summary
from sdfast.runtime.progress import Progress
from sdfast.strategies import L2SP, SI, STRATEGIES, Importance, PathIntegral
from sdfast.study import chain as chain_module
from sdfast.study import execute as execute_module
from sdfast.study import source as source_module
from sdfast.study.chain import Accuracies, Carried, TaskPath, compare_sequences, train_chain
from sdfast.study.choose import strength_grid
from sdfast.study.execute import train_run
from sdfast.study.source import load_source

ROOT = Path(__file__).parents[2]
NAN = np.nan


# --- what a stage knows of those before ---------------------------------------------------------------------------------

def test_path_of_the_task_alone():
    "Beside SI it follows the gradient less what SI added; without a penalty it is `PathIntegral`"
    net = learner().model
    importance = Importance({n:torch.rand_like(p) for n, p in net[0].named_parameters()}, {n:torch.randn_like(p) for n, p in net[0].named_parameters()}, 1)
    class ByHand(Callback):
        order, run_valid = 4, False
        def before_fit(self): self.sum = {n:0. for n, _ in self.model[0].named_parameters()}
        def before_step(self): self.before = {n:(p.detach().clone(), p.grad - .3*importance.diag[n]*(p.detach() - importance.anchor[n])) for n, p in self.model[0].named_parameters()}
        def after_step(self):
            for n, p in self.model[0].named_parameters(): self.sum[n] = self.sum[n] - self.before[n][1]*(p.detach() - self.before[n][0])
    path, hand = TaskPath(), ByHand()
    learner([path, SI(.3, importance), hand]).fit(2)
    for n, v in hand.sum.items(): torch.testing.assert_close(path.integral[n], v, rtol=1e-4, atol=1e-6)
    alone, plain = TaskPath(), PathIntegral()
    runs = [learner([cb]) for cb in (alone, plain)]
    for learn in runs: learn.fit(2)
    assert same(state(runs[0].model), state(runs[1].model)) and all(torch.equal(a, b) for a, b in zip(alone.importance().diag.values(), plain.importance().diag.values()))
    pulled = [learner([L2SP(.1), *cbs]) for cbs in ([], [TaskPath()])]
    for learn in pulled: learn.fit(1)
    assert same(state(pulled[0].model), state(pulled[1].model))  # watching changes nothing


def test_importance_adds_up_over_stages():
    def part(scale, at): return NS(model=None, batches=None, id='', path_integral=None, fisher=Importance(dict(w=torch.tensor([scale, 3*scale])), dict(w=torch.full((2,), at)), 5), mas=None, si=None)
    first, second = part(1., 0.), part(100., 7.)
    assert Carried([first]).fisher is first.fisher  # after the source alone it is what a study of one task holds on to
    both = Carried([first, second]).fisher
    assert both.diag['w'].tolist() == [1., 3.] and both.anchor['w'].tolist() == [7., 7.] and both.n == 10  # tasks count alike, whatever their scale


# --- a chain ------------------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures('fresh')


@pytest.fixture
def bases(clips):
    "A source and two tasks; the second asks for the other half of the question"
    base = small_run(clips, source_valid=True)
    return [base, replace(base, bs=2)]


@pytest.fixture
def trained(monkeypatch):
    "The runs that were really trained"
    runs = []
    monkeypatch.setattr(execute_module, 'fine_tune', lambda run, *a: runs.append(run) or train_run(run, *a))
    return runs


def start(bases, out): return replace(load_source(bases[0], out), retention=None), out, Accuracies(bases)


def chain(bases, **changes): return [replace(r, final=True, **changes) for r in bases]


def stable(rows): return [{k:v for k, v in r.items() if k != 'seconds'} for r in rows]


def test_a_chain_goes_on_where_it_stopped(bases, tmp_path, trained):
    at, runs = start(bases, tmp_path), chain(bases, strategy='si', lam=.03)
    rows = train_chain(runs, *at)
    assert trained == runs and [r['status'] for r in rows] == ['ok']*2 and [r['stage'] for r in rows] == [1, 2] and [r['task'] for r in rows] == at[2].names[1:] == ['clips0', 'clips0-2']
    assert rows[0]['before'] == runs[0].source_key and rows[1]['before'] == rows[0]['key'] != rows[1]['key']
    folders = [tmp_path/'stages'/r['key'] for r in rows]
    for f in folders: assert {p.name for p in f.iterdir() if p.name[0] != '.'} == {'run.json', 'encoder.safetensors', 'head.safetensors', 'path.safetensors', 'epochs.csv', 'log.txt', 'result.json'}
    assert train_chain(runs, *at) == rows and len(trained) == 2
    (folders[1]/'result.json').unlink()
    (folders[1]/'encoder.safetensors').write_text('half')
    source_module._sources.clear()
    assert stable(train_chain(runs, *start(bases, tmp_path))) == stable(rows) and trained[2:] == runs[1:]  # from the files of the stage before, the same numbers
    # what comes before is part of what a stage is: the same Run as a second stage and as a first
    assert train_chain([runs[1]], *at)[0]['key'] != rows[1]['key']


def test_numbers_are_those_of_the_saved_models(bases, tmp_path):
    "Old heads and probes, computed anew from the files alone"
    source, _, accuracies = at = start(bases, tmp_path)
    rows = train_chain(chain(bases, strategy='self_distill', lam=1.), *at)
    files = [tmp_path/'source'/bases[0].source_key, *(tmp_path/'stages'/r['key'] for r in rows)]
    heads = [load_file(f/'head.safetensors') for f in files]
    for i, row in enumerate(rows, 1):
        encoder = create_model('tiny', 2, width=8)[0]
        encoder.load_state_dict(load_file(files[i]/'encoder.safetensors'))
        encoder.eval()
        def features(dl):
            with torch.no_grad(): return [torch.cat(t) for t in zip(*((encoder(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor)) for x, y in dl))]
        for j, (n, task) in enumerate(zip(accuracies.names, accuracies.tasks)):
            dls = task.dls(4, 1, 24, 4)
            x, y = features(task.dl(dls, 'test'))
            xv, yv = features(task.dl(dls, 'valid'))
            xt, yt = features(task.dl(dls, 'train'))
            assert (f'head.{n}' in row) == (f'valid.{n}' in row) == (j <= i)
            if j <= i:
                w, b = heads[j]['weight'], heads[j]['bias']
                assert row[f'head.{n}'] == pytest.approx(((x @ w.T + b).argmax(1) == y).double().mean().item())
                assert row[f'valid.{n}'] == pytest.approx(((xv @ w.T + b).argmax(1) == yv).double().mean().item())
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=.1)).fit(xt, yt)
            assert row[f'probe.{n}'] == pytest.approx(probe.score(x, y))


def test_the_first_stage_is_the_run_that_a_study_of_one_task_does(bases, tmp_path):
    source, out, accuracies = start(bases, tmp_path)
    run = chain(bases, strategy='ewc', lam=.1)[0]
    row = train_chain([run], source, out, Accuracies(bases[:1]))[0]
    learn, why = train_run(run, load_source(bases[0], out))
    saved = load_file(tmp_path/'stages'/row['key']/'encoder.safetensors')
    assert why is None and same({k:v.cpu() for k, v in learn.model[0].state_dict().items()}, saved)


def test_a_stage_begins_with_what_the_one_before_left(bases, tmp_path):
    source, _, accuracies = at = start(bases, tmp_path)
    a, b = chain(bases)
    rows = train_chain([a, replace(b, strategy='linear_probe')], *at)
    first, second = (load_file(tmp_path/'stages'/r['key']/'encoder.safetensors') for r in rows)
    assert same(first, second) and not same(first, {k:v.cpu() for k, v in source.model[0].state_dict().items()})
    assert rows[1]['anchor'] != rows[0]['anchor'] == source.id
    for j in ('head.source', 'head.clips0', 'valid.clips0', 'probe.clips0'): assert rows[0][j] == rows[1][j], j  # the same encoder and head
    seen = []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(execute_module, 'fine_tune', lambda run, source, *a: seen.append(source) or train_run(run, source, *a))
        train_chain(chain(bases, seed=1), *at)
    assert [len(s.past) for s in seen] == [1, 2] and seen[1].id == state_hash(seen[1].model[0].state_dict()) != source.id
    assert same(state(seen[1].head), load_file(tmp_path/'stages'/train_chain(chain(bases, seed=1), *at)[0]['key']/'head.safetensors')) and seen[0].head is source.head


def test_trials_do_not_read_test(bases, tmp_path, monkeypatch):
    source, out, accuracies = start(bases, tmp_path)
    accuracies.test = accuracies.train = None
    rows = train_chain([replace(r, final=False) for r in bases], source, out, accuracies)
    assert [r['status'] for r in rows] == ['ok']*2 and {k.split('.')[0] for k in rows[1] if '.' in k} == {'valid'} and len([k for k in rows[1] if k.startswith('valid.')]) == 3


def test_every_strategy_goes_through_a_chain(bases, tmp_path):
    names = [s for s in STRATEGIES if s != 'lora' or find_spec('peft')]
    source, _, accuracies = at = start(bases, tmp_path)
    last = {}
    for s in names:
        rows = train_chain([replace(r, strategy=s, epochs=1, **strength_grid(s, .01, n=1)[0]) for r in bases], *at)
        assert [r['status'] for r in rows] == ['ok']*2, (s, rows[-1]['error'])
        last[s] = load_file(tmp_path/'stages'/rows[1]['key']/'encoder.safetensors')
    assert same(last['linear_probe'], {k:v.cpu() for k, v in source.model[0].state_dict().items()})
    plain = last.pop('finetune')
    assert not [s for s, w in last.items() if same(w, plain) and s not in ('wise_ft', 'pskd')]  # of one epoch PSKD has no teacher
    log = pd.read_csv(tmp_path/'stages'/train_chain([replace(r, strategy='lwf', epochs=1, lr=.01, lam=.3) for r in bases], *at)[1]['key']/'epochs.csv')
    assert 'lw_f' in log and 'lw_f.1' in log  # a term for each old head


def test_failures_end_a_chain_and_others_go_on(bases, tmp_path, monkeypatch):
    at = start(bases, tmp_path)
    runs = chain(bases)
    rows = train_chain([runs[0], replace(runs[1], lr=1e30)], *at)
    assert [r['status'] for r in rows] == ['ok', 'diverged'] and 'not finite' in rows[1]['error'] and 'head.source' not in rows[1]
    assert train_chain([runs[0], replace(runs[1], lr=1e30)], *at) == rows
    first = train_chain([replace(runs[0], lr=1e30), runs[1]], *at)
    assert [r['status'] for r in first] == ['diverged']
    with monkeypatch.context() as m:
        m.setattr(execute_module, 'fine_tune', lambda *a: 1/0)
        rows = train_chain(chain(bases, seed=3), *at)
        assert len(rows) == 1 and rows[0]['status'] == 'failed' and 'ZeroDivisionError' in rows[0]['error']
        assert 'Traceback' in (tmp_path/'stages'/rows[0]['key']/'log.txt').read_text()
    assert [r['status'] for r in train_chain(chain(bases, seed=3), *at)] == ['ok']*2  # tried again: the cause may be gone
    found = compare_sequences(bases, {'finetune': [dict(lr=.05)], 'l2sp': [dict(lam=1e38)]}, tmp_path, seeds=2)
    table = sequence_summary(found).set_index('strategy')
    assert table.failed.to_dict() == dict(finetune=0, l2sp=2) and table.runs.to_dict() == dict(finetune=2, l2sp=0) and np.isnan(table.average['l2sp'])
    with pytest.raises(InputError, match='no chain reached its end.*diverged'): sequence_summary(found[found.strategy != 'finetune'])


@pytest.mark.parametrize('change,word', [(dict(data='y'), 'one source'), (dict(valid_frac=0.), 'no valid part')])
def test_chains_that_cannot_be_measured(bases, change, word):
    with pytest.raises(InputError, match=word): Accuracies([bases[0], replace(bases[1], **change)])
    with pytest.raises(InputError, match='at least one task'): Accuracies([])
    with pytest.raises(InputError, match='source_valid'): Accuracies([replace(bases[0], source_valid=False)])


class Log(Progress):
    def __init__(self): self.lines, self.rows, self.planned = [], [], 0
    def plan(self, runs): self.planned = len(runs)
    def say(self, text): self.lines.append(text)
    def done(self, row, skipped=False): self.rows.append((row, skipped))


def test_a_study_of_chains(bases, tmp_path, trained):
    log, grids = Log(), {s:strength_grid(s, .05, None, 3)[:2] for s in ('finetune', 'l2sp')}
    rows = compare_sequences(bases, grids, tmp_path, seeds=2, progress=log)
    assert log.planned == len(log.rows) == 8 and len(trained) == 16 and len(rows) == 18 and set(rows.status) == {'ok'}
    for s, g in rows[~rows.final & (rows.stage == 2)].groupby('strategy'):  # the strength is the best on valid after the last stage, the strongest of equals
        strength = 'lr' if s == 'finetune' else 'lam'
        g = g.assign(score=g[[c for c in g if c.startswith('valid.')]].mean(axis=1)).sort_values(strength, ascending=s != 'finetune')
        assert set(rows[rows.final & (rows.strategy == s)][strength]) == {g[g.score == g.score.max()].iloc[-1][strength]}
    heads, probes = accuracy_matrices(rows), accuracy_matrices(rows, 'probe')
    assert list(heads) == [(s, i) for s in grids for i in range(2)]
    for at in heads: assert np.isnan(heads[at]).tolist() == np.triu(np.ones((3, 3), bool), 1).tolist() and not np.isnan(probes[at]).any()
    table = sequence_summary(rows).set_index('strategy')
    for s in grids:
        assert table.average[s] == pytest.approx(np.mean([average_accuracy(heads[s, i]) for i in range(2)])) and table.bwt[s] == pytest.approx(np.mean([backward_transfer(heads[s, i]) for i in range(2)]))
        assert table['forgetting.source'][s] == pytest.approx(np.mean([task_forgetting(heads[s, i])[0] for i in range(2)]))
    initial = rows[rows.strategy == 'random'][[c for c in rows if c.startswith('probe.')]].to_numpy(float)[0]
    assert table.fwt['l2sp'] == pytest.approx(np.mean([forward_transfer(probes['l2sp', i], initial) for i in range(2)]))
    set_seed(0)
    encoder = create_model('tiny', 1, width=8)[0]
    assert Accuracies(bases)(encoder, []) == {c:v for c, v in rows[rows.strategy == 'random'].iloc[0].items() if c.startswith('probe.')}
    d = [average_accuracy(heads['l2sp', i]) - average_accuracy(heads['finetune', i]) for i in range(2)]
    assert table.average_diff['l2sp'] == pytest.approx(np.mean(d)) and np.isnan(table.average_diff['finetune'])
    log = Log()
    again = compare_sequences(bases, grids, tmp_path, seeds=2, progress=log)
    assert len(trained) == 16 and all(skipped for _, skipped in log.rows)
    pd.testing.assert_frame_equal(again, rows)
    with pytest.raises(InputError, match='same number of trials'): compare_sequences(bases, {'finetune': [{}], 'ewc': [{}, {}]}, tmp_path)


# --- the script ---------------------------------------------------------------------------------------------------------

def test_a_folder_named_like_a_formula_or_a_tag(bases, clips, tmp_path, module):
    "Names of tasks are cells of runs.csv and matrix.csv and heads of columns of table.md"
    odd = tmp_path/'=1+1 <b>|x'
    shutil.copytree(clips, odd)
    names = Accuracies([bases[0], replace(bases[1], task=f'folder:{odd},group=(p\\d)_')]).names
    assert names == ['source', 'clips0', '_1+1 <b>|x']
    table = pd.DataFrame([{'strategy': 'finetune', 'lam': 0., 'lr': .1, 'runs': 1, 'failed': 0} | {c:.5 for n in ('average', 'learned', 'bwt', 'probe_average', 'fwt', *(f'forgetting.{n}' for n in names))
                                                                                                   for c in (n, f'{n}_low', f'{n}_high')}])
    head = chains_module.chain_markdown(table).splitlines()[0]
    assert '| forgetting \\_1+1 \\<b\\>\\|x |' in head


@pytest.fixture(scope='module')
def module():
    "The script"
    from sdfast.commands import sequence
    return sequence


@pytest.fixture(scope='module')
def call(module):
    "The script in this process: exit status, output and error text"
    def call(args, capsys):
        try: status = module.main(words(args))
        except SystemExit as e: status = e.code
        return status, *capsys.readouterr()
    return call


def words(args):
    "A command line of options and their values"
    return [w for k, v in args.items() for w in ([f'--{k.replace("_", "-")}'] if v is True else [f'--{k.replace("_", "-")}', str(v)])]


def test_the_script_end_to_end(call, clips, tmp_path, capsys, monkeypatch):
    spec = f'folder:{clips},group=(p\\d)_'
    args = dict(source=spec, tasks=f'{spec};{spec}', frames=4, size=24, bs=4, source_epochs=2, strategies='l2sp,linear_probe', lams='.1,1', quick=True, out=str(tmp_path))
    line = [sys.executable, str(ROOT/'experiments/sequence.py'), *words(args)]
    p = subprocess.run(line, capture_output=True, text=True, timeout=300, env=os.environ | dict(COLUMNS='200'))
    assert p.returncode == 0, p.stderr
    for word in ('source task: 2 epochs', '12/12', 'takes', 'average accuracy', 'linear_probe', 'FWT', 'matrix.csv'): assert word in p.stdout, word
    rows, table, means = (pd.read_csv(tmp_path/f'{n}.csv') for n in ('runs', 'table', 'matrix'))
    assert len(rows) == 12*2 + 2 and set(rows.status) == {'ok'} and rows[~rows.final]['head.source'].isna().all()
    assert table.strategy.tolist() == ['finetune', 'l2sp', 'linear_probe'] and table.set_index('strategy')['forgetting.source']['linear_probe'] == 0
    assert (tmp_path/'table.md').read_text().startswith('| strategy | strength | average accuracy | when learned | BWT | forgetting source | forgetting clips0 | average, new probes | FWT, new probes |\n')
    last = means[(means.strategy == 'l2sp') & (means.kind == 'head') & (means.after == 'clips0-2')]
    assert last.accuracy.mean() == pytest.approx(table.set_index('strategy').average['l2sp']) and set(last.task) == {'source', 'clips0', 'clips0-2'}
    monkeypatch.setenv('COLUMNS', '80')
    status, out, err = call(args, capsys)
    assert (status, err) == (0, '') and out.count('finished before') == 12 and '…' not in out
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'runs.csv'), rows)


@pytest.mark.parametrize('args,word', [(dict(tasks=' ; '), '--tasks names no task'), (dict(tasks='folder:nowhere'), 'folder nowhere does not exist'), (dict(tasks='SPEC;ucf'), "unknown task 'ucf'"),
                                       (dict(source='csv:no.csv'), 'csv file no.csv does not exist'), (dict(strategies='l2sp,magic'), "unknown strategy 'magic'"), (dict(lams='l2sp=1'), 'same number of trials'),
                                       (dict(seeds=0), '--seeds must be at least 1'), (dict(lr=0.), '--lr must be positive'), (dict(out='FILE/x'), 'cannot be made'),
                                       (dict(lr=1e30, epochs=1, seeds=1, source_epochs=1, strategies='', quick=True), 'no chain reached its end')], ids=lambda a: str(a)[:40])
def test_bad_input_is_one_line_and_status_2(call, clips, tmp_path, capsys, args, word):
    spec = f'folder:{clips},group=(p\\d)_'
    (tmp_path/'file').write_text('')
    args = dict(tasks=spec, source=spec, frames=4, size=24, bs=4, out=str(tmp_path/'out')) | args
    args = {k:v.replace('SPEC', spec).replace('FILE', str(tmp_path/'file')) if isinstance(v, str) else v for k, v in args.items()}
    status, _, err = call(args, capsys)
    assert status == 2 and word in err and err.count('\n') == 1 and 'Traceback' not in err


def test_ctrl_c_and_going_on(call, clips, tmp_path, capsys, monkeypatch):
    spec = f'folder:{clips},group=(p\\d)_'
    args = dict(tasks=spec, source=spec, frames=4, size=24, bs=4, epochs=1, source_epochs=1, seeds=2, strategies='', lams='1', out=str(tmp_path))
    def stop(run, *a):
        if run.seed == 1 and run.final: raise KeyboardInterrupt
        return train_run(run, *a)
    with monkeypatch.context() as m:
        m.setattr(execute_module, 'fine_tune', stop)
        status, _, err = call(args, capsys)
    assert status == 130 and 'the same command resumes' in err and len(list(tmp_path.glob('stages/*/result.json'))) == 4
    status, out, err = call(args, capsys)
    assert (status, err) == (0, '') and out.count('finished before') == 4


def test_shipped_results_are_complete(module):
    folder = ROOT/'experiments/results/sequence'
    rows = pd.read_csv(folder/'runs.csv')
    chains = rows[~rows.strategy.isin(['untouched', 'random'])]
    final = chains[chains.final]
    assert final.groupby('strategy').seed.apply(lambda s: tuple(sorted(s))).nunique() == 1, 'seeds are paired, and no stage is missing'
    assert chains[~chains.final].groupby('strategy').size().nunique() == 1, 'each strategy has as many trials'
    assert chains[~chains.final][[c for c in rows if c.startswith(('head.', 'probe.'))]].isna().all(axis=None), 'trials do not read test'
    assert (folder/'table.md').read_text() == chains_module.chain_markdown(sequence_summary(rows)) and chains_module.chain_markdown(sequence_summary(rows)) in (ROOT/'experiments/README.md').read_text()
    pd.testing.assert_frame_equal(pd.read_csv(folder/'matrix.csv'), chains_module.matrix_table(rows), rtol=1e-5)


def test_chains_that_are_killed_or_shared_end_the_same(bases, tmp_path):
    "Real processes, killed after a random number of batches; then two at once"
    import multiprocessing as mp
    import os
    import signal
    import time

    from test_execute import fork
    grids = dict(finetune=[dict(lr=.05)], si=[dict(lam=.1)])
    whole = compare_sequences(bases, grids, tmp_path/'whole', seeds=1)
    batches, kills, ended = mp.Value('i', 0), 0, (0, 0)
    class Count(Progress):
        def epoch(self, epoch, done): batches.value += 1
    def go(): compare_sequences(bases, grids, tmp_path/'killed', seeds=1, progress=Count())
    while True:
        source_module._sources.clear(), chain_module._shared.cache_clear()
        pid, until = fork(go), batches.value + 3 + 2*kills
        while batches.value < until and (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0): time.sleep(.001)
        if ended != (0, 0): break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    assert ended == (pid, 0) and kills >= 3
    def clean(rows): return rows.drop(columns='seconds')
    pd.testing.assert_frame_equal(clean(compare_sequences(bases, grids, tmp_path/'killed', seeds=1)), clean(whole))
    pids = [fork(lambda: compare_sequences(bases, grids, tmp_path/'two', seeds=1)) for _ in range(2)]
    assert [os.waitpid(p, 0)[1] for p in pids] == [0, 0]
    source_module._sources.clear(), chain_module._shared.cache_clear()
    pd.testing.assert_frame_equal(clean(compare_sequences(bases, grids, tmp_path/'two', seeds=1)), clean(whole))
