"Tasks by name, and `moving_digits` is written once."
import subprocess
import sys

import pytest
from tables import FEW_DIGITS, groups_of

from sdfast.data import digits
from sdfast.data.datasets import create_task, moving_digits
from sdfast.data.video import VideoFile
from sdfast.errors import InputError


@pytest.fixture
def few(monkeypatch): monkeypatch.setattr(digits, 'CLIPS', FEW_DIGITS)


def test_moving_digits(tmp_path, few):
    target, source, motion, digit = (moving_digits(tmp_path, part) for part in ('target', 'source', 'motion', 'digit'))
    assert [len(t.vocab) for t in (source, target, motion, digit)] == [60, 8, 6, 10]
    for task in (target, source, motion, digit):
        assert not groups_of(task, 'train') & groups_of(task, 'test')
        assert not groups_of(task, 'valid') & (groups_of(task, 'train') | groups_of(task, 'test'))  # other handwriting
        assert task.df[task.df.split == 'train'].label.value_counts().nunique() == 1
        assert task.count('valid') == FEW_DIGITS[task.name.split(':')[1]]['valid']
    v = VideoFile(target.df.path[0])
    assert v.index.n == 8
    assert v.scaled(None) == (40, 40)
    assert not [p for p in tmp_path.iterdir() if p.suffix == '.tmp']
    stamp = {p:p.stat().st_mtime_ns for p in tmp_path.rglob('*.mp4')}
    moving_digits(tmp_path)
    assert stamp == {p:p.stat().st_mtime_ns for p in tmp_path.rglob('*.mp4')}  # not written twice


def test_specs_name_the_parts(tmp_path, few, monkeypatch):
    monkeypatch.setenv('SDFAST_HOME', str(tmp_path))
    create_task.cache_clear()
    for part, classes in digits.PARTS.items():
        task = create_task(f'moving_digits,part={part}')
        assert task.name == f'moving_digits:{part}'
        assert set(task.vocab) == set(classes)
    create_task.cache_clear()


def test_errors_are_one_clear_line(clips, tmp_path):
    errors = {
        'known are moving_digits': lambda: create_task('ucf'),
        'needs a path': lambda: create_task('folder'),
        "unknown option 'sed'": lambda: create_task(f'folder:{clips},sed=1'),
        "parts source, target, motion, digit, not 'x'": lambda: moving_digits(tmp_path, 'x')}
    for word, call in errors.items():
        with pytest.raises(InputError, match=word) as e: call()
        assert '\n' not in str(e.value)


MAKE = """
import sys
from sdfast.data import digits
from sdfast.data.datasets import moving_digits
digits.CLIPS = eval(sys.argv[2])
print(moving_digits(sys.argv[1]).fingerprint)
"""


@pytest.mark.nightly
def test_two_processes_at_once(tmp_path):
    command = [sys.executable, '-c', MAKE, str(tmp_path), repr(FEW_DIGITS)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    prints = {p.communicate(timeout=400)[0] for p in both}
    assert [p.returncode for p in both] == [0, 0]
    assert len(prints) == 1
    assert [p.name for p in tmp_path.iterdir()] == ['moving_digits-2']
