"Both tables of the paper, end to end on a miniature UCF101 and HMDB51 with synthetic checkpoints."
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from official import write_hmdb, write_ucf
from scripts import ROOT, load_script

from sdfast.models.encoders import c3d, create_model, r2plus1d
from sdfast.models.weights import save_weights
from sdfast.study.paper import start_name

SMALL = dict(frames=8, size=16, epochs=2, clips=2, bs=4, workers=0, lams='100')
CLASSES = ['Hammering', 'HammerThrow', 'HandstandPushups']  # in the order of classInd.txt
SAID = ['**UCF101**', '**HMDB51**', '| C3D | baseline | 77.1 / 93.5 |', '| R(2+1)D | 100 | 46.3 / 76.3 |',
        "reduction='mean'", "teacher_bn='batch'", 'paper protocol', "Wilson's",
        'its lists name 9 train and 6 test videos, not the official 9537 and 3783', "NOT the paper's protocol",
        'epochs 2 instead of 100', 'rspnet_c3d.pth.tar']


@pytest.fixture(scope='module')
def script(): return load_script('paper_tables')


@pytest.fixture
def call(script, capsys, monkeypatch):
    "Call the script in this process; its output"
    monkeypatch.setenv('COLUMNS', '200')
    def call(table, **options):
        options = {k:str(v) if isinstance(v, Path) else v for k, v in options.items()}
        script.main(table, **SMALL | options)
        return capsys.readouterr().out
    return call


def rspnet_checkpoint(make, name):
    torch.manual_seed(0)
    weights = {f'encoder_q.encoder.{k.removeprefix("body.")}':v for k, v in make().state_dict().items()}
    weights['encoder_q.fc1.2.weight'] = torch.zeros(128, 512)
    return dict(epoch=200, arch=name, model=weights, best_loss=np.float64(1))


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    "Folder with `data` and `weights`"
    root = tmp_path_factory.mktemp('paper')
    write_ucf(root/'data', per_group=1)
    write_hmdb(root/'data')
    (root/'weights').mkdir()
    for name, make in dict(rspnet_c3d=c3d, rspnet_r21d=r2plus1d).items():
        torch.save(rspnet_checkpoint(make, name), root/'weights'/f'{name}.pth.tar')
    return root


@pytest.fixture(scope='module')
def done(inputs):
    "`(process, folder)` of table 2, run as a command"
    out = inputs/'out'
    options = [f'--{k}={v}' for k, v in SMALL.items()]
    command = [sys.executable, ROOT/'experiments/paper_tables.py', 'table2', '--data', inputs/'data', '--weights',
               inputs/'weights', '--out', out, '--allow-missing', *options]
    env = os.environ | dict(COLUMNS='200')
    p = subprocess.run(command, capture_output=True, text=True, timeout=1800, env=env)
    assert p.returncode == 0, p.stderr[-2000:]
    return p, out


@pytest.fixture(scope='module')
def table(done): return pd.read_csv(done[1]/'table2.csv')


@pytest.fixture(scope='module')
def runs(done): return pd.read_csv(done[1]/'table2_runs.csv')


@pytest.fixture(scope='module')
def full(runs): return c3d_on_ucf(runs, 'paper')


@pytest.fixture(scope='module')
def held(runs): return c3d_on_ucf(runs, 'valid')


def c3d_on_ucf(runs, select):
    mine = runs[(runs.model == 'c3d') & runs.task.str.startswith('ucf101')]
    return mine[mine['select'] == select].set_index('lam')


def read_epochs(done, run): return pd.read_csv(done[1]/'runs'/run/'epochs.csv')


