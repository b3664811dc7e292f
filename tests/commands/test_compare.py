"The script as a user calls it: what it writes, and one clear line for what cannot work."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


def run(*args, **env):
    "The script as a process of its own"
    return subprocess.run([sys.executable, str(ROOT/'experiments/compare.py'), *map(str, args)], capture_output=True, text=True, env=os.environ | env, timeout=500)


@pytest.fixture(scope='module')
def spec(clips): return f'folder:{clips},group=(p\\d)_'


def test_folders_of_videos_end_to_end(spec, tmp_path):
    args = ['--task', spec, '--source', spec, '--frames', 4, '--size', 24, '--epochs', 2, '--source-epochs', 2, '--seeds', 2, '--bs', 4, '--lams', '.1,1', '--quick', '--strategy-args', 'ewc:implicit=true;self_distill:layers=blocks']
    p = run(*args, '--out', tmp_path/'a')
    assert p.returncode == 0, p.stderr
    for word in ('2 classes', 'source task: 2 epochs', '24/24', 'takes', 'untouched', 'runs.csv'): assert word in p.stdout, word
    rows = pd.read_csv(tmp_path/'a/runs.csv')
    assert set(rows[rows.strategy == 'ewc'].strategy_args) == {'implicit=true'} and set(rows.status) == {'ok'}
    assert set(rows.strategy) == {'finetune', 'self_distill', 'fixed_teacher', 'ema_teacher', 'l2sp', 'ewc', 'untouched'}
    page = (tmp_path/'a/report.html').read_text()  # a study ends with it, what was forgotten by class and clip included
    assert 'report.html' in p.stdout and 'cannot be told' not in page and 'data:image/jpeg' in page and 'Least forgotten' in page
    again = run(*args, '--out', tmp_path/'a')
    assert again.returncode == 0 and 'finished before' in again.stdout
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'a/runs.csv'), rows)
    assert run(*args, '--out', tmp_path/'b').returncode == 0  # pre-trained and run anew: the same numbers
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'b/runs.csv').drop(columns='seconds'), rows.drop(columns='seconds'))


def test_paths_and_equal_learning_end_to_end(spec, tmp_path):
    p = run('--task', spec, '--source', spec, '--frames', 4, '--size', 24, '--epochs', 3, '--source-epochs', 2, '--seeds', 2, '--bs', 4, '--lams', '.1,1', '--strategies', 'l2sp',
            '--path', '--rule', 'equal_learning', '--kept', 'source_acc', '--others', spec, '--barrier', '--select', 'valid', '--patience', 2, '--out', tmp_path)
    assert p.returncode == 0, p.stderr
    assert 'held out, by group, to choose strengths by what was kept' in p.stdout and 'kept) on valid; takes' in p.stdout and '8/8' in p.stdout
    rows = pd.read_csv(tmp_path/'runs.csv')
    assert len(rows) == 9 and rows.final.all() and rows.chosen.sum() == 5 and set(rows.status) == {'ok'}
    for c in ('valid_source_acc', 'valid_source_probe', 'other_probe', 'barrier', 'source_acc_bn', 'r1', 'procrustes'): assert rows[c].notna().all(), c
    assert {f.name for f in tmp_path.iterdir() if f.is_file()} == {'report.html', 'plan.json', 'notes.json', 'runs.csv', 'table.csv', 'table.md', 'figure.png', 'paths.png', *(f'trade_off_source_{k}.{e}' for k in ('acc', 'probe') for e in ('csv', 'md'))}


def test_every_table_says_what_is_missing(call, spec, tmp_path, capsys):
    from official import write_ucf
    root = write_ucf(tmp_path/'data', per_group=1)
    (root/'UCF-101/HammerThrow/v_HammerThrow_g01_c01.avi').unlink()
    shutil.move(root/'ucfTrainTestlist', tmp_path/'elsewhere')
    args = dict(task=f'ucf101:{root}', source=spec, others=f'ucf101:{root},fold=2', strategies='linear_probe', lams='', frames=4, size=16, bs=2, epochs=1, source_epochs=1, seeds=2, path=True, out=str(tmp_path/'out'))
    assert 'say where they are with --splits' in call(args, spec, capsys)[1]
    args['splits'] = str(tmp_path/'elsewhere')
    assert 'its lists name 9 train and 6 test videos, not the official 9537 and 3783' in call(args, spec, capsys)[1]
    assert call(args | dict(allow_missing=True), spec, capsys) == (0, '')
    page = (tmp_path/'out/report.html').read_text()
    for name in ('source', 'target'): assert 'cannot be told' not in page and f'answers on the {name}' not in page
    assert '<li>ucf101 fold 1: 1 of 15 videos are missing' in page
    for table in ('table', 'trade_off_source_acc', 'trade_off_source_probe'):
        text = (tmp_path/f'out/{table}.md').read_text()
        assert all(f'\n- ucf101 fold {i}: 1 of 15 videos are missing' in text for i in (1, 2)) and text.endswith('\n') and '\n\n\n' not in text, table


