"Forgetting events and extra measures in a study's runs."
import json
from dataclasses import replace

import pandas as pd
import pytest
from helpers import forget

from sdfast.data import datasets as datasets_module
from sdfast.errors import InputError
from sdfast.metrics import EXTRA, choose_strength, linear_probe
from sdfast.models.features import extract
from sdfast.study import source_files
from sdfast.study.execute import execute, train_run
from sdfast.study.settings import make_settings
from sdfast.study.setup import holds_out_source
from sdfast.study.source import load_source

pytestmark = pytest.mark.usefixtures('fresh')


def files(row, out): return {f.name for f in (out/'runs'/row['key']).iterdir()}


def test_events_are_files_of_final_runs(base, tmp_path):
    run = replace(base, epochs=3, lr=.2, final=True)
    plain, row = execute(run, tmp_path), execute(replace(run, events=True), tmp_path)
    assert {k:v for k, v in row.items() if k not in ('key', 'seconds')} == \
        {k:v for k, v in plain.items() if k not in ('key', 'seconds')}
    assert files(row, tmp_path) - files(plain, tmp_path) == {'events.csv', 'source_events.csv'}
    assert {'events.csv', 'source_events.csv'} <= json.loads(
        (tmp_path/'runs'/row['key']/'result.json').read_text())['files'].keys()
    trial = execute(replace(run, events=True, final=False), tmp_path)
    assert not {'events.csv', 'source_events.csv'} & files(trial, tmp_path)

    task = datasets_module.create_task(run.task).hold_out(run.valid_frac)
    table = pd.read_csv(tmp_path/'runs'/row['key']/'events.csv', index_col='clip')
    assert list(table) == ['path', 'label', 'seen', 'right', 'forgotten', 'learned']
    items = task.items('train')
    assert all(items[i] == (clip.path, clip.label) for i, clip in table.iterrows())
    assert (table.seen <= 3).all() and table.seen.sum() == 3*(len(items)//run.bs*run.bs)
    learn, _ = train_run(replace(run, events=True), load_source(run, tmp_path))
    counters = [cb for cb in learn.cbs if type(cb).__name__ == 'ForgettingEvents']
    pd.testing.assert_frame_equal(table[['seen', 'right', 'forgotten']],
                                  counters[0].table()[['seen', 'right', 'forgotten']])


def test_source_events_are_of_the_old_heads_answers(base, tmp_path):
    run = replace(base, epochs=3, lr=.2, final=True, events=True)
    row = execute(run, tmp_path)
    folder = tmp_path/'runs'/row['key']
    table, scores = pd.read_csv(folder/'source_events.csv'), pd.read_csv(folder/'source_scores.csv')
    assert table.path.tolist() == scores.path.tolist() and (table.seen == 4).all()
    before = pd.read_csv(next((tmp_path/'source').glob('*/scores.csv')))
    right = [s.drop(columns=['path', 'label']).idxmax(axis=1) == s.label.astype(str) for s in (before, scores)]
    assert ((table.learned == -1) == right[0]).all()
    # a clip that was right before and is wrong now was forgotten at least once
    assert (table.forgotten[right[0] & ~right[1]] > 0).all()


def test_extra_measures_are_columns(base, tmp_path, monkeypatch):
    monkeypatch.setattr('sdfast.metrics.attentive.STEPS', 20)
    run = replace(base, extra=','.join(EXTRA), source_valid=True, final=True)
    row = execute(run, tmp_path)
    source = load_source(run, tmp_path)
    kept = json.loads((tmp_path/'runs'/row['key']/'kept.json').read_text())
    assert row['source_probe_tuned'] == kept['source_probe_tuned'] and 0 <= row['source_knn_tuned'] <= 1
    assert 0 <= row['source_attentive'] == kept['source_attentive'] <= 1
    parts = [extract(source.model[0], getattr(source.retention, f'{name}_dl')) for name in ('train', 'valid', 'test')]
    want = linear_probe(*parts[0], *parts[2], choose_strength(*parts[0], *parts[1]))
    assert source.reference['source_probe_tuned'] == want
    plain = replace(run, extra='')
    assert execute(plain, tmp_path)['source_probe_tuned'] is None
    assert plain.source_key == run.source_key and plain.key != run.key
    assert source_files.reference_file(plain, tmp_path) != source_files.reference_file(run, tmp_path)
    forget()
    assert 'source_probe_tuned' not in load_source(plain, tmp_path).reference
    with pytest.raises(InputError, match=r'in a Run, source_valid=True'):
        load_source(replace(base, extra='source_probe_tuned'), tmp_path)


def test_the_name_of_a_reference_without_them_is_that_of_earlier_versions(base, tmp_path):
    from sdfast.study.config import hash_fields
    want = f'reference-{hash_fields(dict(others="", barrier=False))}.json'
    assert source_files.reference_file(base, tmp_path).name == want


@pytest.mark.parametrize('extra,held', [('', False), ('source_attentive', False), ('source_knn_tuned', True)])
def test_a_part_of_the_source_is_held_out_for_settings(extra, held):
    assert holds_out_source(make_settings('compare', extra=extra)) == held


def test_an_unknown_measure_is_refused_before_anything_starts():
    with pytest.raises(InputError, match="extra measures are .*, not 'source_f1'"):
        holds_out_source(make_settings('compare', extra='source_f1', rule='equal_learning'))


@pytest.mark.parametrize('strategy,args', [('pskd', 'stored=true'), ('byot', 'official=true'),
                                           ('byot', 'official=true,beta=0.03')])
def test_the_authors_options_run_in_a_study(base, tmp_path, strategy, args):
    "And are other runs, with other weights"
    run = replace(base, strategy=strategy, lam=.8, epochs=3, final=True)
    plain, row = execute(run, tmp_path), execute(replace(run, strategy_args=args), tmp_path)
    assert row['status'] == 'ok', row['error']
    assert row['weight_distance'] != plain['weight_distance'] and row['key'] != plain['key']
