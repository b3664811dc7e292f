"Merged models of seeds and of tasks: measured as runs are, from finished runs, against merging by hand."
import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import Log, forget, timeless
from safetensors.torch import load_file
from strategy_helpers import assert_close_states

from sdfast.errors import InputError
from sdfast.models.encoders import create_model
from sdfast.models.merging import model_stock, soup, task_arithmetic, ties
from sdfast.models.statistics import reestimate_bn
from sdfast.report.summary import summary
from sdfast.study import execute as execute_module
from sdfast.study import merge as merge_module
from sdfast.study import stage as stage_module
from sdfast.study.accuracies import Accuracies
from sdfast.study.chain import chain_score, train_chain
from sdfast.study.execute import execute, train_run
from sdfast.study.loaders import PROBE_CLIPS, balanced_loader, target_data
from sdfast.study.merge import merge_seeds, merge_tasks
from sdfast.study.source import load_source

pytestmark = pytest.mark.usefixtures('fresh')


@pytest.fixture
def trained(monkeypatch):
    "The runs that were really trained"
    calls = []
    def train(run, *args):
        calls.append(run)
        return train_run(run, *args)
    for module in (execute_module, stage_module): monkeypatch.setattr(module, 'train_run', train)
    return calls


def seeds(base, n, **changes): return [replace(base, final=True, seed=i, **changes) for i in range(n)]


def stored(folder, run):
    model = create_model(run.model, len(target_data(run)[0].vocab), **run.options())
    for part, name in zip(model, ('encoder', 'head')): part.load_state_dict(load_file(folder/f'{name}.safetensors'))
    return model


def recomputed(model, *runs):
    parts = [target_data(r) for r in runs]
    batches = [b for task, dls, _ in parts for b in balanced_loader(task, dls, PROBE_CLIPS)]
    return reestimate_bn(model, batches, model[0]).state_dict()


def test_runs_are_trained_once_and_merged_by_two(base, tmp_path, trained):
    runs, log = seeds(base, 5), Log()
    rows = merge_seeds(runs, tmp_path, progress=log)
    assert trained == runs[:4]  # the fifth has no partner
    assert [r['seed'] for r in rows] == [0, 2]
    assert {r['strategy'] for r in rows} == {'finetune+soup'} and {r['status'] for r in rows} == {'ok'}
    forget()
    assert timeless(merge_seeds(runs, tmp_path)) == timeless(rows)
    merge_seeds(runs, tmp_path, 'model_stock')
    assert len(trained) == 4
    for row, (a, b) in zip(rows, (runs[:2], runs[2:4])):
        models = [stored(tmp_path/'runs'/r.key, r) for r in (a, b)]
        want = copy.deepcopy(models[0])
        want.load_state_dict(soup(models))
        assert_close_states(stored(tmp_path/'merged'/row['key'], a).state_dict(), recomputed(want, a))


def test_model_stock_of_runs(base, tmp_path):
    runs = seeds(base, 3)
    row, = merge_seeds(runs, tmp_path, 'model_stock', per=3)
    source, models = load_source(base, tmp_path), [stored(tmp_path/'runs'/r.key, r) for r in runs]
    want = copy.deepcopy(models[0])
    want[0].load_state_dict(model_stock([m[0] for m in models], source.model[0]))
    want[1].load_state_dict(soup([m[1] for m in models]))
    got = stored(tmp_path/'merged'/row['key'], base)
    assert_close_states(got.state_dict(), recomputed(want, base))
    kept = source.retention(got[0])
    assert (row['drift'], row['source_acc']) == pytest.approx((kept.drift, kept.source_acc))


def test_a_greedy_soup_of_runs(base, tmp_path):
    runs = seeds(base, 3)
    row, = merge_seeds(runs, tmp_path, 'greedy_soup', per=3)
    task, dls, _ = target_data(base)
    x, y = next(iter(task.dl(dls, 'valid')))
    models = [stored(tmp_path/'runs'/r.key, r) for r in runs]

    def accuracy(chosen):
        model = copy.deepcopy(models[0])
        model.load_state_dict(soup([models[i] for i in chosen]))
        recomputed(model, base)
        return (model.eval()(x).argmax(1) == y).float().mean().item()
    assert len(y) == task.count('valid')
    order = sorted(range(3), key=lambda i: accuracy([i]), reverse=True)
    chosen = order[:1]
    for i in order[1:]:
        if accuracy([*chosen, i]) >= accuracy(chosen): chosen.append(i)
    assert row['valid_acc1'] == pytest.approx(accuracy(chosen))
    assert row['test_clips'] == task.count('test')


def test_merging_what_did_not_move_gives_the_row_of_a_run(base, tmp_path):
    "With equal models a merge is the model; a linear probe's statistics are not recomputed"
    runs = seeds(base, 2, strategy='linear_probe')
    row, = merge_seeds(runs, tmp_path)
    one = execute(runs[0], tmp_path)
    for c in ('source_acc', 'source_probe', 'drift', 'weight_distance'): assert row[c] == one[c], c
    assert row['drift'] == 0


