"The script as a user calls it: what it writes, and one clear line for what cannot work."
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from sdfast.commands import compare as script
from sdfast.models.encoders import create_model
from sdfast.models.weights import save_weights
from sdfast.study.settings import make_settings
from sdfast.study.setup import default_jobs

ROOT = Path(__file__).parents[2]


def words(options):
    "A command line of options by name; `True` is an option without a value"
    line = []
    for name, value in options.items():
        line.append('--' + name.replace('_', '-'))
        if value is not True: line.append(str(value))
    return line


def run(options, **env):
    "The script as a process of its own"
    line = [sys.executable, str(ROOT/'experiments/compare.py'), *words(options)]
    return subprocess.run(line, capture_output=True, text=True, env=os.environ | env, timeout=500)


def call(options, capsys):
    "The script in this process: exit status and error text"
    try: status = script.main(words(options))
    except SystemExit as e: status = e.code
    return status, capsys.readouterr().err


@pytest.fixture(scope='module')
def spec(clips): return f'folder:{clips},group=(p\\d)_'


@pytest.fixture(scope='module')
def small(spec):
    "Options of a study that takes seconds"
    return dict(task=spec, source=spec, frames=4, size=24, epochs=2, source_epochs=2, seeds=2, bs=4, lams='.1,1')


@pytest.mark.nightly
def test_folders_of_videos_end_to_end(small, tmp_path):
    options = small | dict(quick=True, strategy_args='ewc:implicit=true;self_distill:layers=blocks')
    p = run(options | dict(out=tmp_path/'a'))
    assert p.returncode == 0, p.stderr
    for word in ('2 classes', 'source task: 2 epochs', '24/24', 'takes', 'untouched', 'runs.csv', 'report.html'):
        assert word in p.stdout, word
    rows = pd.read_csv(tmp_path/'a/runs.csv')
    assert set(rows[rows.strategy == 'ewc'].strategy_args) == {'implicit=true'}
    assert set(rows.status) == {'ok'}
    tried = {'finetune', 'self_distill', 'fixed_teacher', 'ema_teacher', 'l2sp', 'ewc'}
    assert set(rows.strategy) == tried | {'untouched'}
    page = (tmp_path/'a/report.html').read_text()  # with what was forgotten by class and clip
    assert 'is unknown: this folder has no answers' not in page
    assert 'data:image/jpeg' in page and 'Least forgotten' in page
    again = run(options | dict(out=tmp_path/'a'))
    assert again.returncode == 0 and 'finished before' in again.stdout
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'a/runs.csv'), rows)
    # its study file repeats the study: trained from nothing elsewhere, it has the same numbers
    p = run(dict(config=tmp_path/'a'/'study.yaml', out=tmp_path/'b'))
    assert p.returncode == 0, p.stderr
    repeated = pd.read_csv(tmp_path/'b/runs.csv')
    pd.testing.assert_frame_equal(repeated.drop(columns='seconds'), rows.drop(columns='seconds'))


@pytest.mark.nightly
def test_all_strengths_and_equal_learning_end_to_end(small, spec, tmp_path):
    p = run(small | dict(epochs=3, strategies='l2sp', all_strengths=True, rule='equal_learning', kept='source_acc',
                         others=spec, barrier=True, select='valid', patience=2, out=tmp_path))
    assert p.returncode == 0, p.stderr
    assert 'held out, by group, to choose strengths by what was kept' in p.stdout
    assert 'kept) on valid; takes' in p.stdout
    assert '8/8' in p.stdout
    rows = pd.read_csv(tmp_path/'runs.csv')
    assert len(rows) == 9 and rows.final.all()
    assert rows.chosen.sum() == 5
    assert set(rows.status) == {'ok'}
    for c in ('valid_source_acc', 'valid_source_probe', 'other_probe', 'barrier', 'source_acc_bn', 'r1', 'procrustes'):
        assert rows[c].notna().all(), c
    files = {'report.html', 'plan.json', 'study.yaml', 'notes.json', 'runs.csv', 'table.csv', 'table.md', 'figure.png',
             'paths.png', *(f'trade_off_source_{k}.{e}' for k in ('acc', 'probe') for e in ('csv', 'md'))}
    assert {f.name for f in tmp_path.iterdir() if f.is_file()} == files
    study = yaml.safe_load((tmp_path/'study.yaml').read_text())
    assert study['command'] == 'compare' and study['all_strengths'] is True and study['barrier'] is True
    assert 'adjust' not in study, 'what is at its default is left out'


