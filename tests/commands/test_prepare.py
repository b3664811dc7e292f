"Prepared copies show the same frames, are resumed, are used where they are, and change the key of a run."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sdfast.commands import prepare as script
from sdfast.data.indexing import index_video
from sdfast.data.task import Task
from sdfast.data.video import VideoFile
from sdfast.errors import InputError

SCRIPT = Path(__file__).parents[2]/'experiments'/'prepare.py'


@pytest.fixture
def root(clips, tmp_path, monkeypatch):
    monkeypatch.delenv('SDFAST_PREPARED', raising=False)
    return Path(shutil.copytree(clips, tmp_path/'videos'))


def prepare(root, to=None, size=32):
    "Relative names of what has a copy, and why others have none"
    index_video.cache_clear()  # files change here
    made, bad, _ = script.prepare(f'folder:{root}', to, size, 4, 18, 1)
    index_video.cache_clear()
    return sorted(made['files']), bad


@pytest.fixture(scope='module')
def done(clips, tmp_path_factory):
    "A prepared task, for tests that do not change it"
    root = Path(shutil.copytree(clips, tmp_path_factory.mktemp('done')/'videos'))
    command = [sys.executable, SCRIPT, f'folder:{root}', '--jobs', '2', '--size', '32', '--gop', '4']
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ | {'SDFAST_PREPARED': 'nowhere'})
    assert ran.returncode == 0 and '16 copies' in ran.stdout, ran.stdout + ran.stderr
    return root


@pytest.fixture
def task(done, monkeypatch):
    def make(prepared=True):
        if prepared: monkeypatch.delenv('SDFAST_PREPARED', raising=False)
        else: monkeypatch.setenv('SDFAST_PREPARED', '')
        return Task.from_folder(done)
    return make


@pytest.mark.nightly
def test_copies_are_used_and_show_the_same_frames(task, done):
    was, now = task(False), task()
    assert was.prepared is None
    assert now.prepared == 32
    assert now.fingerprint != was.fingerprint
    assert now.notes[0].startswith('16 of 16 videos are replaced by their prepared copies')
    assert not any('prepared' in n for n in was.notes)
    assert [f'{p}.mp4'.replace(f'{done}/', f'{done}.prepared/') for p in was.df.path] == list(now.df.path)
    assert (was.df[['label', 'split', 'group']] == now.df[['label', 'split', 'group']]).all(None)
    for a, b in zip(was.df.path[::5], now.df.path[::5]):
        a, b = VideoFile(a), VideoFile(b)
        assert b.index.n == a.index.n == 12
        assert b.scaled(None) == (42, 32)
        assert list(np.searchsorted(b.index.pts, b.index.keys)) == [0, 4, 8]
        x, y = (v.read(range(12), (42, 32)).float() for v in (a, b))
        assert abs(x - y).mean() < 4
        nearest = (x[:, None] - y[None]).abs().mean((2, 3, 4)).argmin(1)
        assert nearest.tolist() == list(range(12))  # neither shifted nor mixed up


@pytest.mark.nightly
def test_a_size_that_copies_do_not_have_is_refused(task):
    assert task().dls(4, 2, 32, bs=4).one_batch()[0].shape[-1] == 32
    with pytest.raises(InputError, match='short side of 32 pixels, too few for size 40; prepare with --size 40'):
        task().dls(4, 2, 40)
    with pytest.raises(InputError, match='crops of 0.25 of the frame; prepare with --size 48'):
        task().dls(4, 2, 24, area=(.25, 1))
    assert task(False).dls(4, 2, 40, bs=4).one_batch()[0].shape[-1] == 40


def test_resuming_makes_what_is_missing_or_has_changed(root, write):
    assert len(prepare(root)[0]) == 16
    place = Path(f'{root}.prepared')
    made = {p:p.stat().st_mtime_ns for p in place.rglob('*.mp4')}
    gone, new, cut = sorted(root.rglob('*.mp4'))[:3]
    copies = [place/f'{p.relative_to(root)}.mp4' for p in (gone, new, cut)]
    copies[0].unlink()
    write(new, np.full((9, 48, 64), 90, np.uint8))  # another video by this name
    copies[2].write_bytes(copies[2].read_bytes()[:-1])
    used = Task.from_folder(root)
    assert used.notes[0].startswith('13 of 16')
    assert {str(gone), str(new), str(cut)} < set(used.df.path)
    assert len(prepare(root)[0]) == 16
    assert {p for p in made if p.stat().st_mtime_ns != made[p]} == set(copies)
    assert not list(place.rglob('*.tmp'))
    assert VideoFile(copies[1]).index.n == 9
    assert Task.from_folder(root).notes[0].startswith('16 of 16')


def test_bad_files_are_named_and_used_as_they_are(root, shared):
    broken, breaks_off = root/'down'/'empty.mp4', root/'down'/'breaks_off.mp4'
    broken.write_bytes(b'')
    shutil.copy(shared/'torture/real/corrupted.mp4', breaks_off)
    made, bad = prepare(root)
    assert len(made) == 16
    assert set(bad) == {'down/empty.mp4', 'down/breaks_off.mp4'}
    assert bad['down/empty.mp4'].startswith('cannot be opened')
    assert bad['down/breaks_off.mp4'].startswith('21 of its 50 frames are damaged: 29 to 49')
    task = Task.from_folder(root)
    assert str(breaks_off) in set(task.df.path)
    assert task.notes[0].startswith('16 of 18')
    assert str(broken) in task.skipped


def test_mistakes_are_one_clear_line(root, tmp_path):
    command = [sys.executable, SCRIPT, f'folder:{root}', '--size', '33']
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 2
    assert 'must be even' in ran.stderr
    assert ran.stderr.count('\n') == 1
    with pytest.raises(InputError, match='is where the originals are'): prepare(root, root)
    place = Path(f'{root}.prepared')
    place.mkdir()
    (place/'prepared.json').write_text(json.dumps(dict(size=64, gop=4, quality=18, files={})))
    with pytest.raises(InputError, match='copies made with --size 64, not 32'): prepare(root)


@pytest.mark.parametrize('data', [b'', b'{', bytes(40), b'[]', b'{"files": 3}', b'{"files": {}, "size": "a"}', None])
def test_a_damaged_manifest_stops_no_study(root, data):
    first, _ = prepare(root)
    file = Path(f'{root}.prepared')/'prepared.json'
    if data is None: data = file.read_bytes().replace(b'"size": 32', b'"size": 33')
    file.write_bytes(data)
    with pytest.warns(UserWarning, match='prepared.json is damaged, so the copies .* are not used') as caught:
        task = Task.from_folder(root)
    assert '\n' not in str(caught[0].message)
    assert task.prepared is None and task.count('train') + task.count('test') == 16
    if data: return
    with pytest.warns(UserWarning, match='makes them again'): assert prepare(root)[0] == first
    assert Task.from_folder(root).prepared == 32


def test_elsewhere_by_the_environment(root, tmp_path, monkeypatch):
    assert len(prepare(root, tmp_path/'small')[0]) == 16
    assert Task.from_folder(root).prepared is None
    monkeypatch.setenv('SDFAST_PREPARED', str(tmp_path/'small'))
    assert Task.from_folder(root).prepared == 32