def test_other_nets_and_weights_are_labelled(inputs, call, tmp_path):
    "The whole script with small nets: both tables, all selections"
    torch.manual_seed(0)
    save_weights(create_model('tiny', 2)[0], tmp_path/'mine.safetensors')
    options = dict(data=inputs/'data', out=tmp_path/'out', allow_missing=True, nets='c3d=tiny,r2plus1d=tiny',
                   weights=f'c3d={tmp_path}/mine.safetensors,r2plus1d=random')
    shown = call('table2', **options)
    mine, other = 'tiny from mine.safetensors', 'tiny from random'
    for text in (f'| C3D: {mine} | baseline | 77.1 / 93.5 |', f'| R(2+1)D: {other} | 100 | 46.3 / 76.3 |',
                 f"NOT the paper's start, {mine} in place of RSPNet"): assert text in shown
    table = pd.read_csv(tmp_path/'out'/'table2.csv')
    assert table.acc1.notna().all() and set(table.start) == {mine, other}
    runs = pd.read_csv(tmp_path/'out'/'table2_runs.csv')
    assert set(runs.model) == {'tiny'} and set(runs.status) == {'ok'}
    lrs = {run.lr for run in runs.itertuples()}
    assert lrs == {.005, .1}  # of the encoder whose place is taken
    assert f'| {mine}, in place of RSPNet | 77.1 / 93.5 |' in call('table1', **options)
    with pytest.raises(SystemExit): call('table2', **options | dict(nets='s3d=tiny'))


def test_rspnets_checkpoints_are_known_by_their_layout(inputs, tmp_path):
    file = str(inputs/'weights'/'rspnet_r21d.pth.tar')
    assert start_name('r2plus1d', 'r2plus1d', file) == start_name('c3d', 'c3d', None) == 'RSPNet'
    assert start_name('r2plus1d', 'r2plus1d_18', file) == 'r2plus1d_18 from rspnet_r21d.pth.tar'
    torch.save(c3d().state_dict(), tmp_path/'c3d.pth')
    assert start_name('c3d', 'c3d', str(tmp_path/'c3d.pth')) == 'c3d from c3d.pth'
    assert start_name('c3d', 'c3d', 'random') == 'c3d from random'


@pytest.mark.nightly
def test_all_cells_are_run(table, runs):
    assert len(table) == 2*2*2*3
    assert len(runs) == 2*2*2*2
    assert set(runs.status) <= {'ok', 'diverged'}
    assert (runs.status == 'ok').sum() > 12
    assert set(table.selection) == {'last epoch', 'best on valid', 'paper protocol'}


@pytest.mark.nightly
def test_printed_numbers_stand_in_their_cell(table):
    cell = table[(table.encoder == 'r2plus1d') & (table.data == 'hmdb51') & (table.lam == 100)]
    assert set(cell.printed_acc1) == {46.3}
    assert set(cell.printed_acc5) == {76.3}


@pytest.mark.nightly
def test_each_selection_looks_at_its_own_part(done, full, held):
    assert full.best_acc1.notna().all()
    assert full.best_valid_acc1.isna().all()
    assert full.valid_acc1.isna().all()
    assert held.best_valid_acc1.notna().all()
    assert 'accuracy' in read_epochs(done, held.key[100.]).columns


@pytest.mark.nightly
def test_the_paper_protocol_takes_the_epoch_that_is_best_on_test(done, full):
    log = read_epochs(done, full.key[100.])
    assert len(log) == 2
    assert {'test_accuracy', 'self_distill', 'self_distill_ratio'} <= set(log.columns)
    assert 'accuracy' not in log.columns
    assert full.best_epoch[100.] == log.test_accuracy.idxmax()


@pytest.mark.nightly
@pytest.mark.parametrize('prefix,file', [('', 'scores.csv'), ('best_', 'scores_best.csv')])
def test_scores_have_a_row_a_test_video(done, full, prefix, file):
    for _, r in full.iterrows():
        scores = pd.read_csv(done[1]/'runs'/r.key/file)
        assert list(scores.columns) == ['path', 'label', *CLASSES]
        assert len(scores) == 6
        assert np.allclose(scores[CLASSES].sum(axis=1), 1, atol=1e-4)
        assert r[f'{prefix}acc1'] == pytest.approx((scores[CLASSES].idxmax(axis=1) == scores.label).mean())
        assert r[f'{prefix}acc5'] == 1


@pytest.mark.nightly
@pytest.mark.parametrize('text', SAID)
def test_the_text_says_what_was_done(done, text): assert text in (done[1]/'table2.md').read_text()


@pytest.mark.nightly
def test_the_text_is_printed(done): assert 'R(2+1)D | 100 | 46.3' in done[0].stdout