def test_every_table_says_what_is_missing(spec, tmp_path, capsys):
    from official import write_ucf
    root = write_ucf(tmp_path/'data', per_group=1)
    (root/'UCF-101/HammerThrow/v_HammerThrow_g01_c01.avi').unlink()
    shutil.move(root/'ucfTrainTestlist', tmp_path/'elsewhere')
    options = dict(task=f'ucf101:{root}', source=spec, others=f'ucf101:{root},fold=2', strategies='linear_probe',
                   frames=4, size=16, bs=2, epochs=1, source_epochs=1, seeds=2, all_strengths=True, out=tmp_path/'out')
    assert 'say where they are with --splits' in call(options, capsys)[1]
    options['splits'] = tmp_path/'elsewhere'
    assert 'its lists name 9 train and 6 test videos, not the official 9537 and 3783' in call(options, capsys)[1]
    assert call(options | dict(allow_missing=True), capsys) == (0, '')
    page = (tmp_path/'out/report.html').read_text()
    assert 'is unknown: this folder has no answers' not in page
    for name in ('source', 'target'): assert f'answers on the {name}' not in page
    assert '<li>ucf101 fold 1: 1 of 15 videos are missing' in page
    for table in ('table', 'trade_off_source_acc', 'trade_off_source_probe'):
        text = (tmp_path/f'out/{table}.md').read_text()
        for fold in (1, 2): assert f'\n- ucf101 fold {fold}: 1 of 15 videos are missing' in text, table
        assert text.endswith('\n') and '\n\n\n' not in text, table


BAD = [
    (dict(rule='test'), 'never to choose'),
    (dict(rule='best'), 'accuracy or equal_learning'),
    (dict(select='test'), 'never to choose'),
    (dict(select='paper'), 'last or valid'),
    (dict(kept='cka'), 'source_probe or source_acc'),
    (dict(adjust='some'), 'holm, bh, none'),
    (dict(patience=-1), '--patience must be at least 0'),
    (dict(others='folder:nowhere'), 'does not exist'),
    (dict(task='folder:nowhere'), 'folder nowhere does not exist'),
    (dict(source='csv:no.csv'), 'csv file no.csv does not exist'),
    (dict(task='ucf'), "unknown task 'ucf'"),
    (dict(task='folder:EMPTY'), 'has no videos'),
    (dict(task='folder:LONELY'), 'has one clip'),
    (dict(strategies='l2sp,magic'), "unknown strategy 'magic'"),
    (dict(model='no_net'), "unknown model 'no_net'"),
    (dict(lams='-1'), 'at least 0, not -1'),
    (dict(lams='x'), 'not numbers'),
    (dict(lams='magic=1'), "'magic'"),
    (dict(lams='l2sp=1'), 'same number of trials'),
    (dict(strategy_args='magic:a=1'), "'magic' is not among"),
    (dict(strategy_args='ewc:implicit'), 'name=value'),
    (dict(frames=0), '--frames must be at least 1'),
    (dict(epochs=0), '--epochs must be at least 1, not 0'),
    (dict(epochs='many'), "--epochs must be a whole number, not 'many'"),
    (dict(seeds=0), '--seeds'),
    (dict(stride=-2), '--stride'),
    (dict(lr=0), '--lr must be positive'),
    (dict(size=3), '--size'),
    (dict(workers=-1), '--workers'),
    (dict(init='no.pth'), 'weights no.pth do not exist'),
    (dict(init='OTHER'), 'not of this encoder'),
    (dict(model_args='width'), 'name=value'),
    (dict(model_args='colour=3'), 'does not take'),
    (dict(out='FILE/x'), 'cannot be made'),
    (dict(clips=0), '--clips'),
    (dict(source_bs=0), '--source-bs'),
    (dict(jobs=0), '--jobs must be at least 1'),
    (dict(valid_frac=0), 'no valid part'),
    (dict(config='no.yaml'), 'study file no.yaml cannot be read'),
    (dict(strategy='ewc'), 'no option --strategy; did you mean --strategies?'),
]


