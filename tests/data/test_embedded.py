"The embedded videos are checked by digest at each use; what is missing or damaged is made again."
import shutil
import time

import pytest
from tables import FEW_DIGITS

from sdfast.data import datasets, digits, embedded
from sdfast.data.datasets import moving_digits
from sdfast.data.video import VideoFile
from sdfast.errors import StoreError
from sdfast.runtime import store

DAMAGE = dict(empty=lambda data: b'', cut=lambda data: data[:len(data)//2], zeroed=lambda data: bytes(len(data)),
              flipped=lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], text=lambda data: b'not a video')


@pytest.fixture
def few(monkeypatch): monkeypatch.setattr(digits, 'CLIPS', FEW_DIGITS)


@pytest.fixture
def root(few, tmp_path):
    moving_digits(tmp_path)
    return tmp_path/'moving_digits-2'/'target'


def contents(root):
    return {f.relative_to(root):f.read_bytes() for f in root.rglob('*') if f.is_file() and not f.name.startswith('.')}


@pytest.mark.parametrize('how', [*DAMAGE, 'gone'])
@pytest.mark.parametrize('name', ['video', 'manifest.csv', 'digests.json'])
def test_damage_is_repaired_and_named(root, how, name):
    whole, fingerprint = contents(root), moving_digits(root.parents[1]).fingerprint
    file = sorted(root.rglob('*.mp4'))[7] if name == 'video' else root/name
    if how == 'gone': file.unlink()
    else: file.write_bytes(DAMAGE[how](file.read_bytes()))
    if name == 'digests.json': moving_digits(root.parents[1])
    else:
        with pytest.warns(UserWarning, match='1 of .* files were missing or damaged') as caught:
            moving_digits(root.parents[1])
        assert file.name in str(caught[0].message) and '\n' not in str(caught[0].message)
    assert contents(root) == whole
    assert moving_digits(root.parents[1]).fingerprint == fingerprint
    assert not list(root.parent.glob('*.tmp'))


def test_what_is_whole_is_not_written(root, recwarn):
    before = {f:f.stat().st_mtime_ns for f in root.rglob('*')}
    moving_digits(root.parents[1])
    assert {f:f.stat().st_mtime_ns for f in root.rglob('*')} == before
    assert not recwarn.list


def test_a_folder_that_is_gone_comes_back(root):
    whole = contents(root)
    folder = next(f for f in (root/'train').iterdir())
    shutil.rmtree(folder)
    with pytest.warns(UserWarning, match='made again'): moving_digits(root.parents[1])
    assert contents(root) == whole


def test_videos_of_an_older_folder_are_kept_if_they_show_the_same(root):
    "Other versions of FFmpeg write their name into a file, so its bytes differ"
    (root/'digests.json').unlink()
    older, damaged = sorted(root.rglob('*.mp4'))[:2]
    older.write_bytes(older.read_bytes() + b'\0\0\0\x0cfreeolde')  # a box that no reader looks into
    damaged.write_bytes(damaged.read_bytes()[:-200])
    kept = older.read_bytes()
    with pytest.warns(UserWarning, match=f'1 of .*{damaged.name}'): moving_digits(root.parents[1])
    assert older.read_bytes() == kept
    assert VideoFile(damaged).index.n == 8
    assert store.read_json(root/'digests.json')['files'][older.relative_to(root).as_posix()] == store.digest(older)


def test_a_full_disk_is_one_line(few, tmp_path, monkeypatch):
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(datasets, 'write_moving_digits', full)
    with pytest.raises(StoreError, match='No space left on device; set SDFAST_HOME to') as e: moving_digits(tmp_path)
    assert '\n' not in str(e.value)
    assert not list(tmp_path.rglob('*.mp4'))


def test_checking_thousands_of_files_takes_no_time(tmp_path):
    for i in range(6000):
        folder = tmp_path/str(i % 60)
        folder.mkdir(exist_ok=True)
        (folder/f'{i}.mp4').write_bytes(i.to_bytes(8, 'big')*1300)
    files = {f.relative_to(tmp_path).as_posix():store.digest(f) for f in tmp_path.rglob('*.mp4')}
    start = time.process_time()
    assert embedded._bad_files(tmp_path, files) == []
    assert time.process_time() - start < 3