@pytest.mark.nightly
def test_table_1_has_the_same_runs_and_chooses_lambda(done, inputs, table, runs, call):
    out = done[1]
    text = call('table1', data=inputs/'data', weights=inputs/'weights', out=out, allow_missing=True)
    assert text.count('finished before') == (runs.status == 'ok').sum() > 0
    assert 'λ of table 1' in text
    assert '; λ 100' in text
    assert '| C3D | MAS | 61.2 / – |' in (out/'table1.md').read_text()

    table_1 = pd.read_csv(out/'table1.csv')
    pace = table_1[table_1.method == 'Pace']
    assert (pace.printed_acc1 == [77.1]*3 + [36.6]*3).all()
    assert pace.acc1.isna().all()
    ours = table_1[table_1.method == 'self-distillation']
    assert len(ours) == 2*2*3
    assert set(ours.printed_acc1) == {78.6, 45.8, 82.3, 47.3}
    assert set(ours.printed_acc5) == {94.6, 76.5, 96.3, 77.8}
    graded = table[table.lam > 0]  # one strength: nothing to choose
    pd.testing.assert_series_equal(ours.acc1.reset_index(drop=True), graded.acc1.reset_index(drop=True))


@pytest.mark.nightly
def test_missing_parts_are_empty_cells(done, inputs, call):
    out = done[1]
    text = call('table2', data=inputs/'data', weights=f'c3d={inputs/"weights/rspnet_c3d.pth.tar"}', out=out,
                allow_missing=True, selections='last,paper', seeds=2, datasets='ucf101')
    assert 'no weights of R(2+1)D' in text
    assert text.count('finished before') <= 2
    written = (out/'table2.md').read_text()
    assert re.search(r'\| R\(2\+1\)D \| 100 \| 82\.3 / 96\.3 \|  \|  \|', written)
    assert 'HMDB51' not in written.split('\n-')[0]
    assert "Student's t over 2 seeds" in written
    assert 'best on valid' not in written
    t = pd.read_csv(out/'table2.csv')
    assert set(t[t.encoder == 'c3d'].runs) == {2}
    assert t[t.encoder == 'r2plus1d'].acc1.isna().all()


def test_dry_run_needs_no_weights(inputs, tmp_path, call):
    text = call('table2', dry_run=True, out=tmp_path/'x', data=inputs/'data', allow_missing=True, encoders='c3d')
    assert 'no weights' in text
    assert 'hours in all on this machine' in text
    assert not (tmp_path/'x').exists()
    # 2 epochs x (baseline and a λ) x (9 train clips, and 7 of them, in batches of 4)
    assert re.search(r'C3D +│ UCF101 +│ +4 +│ +0 +│ +2 +│ +12 ', text), text


def test_dry_run_needs_no_data(tmp_path, call):
    text = call('table1', dry_run=True, out=tmp_path/'x', encoders='c3d', datasets='hmdb51')
    # 2 x 2 x (3570 and 2856 clips in batches of 4)
    assert re.search(r'HMDB51 +│ +4 +│ +0 +│ +2 +│ +6,424 .* no data', text), text


BAD = [(dict(table='table3'), "unknown 'table3'"), (dict(data='nowhere'), 'folder nowhere does not exist'),
       (dict(), 'nothing can be run: UCF101 is not in --data'), (dict(lams='0'), 'above 0'),
       (dict(reduction='max'), "unknown 'max'"), (dict(weights='no'), 'neither a folder nor'),
       (dict(weights='resnet=x'), "unknown encoder 'resnet'"), (dict(weights='c3d=no.pth'), 'no.pth do not exist'),
       (dict(schedule='linear'), 'unknown schedule'), (dict(seeds=0), '--seeds'),
       (dict(fold=4), '--fold must be 1, 2 or 3'), (dict(valid_frac=1.), '--valid-frac'),
       (dict(selections='best'), "unknown 'best'"), (dict(encoders=''), '--encoders must name'),
       (dict(lams='1,x'), 'not numbers'), (dict(workers=-1), '--workers'), (dict(bs=0), '--bs must be positive'),
       (dict(jobs=0), '--jobs')]


@pytest.mark.parametrize('options,text', BAD, ids=[str(o) for o, _ in BAD])
def test_bad_input_is_one_line_and_status_2(script, capsys, options, text):
    with pytest.raises(SystemExit) as e: script.main(**dict(table='table2') | options)
    err = capsys.readouterr().err
    assert e.value.code == 2
    assert text in err
    assert err.count('\n') == 1
