"The script as a user calls it: what it writes, and one clear line for what cannot work."
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


def run(*args, **env):
    "The script as a process of its own"
    return subprocess.run([sys.executable, str(ROOT/'experiments/compare.py'), *map(str, args)], capture_output=True, text=True, env=os.environ | env, timeout=500)


@pytest.fixture(scope='module')
def spec(clips): return f'folder:{clips},group=(p\\d)_'


def test_folders_of_videos_end_to_end(spec, tmp_path):
    args = ['--task', spec, '--source', spec, '--frames', 4, '--size', 24, '--epochs', 2, '--source_epochs', 2, '--seeds', 2, '--bs', 4, '--lams', '.1,1', '--quick']
    p = run(*args, '--out', tmp_path/'a')
    assert p.returncode == 0, p.stderr
    for word in ('2 classes', 'source task: 2 epochs', '24/24', 'takes', 'untouched', 'runs.csv'): assert word in p.stdout, word
    rows = pd.read_csv(tmp_path/'a/runs.csv')
    assert set(rows.strategy) == {'finetune', 'self_distill', 'fixed_teacher', 'ema_teacher', 'l2sp', 'ewc', 'untouched'}
    again = run(*args, '--out', tmp_path/'a')
    assert again.returncode == 0 and 'finished before' in again.stdout
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'a/runs.csv'), rows)
    assert run(*args, '--out', tmp_path/'b').returncode == 0  # pre-trained and run anew: the same numbers
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'b/runs.csv').drop(columns='seconds'), rows.drop(columns='seconds'))


def fails(capsys, *args):
    "Exit status and error text of a call in this process"
    from importlib.machinery import SourceFileLoader
    script = SourceFileLoader('compare', str(ROOT/'experiments/compare.py')).load_module()
    old, sys.argv = sys.argv, ['compare.py', *map(str, args)]
    try:
        with pytest.raises(SystemExit) as e: script.build_and_run_from_command_line()
    finally: sys.argv = old
    return e.value.code, capsys.readouterr().err