def test_weights_are_stored_on_demand_and_change_nothing(base, tmp_path, trained):
    run, = seeds(base, 1)
    row = execute(run, tmp_path)
    assert not (tmp_path/'runs'/run.key/'encoder.safetensors').exists()
    assert timeless(execute(run, tmp_path, weights=True)) == timeless(row)
    assert len(trained) == 2
    assert timeless(execute(run, tmp_path)) == timeless(execute(run, tmp_path, weights=True)) == timeless(row)
    assert len(trained) == 2


def test_rows_join_those_of_a_comparison(base, tmp_path):
    runs = seeds(base, 4)
    rows = [execute(r, tmp_path, weights=True) for r in runs]
    table = summary(pd.DataFrame([*rows, *merge_seeds(runs, tmp_path)]).assign(chosen=True))
    assert set(table.strategy) == {'finetune', 'finetune+soup'}


def test_a_run_that_failed_fails_its_merge(base, tmp_path):
    row, = merge_seeds(seeds(base, 2, lr=1e9), tmp_path)
    assert row['status'] == 'failed'
    assert 'one of the runs to merge, has status diverged' in row['error']


def test_models_that_were_trained_again_are_merged_again(base, tmp_path, monkeypatch):
    runs = seeds(base, 2)
    first, = merge_seeds(runs, tmp_path)
    again, = merge_seeds(runs, tmp_path)
    assert again == first
    ids = [merge_module._weights_id(tmp_path/'runs'/run.key) for run in runs]
    assert '' not in ids and ids[0] != ids[1]
    monkeypatch.setattr(merge_module, '_weights_id', lambda folder: 'other weights')
    other, = merge_seeds(runs, tmp_path)
    assert other['key'] != first['key'] and other['acc1'] == first['acc1']
    assert (tmp_path/'merged'/other['key']/'result.json').exists()


@pytest.mark.parametrize('change, why', [
    (lambda runs: dict(per=1), 'per must be a whole number from 2'),
    (lambda runs: dict(per=3), 'number of runs, 2, not 3'),
    (lambda runs: dict(method='ties'), "merged by soup, greedy_soup, model_stock, not 'ties'"),
    (lambda runs: dict(runs=[runs[0], runs[0]]), 'differ in their seed, and in nothing else'),
    (lambda runs: dict(runs=[runs[0], replace(runs[1], lr=.01)]), 'in nothing else'),
    (lambda runs: dict(runs=[replace(r, final=False) for r in runs]), 'needs final runs'),
    (lambda runs: dict(runs=[replace(r, strategy='lora') for r in runs]), 'not those of lora')])
def test_refusals(base, tmp_path, change, why):
    runs = seeds(base, 2)
    with pytest.raises(InputError, match=why): merge_seeds(**dict(runs=runs, out=tmp_path) | change(runs))


# ---- tasks

@pytest.mark.parametrize('method, merge', [('ties', ties), ('task_arithmetic', task_arithmetic)])
def test_tasks_are_trained_by_themselves_and_merged(bases, tmp_path, trained, method, merge):
    source, runs = replace(load_source(bases[0], tmp_path), retention=None), [replace(r, final=True) for r in bases]
    accuracies = Accuracies(runs)
    rows = merge_tasks(runs, source, tmp_path, accuracies, method, .4)
    assert trained == runs
    assert [r['stage'] for r in rows] == [1, 2] and {r['status'] for r in rows} == {'ok'}
    assert {r['strategy'] for r in rows} == {f'finetune+{method}'}
    assert [r['task'] for r in rows] == accuracies.names[1:]
    assert 0 <= chain_score(rows, runs) <= 1
    singles = [train_chain([r], source, tmp_path, Accuracies([r]))[0] for r in runs]
    models = [stored(tmp_path/'stages'/s['key'], r) for s, r in zip(singles, runs)]
    want = copy.deepcopy(models[0])
    want[0].load_state_dict(merge([m[0] for m in models], source.model[0], .4))
    recomputed(want, *runs)
    assert_close_states(load_file(tmp_path/'merged'/rows[1]['key']/'encoder.safetensors'), want[0].state_dict())
    numbers = accuracies(want[0], [source.head, *(m[1] for m in models)])
    assert {k:rows[1][k] for k in numbers} == pytest.approx(numbers)
    forget()
    assert timeless(merge_tasks(runs, source, tmp_path, accuracies, method, .4)) == timeless(rows)
    assert len(trained) == 2


def test_nothing_learned_is_the_source(bases, tmp_path):
    source, runs = replace(load_source(bases[0], tmp_path), retention=None), [replace(r, final=True) for r in bases]
    rows = merge_tasks(runs, source, tmp_path, Accuracies(runs), 'task_arithmetic', 0.)
    untouched = Accuracies(runs)(source.model[0], [source.head])
    assert rows[-1]['head.source'] == untouched['head.source']
    got = load_file(tmp_path/'merged'/rows[-1]['key']/'encoder.safetensors')
    assert all(torch.equal(got[k], v) for k, v in source.model[0].state_dict().items())


def test_a_method_for_seeds_is_refused(bases, tmp_path):
    with pytest.raises(InputError, match='tasks are merged by task_arithmetic and ties'):
        merge_tasks(bases, None, tmp_path, None, 'soup')
