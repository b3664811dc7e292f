"A chain of tasks is trained once, resumes where it stopped, and its numbers can be recomputed from its files."
from dataclasses import replace
from importlib.util import find_spec

import pandas as pd
import pytest
import torch
from helpers import forget, same, state, timeless
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sdfast.models.encoders import create_model
from sdfast.models.weights import state_hash
from sdfast.strategies import STRATEGIES
from sdfast.study import stage as stage_module
from sdfast.study.accuracies import Accuracies
from sdfast.study.chain import train_chain
from sdfast.study.choose import strength_grid
from sdfast.study.execute import train_run
from sdfast.study.source import load_source

pytestmark = pytest.mark.usefixtures('fresh')

FILES = {'run.json', 'encoder.safetensors', 'head.safetensors', 'path.safetensors', 'epochs.csv', 'log.txt',
         'result.json'}


@pytest.fixture
def trained(monkeypatch):
    "The runs that were really trained, and the `SourceModel` of each"
    calls = []
    def train(run, source, *args):
        calls.append((run, source))
        return train_run(run, source, *args)
    monkeypatch.setattr(stage_module, 'train_run', train)
    return calls


def start(bases, out): return replace(load_source(bases[0], out), retention=None), out, Accuracies(bases)


def chain(bases, **changes): return [replace(r, final=True, **changes) for r in bases]


def encoder_of(row, out): return load_file(out/'stages'/row['key']/'encoder.safetensors')


def on_cpu(module): return {k:v.cpu() for k, v in module.state_dict().items()}


def test_rows_and_files_of_a_chain(bases, tmp_path):
    at, runs = start(bases, tmp_path), chain(bases, strategy='si', lam=.03)
    rows = train_chain(runs, *at)
    assert [r['status'] for r in rows] == ['ok', 'ok']
    assert [r['stage'] for r in rows] == [1, 2]
    assert [r['task'] for r in rows] == at[2].names[1:] == ['clips0', 'clips0-2']
    assert rows[0]['before'] == runs[0].source_key
    assert rows[1]['before'] == rows[0]['key'] != rows[1]['key']
    for r in rows:
        names = {p.name for p in (tmp_path/'stages'/r['key']).iterdir() if p.name[0] != '.'}
        assert names == FILES


def test_a_chain_resumes_where_it_stopped(bases, tmp_path, trained):
    at, runs = start(bases, tmp_path), chain(bases, strategy='si', lam=.03)
    rows = train_chain(runs, *at)
    assert [run for run, _ in trained] == runs
    assert train_chain(runs, *at) == rows
    assert len(trained) == 2
    second = tmp_path/'stages'/rows[1]['key']
    (second/'result.json').unlink()
    (second/'encoder.safetensors').write_text('half')
    forget()
    # from the files of the stage before, the same numbers
    assert timeless(train_chain(runs, *start(bases, tmp_path))) == timeless(rows)
    assert [run for run, _ in trained[2:]] == runs[1:]


def test_a_stage_depends_on_the_stage_before(bases, tmp_path):
    "The same `Run` as a second stage and as a first"
    at, runs = start(bases, tmp_path), chain(bases)
    second = train_chain(runs, *at)[1]
    assert train_chain([runs[1]], *at)[0]['key'] != second['key']


def features(encoder, dl):
    with torch.no_grad():
        batches = [(encoder(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor)) for x, y in dl]
    return [torch.cat(t) for t in zip(*batches)]


def test_numbers_are_those_of_the_saved_models(bases, tmp_path):
    "Old heads and probes, computed from the files alone"
    source, _, accuracies = at = start(bases, tmp_path)
    rows = train_chain(chain(bases, strategy='self_distill', lam=1.), *at)
    folders = [tmp_path/'source'/bases[0].source_key, *(tmp_path/'stages'/r['key'] for r in rows)]
    heads = [load_file(f/'head.safetensors') for f in folders]
    def by_head(head, x, y): return ((x @ head['weight'].T + head['bias']).argmax(1) == y).double().mean().item()
    for i, row in enumerate(rows, 1):
        encoder = create_model('tiny', 2, width=8)[0]
        encoder.load_state_dict(load_file(folders[i]/'encoder.safetensors'))
        encoder.eval()
        for j, (name, task) in enumerate(zip(accuracies.names, accuracies.tasks)):
            dls = task.dls(4, 1, 24, 4)
            train, valid, test = (features(encoder, task.dl(dls, part)) for part in ('train', 'valid', 'test'))
            assert (f'head.{name}' in row) == (j <= i)
            assert (f'valid.{name}' in row) == (j <= i)
            if j <= i:
                assert row[f'head.{name}'] == pytest.approx(by_head(heads[j], *test))
                assert row[f'valid.{name}'] == pytest.approx(by_head(heads[j], *valid))
            probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=.1)).fit(*train)
            assert row[f'probe.{name}'] == pytest.approx(probe.score(*test))