BAD = [(['--rule', 'test'], 'never to choose'), (['--rule', 'best'], 'accuracy or equal_learning'), (['--select', 'test'], 'never to choose'), (['--select', 'paper'], 'last or valid'),
       (['--kept', 'cka'], 'source_probe or source_acc'), (['--patience', -1], '--patience'), (['--adjust', 'some'], 'holm, bh, none'),
       (['--others', 'folder:nowhere'], 'does not exist'), (['--task', 'folder:nowhere'], 'folder nowhere does not exist'), (['--source', 'csv:no.csv'], 'csv file no.csv does not exist'),
       (['--task', 'ucf'], "unknown task 'ucf'"), (['--task', 'folder:EMPTY'], 'has no videos'), (['--task', 'folder:LONELY'], 'has one clip'),
       (['--strategies', 'l2sp,magic'], "unknown strategy 'magic'"), (['--model', 'no_net'], "unknown model 'no_net'"),
       (['--lams', '-1'], 'at least 0, not -1'), (['--lams', 'x'], 'not numbers'), (['--strategy-args', 'magic:a=1'], "'magic' is not among"),
       (['--strategy-args', 'ewc:implicit'], 'name=value'), (['--lams', 'magic=1'], "'magic'"), (['--lams', 'l2sp=1'], 'same number of trials'),
       (['--frames', 0], '--frames must be at least 1'), (['--epochs', 0], '--epochs'), (['--seeds', 0], '--seeds'), (['--stride', -2], '--stride'),
       (['--lr', 0], '--lr must be positive'), (['--size', 3], '--size'), (['--workers', -1], '--workers'), (['--init', 'no.pth'], 'weights no.pth do not exist'),
       (['--init', 'OTHER'], 'not of this encoder'), (['--model-args', 'width'], 'name=value'), (['--model-args', 'colour=3'], 'does not take'),
       (['--out', 'FILE/x'], 'cannot be made'), (['--clips', 0], '--clips'), (['--source-bs', 0], '--source-bs')]


@pytest.fixture(scope='module')
def call():
    "The script in this process: exit status and error text"
    from sdfast.commands import compare as script
    def call(args, spec, capsys):
        try: script.main(**args)
        except SystemExit as e: return e.code, capsys.readouterr().err
        return 0, capsys.readouterr().err
    call.script = script
    return call


@pytest.mark.parametrize('threads,task,model,quick,jobs', [(3, 'moving_digits', 'tiny', False, 3), (40, 'moving_digits,shots=2', 'tiny', False, 8), (1, 'moving_digits', 'tiny', False, 1),
                                                           (3, 'moving_digits', 'c3d', False, 1), (3, 'folder:x', 'tiny', False, 1), (3, 'moving_digits', 'tiny', True, 1)])
def test_workers_by_default(call, monkeypatch, threads, task, model, quick, jobs):
    monkeypatch.setattr('torch.get_num_threads', lambda: threads)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert call.script.default_jobs(task=task, model=model, quick=quick, seeds=6) == jobs
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    assert call.script.default_jobs(task=task, model=model, quick=quick) == 1


@pytest.mark.parametrize('args,word', BAD, ids=[' '.join(map(str, a)) for a, _ in BAD])
def test_bad_input_is_one_line_and_status_2(call, spec, capsys, tmp_path, clips, args, word):
    from sdfast.models.encoders import create_model
    from sdfast.models.weights import save_weights
    (tmp_path/'empty/a').mkdir(parents=True)
    (tmp_path/'lonely').mkdir()
    for kind, n in (('right', 8), ('down', 1)):
        (tmp_path/'lonely'/kind).mkdir()
        for f in sorted((clips/kind).iterdir())[:n]: shutil.copy(f, tmp_path/'lonely'/kind)
    save_weights(create_model('resnet18', 2)[0], tmp_path/'other.safetensors')
    (tmp_path/'file').write_text('')
    places = {'EMPTY': tmp_path/'empty', 'LONELY': tmp_path/'lonely', 'OTHER': tmp_path/'other.safetensors', 'FILE': tmp_path/'file'}
    value = str(args[1])
    for k, v in places.items(): value = value.replace(k, str(v))
    value = type(args[1])(value)
    status, err = call(dict(task=spec, source=spec, frames=4, size=24, out=str(tmp_path/'out')) | {args[0][2:].replace('-', '_'): value}, spec, capsys)
    assert status == 2 and word in err and err.count('\n') == 1 and 'Traceback' not in err
    assert not list(tmp_path.glob('out/runs/*'))


def test_the_command_line_itself_fails_the_same_way():
    p = run('--task', 'folder:nowhere')
    assert p.returncode == 2 and p.stderr.strip() == 'compare.py: folder nowhere does not exist' and p.stdout == ''
    assert run('--frames', 'many').returncode == 2  # told by argparse


def test_ctrl_c_and_going_on(spec, tmp_path):
    import signal
    import time
    args = [sys.executable, str(ROOT/'experiments/compare.py'), '--task', spec, '--source', spec, '--frames', '4', '--size', '24', '--epochs', '3', '--source-epochs', '1',
            '--bs', '4', '--strategies', 'self_distill', '--lams', '1', '--seeds', '6', '--out', str(tmp_path)]
    p = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not list(tmp_path.glob('runs/*/result.json')) and time.time() < deadline and p.poll() is None: time.sleep(.02)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'the same command goes on from there' in err and 'Traceback' not in err
    done = {f:f.stat().st_mtime_ns for f in tmp_path.glob('runs/*/result.json')}
    assert 0 < len(done) < 12
    p = subprocess.run(args, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0 and p.stdout.count('finished before') == len(done)
    assert all(f.stat().st_mtime_ns == t for f, t in done.items()) and len(list(tmp_path.glob('runs/*/result.json'))) == 12


def test_the_readmes_five_lines_run(clips, tmp_path, monkeypatch):
    from sdfast.models.encoders import create_model
    from sdfast.models.weights import save_weights
    code = (ROOT/'README.md').read_text().split('```python\n')[1].split('```')[0]
    for ours, small in {'r2plus1d_18': 'tiny', 'frames=16, size=112, bs=24': 'frames=4, size=24, bs=4', '_(g\\d+)_': '(p\\d)_', 'fit(10)': 'fit(2)'}.items():
        assert ours in code
        code = code.replace(ours, small)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(clips, 'my_videos')
    save_weights(create_model('tiny', 2)[0], 'encoder.safetensors')
    exec(code, {})