@pytest.mark.parametrize('options,word', BAD, ids=[' '.join(words(o)) for o, _ in BAD])
def test_bad_input_is_one_line_and_status_2(spec, capsys, tmp_path, clips, options, word):
    (tmp_path/'empty/a').mkdir(parents=True)
    (tmp_path/'lonely').mkdir()
    for kind, n in (('right', 8), ('down', 1)):
        (tmp_path/'lonely'/kind).mkdir()
        for f in sorted((clips/kind).iterdir())[:n]: shutil.copy(f, tmp_path/'lonely'/kind)
    save_weights(create_model('resnet18', 2)[0], tmp_path/'other.safetensors')
    (tmp_path/'file').write_text('')
    (name, value), = options.items()
    for place in ('EMPTY', 'LONELY', 'FILE'): value = str(value).replace(place, str(tmp_path/place.lower()))
    value = value.replace('OTHER', str(tmp_path/'other.safetensors'))
    status, err = call(dict(task=spec, source=spec, frames=4, size=24, out=tmp_path/'out') | {name: value}, capsys)
    assert status == 2
    assert word in err
    assert err.count('\n') == 1 and 'Traceback' not in err
    assert not list(tmp_path.glob('out/runs/*'))


def test_the_command_line_itself_fails_the_same_way():
    p = run(dict(task='folder:nowhere'))
    assert p.returncode == 2 and p.stdout == 'loading PyTorch and fastai\n'
    assert p.stderr.strip() == 'compare.py: folder nowhere does not exist'


@pytest.mark.parametrize('threads,options,jobs', [
    (3, {}, 3), (40, dict(task='moving_digits,shots=2'), 8), (1, {}, 1),
    (3, dict(model='c3d'), 1), (3, dict(task='folder:x'), 1), (3, dict(quick=True), 1)])
def test_workers_by_default(monkeypatch, threads, options, jobs):
    settings = make_settings('compare', **options)
    monkeypatch.setattr('torch.get_num_threads', lambda: threads)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert default_jobs(settings) == jobs
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    assert default_jobs(settings) == 1


@pytest.mark.nightly
def test_ctrl_c_and_the_same_command_again(spec, tmp_path):
    options = dict(task=spec, source=spec, frames=4, size=24, epochs=3, source_epochs=1, bs=4,
                   strategies='self_distill', lams=1, seeds=6, out=tmp_path)
    line = [sys.executable, str(ROOT/'experiments/compare.py'), *words(options)]
    p = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not list(tmp_path.glob('runs/*/result.json')) and time.time() < deadline and p.poll() is None: time.sleep(.02)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130
    assert 'the same command resumes' in err and 'Traceback' not in err
    done = {f:f.stat().st_mtime_ns for f in tmp_path.glob('runs/*/result.json')}
    assert 0 < len(done) < 12
    p = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0
    assert p.stdout.count('finished before') == len(done)
    assert all(f.stat().st_mtime_ns == t for f, t in done.items())
    assert len(list(tmp_path.glob('runs/*/result.json'))) == 12


def test_the_readmes_five_lines_run(clips, tmp_path, monkeypatch):
    code = (ROOT/'README.md').read_text().split('```python\n')[1].split('```')[0]
    smaller = {'r2plus1d_18': 'tiny', 'frames=16, bs=24': 'frames=4, size=24, bs=4',
               '_(g\\d+)_': '(p\\d)_', "'tiny', ": "'tiny', pretrained=False, ", 'fine_tune(10)': 'fine_tune(2)'}
    for ours, small in smaller.items():
        assert ours in code
        code = code.replace(ours, small)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clips, 'my_videos')
    exec(code, {})