def test_the_first_stage_is_the_run_of_a_study_of_one_task(bases, tmp_path):
    source, out, _ = start(bases, tmp_path)
    run = chain(bases, strategy='ewc', lam=.1)[0]
    row = train_chain([run], source, out, Accuracies(bases[:1]))[0]
    learn, why = train_run(run, load_source(bases[0], out))
    assert why is None
    assert same(on_cpu(learn.model[0]), encoder_of(row, out))


def test_a_stage_starts_with_what_the_one_before_left(bases, tmp_path):
    source, _, _ = at = start(bases, tmp_path)
    a, b = chain(bases)
    rows = train_chain([a, replace(b, strategy='linear_probe')], *at)
    first, second = (encoder_of(r, tmp_path) for r in rows)
    assert same(first, second)
    assert not same(first, on_cpu(source.model[0]))
    assert rows[0]['anchor'] == source.id
    assert rows[1]['anchor'] != source.id
    # the same encoder and head
    for c in ('head.source', 'head.clips0', 'valid.clips0', 'probe.clips0'): assert rows[0][c] == rows[1][c], c


def test_a_stage_protects_what_the_one_before_left(bases, tmp_path, trained):
    source, _, _ = at = start(bases, tmp_path)
    rows = train_chain(chain(bases, seed=1), *at)
    first, second = (carried for _, carried in trained)
    assert len(first.past) == 1
    assert len(second.past) == 2
    assert first.head is source.head
    assert second.id == state_hash(second.model[0].state_dict()) != source.id
    assert same(state(second.head), load_file(tmp_path/'stages'/rows[0]['key']/'head.safetensors'))


def test_trials_do_not_read_test(bases, tmp_path):
    source, out, accuracies = start(bases, tmp_path)
    accuracies.test = accuracies.train = None
    rows = train_chain([replace(r, final=False) for r in bases], source, out, accuracies)
    assert [r['status'] for r in rows] == ['ok', 'ok']
    assert [k.split('.')[0] for k in rows[1] if '.' in k] == ['valid']*3


def test_every_strategy_goes_through_a_chain(bases, tmp_path):
    names = [s for s in STRATEGIES if s != 'lora' or find_spec('peft')]
    source, _, _ = at = start(bases, tmp_path)
    last = {}
    for s in names:
        setting = strength_grid(s, .01, n=1)[0]
        rows = train_chain([replace(r, strategy=s, epochs=1, **setting) for r in bases], *at)
        assert [r['status'] for r in rows] == ['ok', 'ok'], (s, rows[-1]['error'])
        last[s] = encoder_of(rows[1], tmp_path)
    assert same(last['linear_probe'], on_cpu(source.model[0]))
    plain = last.pop('finetune')
    for s in ('wise_ft', 'pskd'): del last[s]  # in one epoch PSKD has no teacher
    assert not [s for s, weights in last.items() if same(weights, plain)]


@pytest.mark.parametrize('strategy, column', [('lwf', 'lw_f'), ('kl_base', 'kl_base')])
def test_there_is_a_term_for_each_old_head(strategy, column, bases, tmp_path):
    at = start(bases, tmp_path)
    rows = train_chain([replace(r, strategy=strategy, epochs=1, lr=.01, lam=.3) for r in bases], *at)
    log = pd.read_csv(tmp_path/'stages'/rows[1]['key']/'epochs.csv')
    assert column in log
    assert f'{column}_2' in log


def test_a_stage_that_diverges_ends_its_chain(bases, tmp_path):
    at, runs = start(bases, tmp_path), chain(bases)
    late = [runs[0], replace(runs[1], lr=1e30)]
    rows = train_chain(late, *at)
    assert [r['status'] for r in rows] == ['ok', 'diverged']
    assert 'not finite' in rows[1]['error']
    assert 'head.source' not in rows[1]
    assert train_chain(late, *at) == rows
    early = train_chain([replace(runs[0], lr=1e30), runs[1]], *at)
    assert [r['status'] for r in early] == ['diverged']


def test_a_stage_that_fails_is_tried_again(bases, tmp_path, monkeypatch):
    at, runs = start(bases, tmp_path), chain(bases)
    with monkeypatch.context() as m:
        m.setattr(stage_module, 'train_run', lambda *a: 1/0)
        rows = train_chain(runs, *at)
    assert [r['status'] for r in rows] == ['failed']
    assert 'ZeroDivisionError' in rows[0]['error']
    assert 'Traceback' in (tmp_path/'stages'/rows[0]['key']/'log.txt').read_text()
    assert [r['status'] for r in train_chain(runs, *at)] == ['ok', 'ok']  # the cause may be gone
