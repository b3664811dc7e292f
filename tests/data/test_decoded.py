"""Shared videos are decoded once, equal what a reader gets and follow the content of the files.

Nothing that happens to their folder changes a batch."""
import copy
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open

from sdfast.data import decoded
from sdfast.data.cache import MemoryBudget, cached_frames
from sdfast.data.decoded import Decoded, decoded_folder
from sdfast.data.task import Task
from sdfast.data.video import VideoError, VideoFile
from sdfast.study import loaders as loaders_module
from sdfast.study.config import Run


def files(place): return sorted(Path(place).glob('*/videos-*'))


def opened(paths, place, size=24):
    d = Decoded(paths, size, place)
    d.open()
    return d


@pytest.fixture
def some(clips, tmp_path):
    shutil.copytree(clips, tmp_path/'some')
    return sorted(map(str, (tmp_path/'some').glob('*/*')))


@pytest.fixture
def no_decoder(monkeypatch):
    def go(*args): raise AssertionError('decoded once more')
    return lambda: monkeypatch.setattr(VideoFile, 'whole', go)


@pytest.mark.parametrize('size', [24, None, 48])
def test_frames_are_those_of_a_reader(some, tmp_path, size, no_decoder):
    d = opened(some, tmp_path/'d', size)
    for p in some:
        want = VideoFile(p).read(np.arange(12), size)
        assert d(p, size).dtype == torch.uint8
        assert torch.equal(d(p, size), want)
    assert d(some[0], 30) is None
    assert d('other', size) is None
    assert len(files(tmp_path/'d')) == 1
    no_decoder()
    again = opened(some[::-1], tmp_path/'d', size)  # another order is the same set
    assert all(torch.equal(again(p, size), d(p, size)) for p in some)
    if sys.platform.startswith('linux'):  # mapped, not read
        assert str(files(tmp_path/'d')[0]) in Path('/proc/self/maps').read_text()
    again(some[0], size).zero_()  # not to be done, but others do not see it
    assert d(some[0], size).any()
    assert opened(some, tmp_path/'d', size)(some[0], size).any()


def test_a_suffix_that_is_no_text(some, tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path/'x.mp4') + b'\xff')
    try: shutil.copy(some[0], name)
    except OSError: pytest.skip('names here must be text')
    assert torch.equal(opened([name], tmp_path/'d')(name, 24), VideoFile(some[0]).read(np.arange(12), 24))


def test_before_it_is_opened_there_is_nothing(some, tmp_path):
    d = Decoded(some, 24, tmp_path/'d')
    assert d(some[0], 24) is None
    assert not (tmp_path/'d').exists()
    assert copy.copy(d) is d
    assert copy.deepcopy([d])[0] is d
    assert pickle.loads(pickle.dumps(d)) is True


def test_content_decides_not_the_name(some, tmp_path, no_decoder):
    d = opened(some, tmp_path/'d')
    a, b = some[0], some[-1]
    times = [os.stat(p).st_mtime_ns for p in (a, b)]
    old = {p:d(p, 24) for p in (a, b)}
    one, two = Path(a).read_bytes(), Path(b).read_bytes()
    for p, data, t in ((a, two, times[0]), (b, one, times[1])):
        Path(p).write_bytes(data)
        os.utime(p, ns=(t, t))
    no_decoder()  # the same contents under exchanged names
    new = opened(some, tmp_path/'d')
    assert torch.equal(new(a, 24), old[b])
    assert torch.equal(new(b, 24), old[a])
    assert not torch.equal(old[a], old[b])
    assert torch.equal(d(a, 24), old[a])  # what is mapped stays


def test_another_content_is_another_file(some, tmp_path, write):
    d, (a, b) = opened(some, tmp_path/'d'), some[3:5]
    write(a, np.full((9, 48, 64), 200, np.uint8))
    write(b, np.full((15, 48, 64), 100, np.uint8))
    new = opened(some, tmp_path/'d')
    assert len(new(a, 24)) == 9
    assert len(new(b, 24)) == 15
    assert len(d(a, 24)) == len(d(b, 24)) == 12
    assert len(files(tmp_path/'d')) == 2


def test_the_same_bytes_under_another_suffix_are_another_video(some, tmp_path):
    "What a name says of the format counts where FFmpeg guesses it"
    twin, other = tmp_path/'twin.mp4', tmp_path/'other.mkv'
    for p in (twin, other): shutil.copy(some[0], p)
    d = opened([some[0], str(twin), str(other)], tmp_path/'d')
    with safe_open(files(tmp_path/'d')[0], 'pt') as f: suffixes = sorted(Path(k).suffix for k in f.keys())
    assert suffixes == ['.mkv', '.mp4']
    assert d(str(twin), 24) is d(some[0], 24)


@pytest.mark.parametrize('what', ['a byte', 'the end', 'all'])
def test_a_damaged_file_is_made_again(some, tmp_path, what):
    want = [opened(some, tmp_path/'d')(p, 24).clone() for p in some]
    file, = files(tmp_path/'d')
    data = bytearray(file.read_bytes())
    data[-7] ^= 1
    file.unlink()  # the tests' tensors map the old one
    file.write_bytes(dict([('a byte', bytes(data)), ('the end', bytes(data[:-100])), ('all', b'')])[what])
    # one of another name, which must not be tried again and again
    file.with_name('videos-ffffffffffffffff.safetensors').write_bytes(data)
    again = opened(some, tmp_path/'d')
    assert all(torch.equal(again(p, 24), w) for p, w in zip(some, want))
    assert files(tmp_path/'d') == [file]


def test_what_cannot_be_decoded_whole_is_left_out(some, tmp_path, shared):
    "Of real and broken videos those are kept that a reader reads without a complaint"
    bad, left = tmp_path/'bad.mp4', 0
    bad.write_bytes(Path(some[0]).read_bytes()[:300])
    os.mkfifo(tmp_path/'pipe.mp4')
    small = [p for p in sorted((shared/'torture').rglob('*')) if p.is_file() and p.stat().st_size < 2**21]
    paths = [*some, *map(str, (bad, tmp_path/'gone.mp4', tmp_path/'pipe.mp4', *small))]
    d = opened(paths, tmp_path/'d')
    for p in paths:
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            try: want = VideoFile(p).read(np.arange(VideoFile(p).index.n), 24)
            except (VideoError, UserWarning): want, left = None, left + 1
        got = d(p, 24)
        assert got is None if want is None else torch.equal(got, want), p
    assert left > 3


def test_videos_that_are_too_large_are_left_out(some, tmp_path, monkeypatch):
    monkeypatch.setattr('sdfast.data.cache.MAX_VIDEO_BYTES', 3*12*24*32 - 1)
    assert opened(some, tmp_path/'d')(some[0], 24) is None
    monkeypatch.setattr('sdfast.data.cache.MAX_VIDEO_BYTES', 3*12*24*32)
    assert opened(some, tmp_path/'e')(some[0], 24) is not None


BYTES = 3*12*24*32  # of one video's frames with a short side of 24


def test_a_set_is_decoded_and_written_in_parts(some, tmp_path, monkeypatch):
    "Only one part at a time is in memory"
    want = opened(some, tmp_path/'d')
    monkeypatch.setattr(decoded, 'PART_BYTES', 3*BYTES)
    sizes, save = [], decoded.save_file
    def record(frames, file):
        sizes.append(sum(v.nbytes for v in frames.values()))
        save(frames, file)
    monkeypatch.setattr(decoded, 'save_file', record)
    d = opened(some, tmp_path/'e')
    assert sizes == [3*BYTES]*5 + [BYTES]
    assert len(files(tmp_path/'e')) == 6
    assert all(torch.equal(d(p, 24), want(p, 24)) for p in some)
    files(tmp_path/'e')[2].unlink()
    assert all(torch.equal(opened(some, tmp_path/'e')(p, 24), want(p, 24)) for p in some)
    assert len(files(tmp_path/'e')) == 6


def test_a_set_is_bounded(some, tmp_path, monkeypatch):
    "What does not fit is decoded by each process, as far as the same limit allows"
    monkeypatch.setattr(decoded, 'MAX_TASK_BYTES', 5*BYTES)
    monkeypatch.setattr(decoded, 'MemoryBudget', lambda: MemoryBudget(6*BYTES))
    d = opened(some, tmp_path/'d')
    assert sum(d(p, 24) is not None for p in some) == 5
    with pytest.warns(UserWarning, match='clip by clip') as caught:
        found = [cached_frames(VideoFile(p), 24, d) for p in [*some, *some]]
    assert len(caught) == 1
    assert sum(x is not None for x in found) == 2*6


def test_a_folder_is_bounded_and_forgets_what_was_not_used(some, tmp_path, monkeypatch):
    place = tmp_path/'d'
    opened(some[:4], place, 24)
    first, = files(place)
    opened(some[:4], place, 25)
    second, = set(files(place)) - {first}
    os.utime(second, (1, 1))
    os.utime(first, (0, 0))
    opened(some[:4], place, 24)  # used now
    assert first.stat().st_mtime > 1
    leftover = second.parent/'videos.tmp'  # of a process that was killed
    leftover.write_bytes(bytes(1000))
    os.utime(leftover, (2, 2))
    monkeypatch.setattr(decoded, 'MAX_FOLDER_BYTES', first.stat().st_size + 3*12*4*26*35 + 1000)
    opened(some[:4], place, 26)
    third, = set(files(place)) - {first, second}
    assert first.exists()
    assert not second.exists()
    assert leftover.exists()  # no more than is needed
    # the user's own
    others = place/'films'/'videos.avi', second.parent/'videos.avi', second.parent.with_name('films2')/'tmp'
    for f in others:
        f.parent.mkdir(exist_ok=True)
        f.write_bytes(bytes(10**6))
        os.utime(f, (0, 0))
    monkeypatch.setattr(decoded, 'MAX_FOLDER_BYTES', 3*12*4*27*36)
    opened(some[:4], place, 27)
    assert not first.exists()
    assert not third.exists()
    assert not leftover.exists()
    assert len(files(place)) == 1
    assert all(f.exists() for f in others)
    with pytest.warns(UserWarning, match='more than'):  # too large even if all others are removed: none is
        opened(some[:4], place, 28)
    assert len(files(place)) == 1


def test_making_room_while_another_process_does(some, tmp_path, monkeypatch):
    opened(some[:4], tmp_path/'d')
    first, = files(tmp_path/'d')
    (tmp_path/'d'/('0'*16)).mkdir()
    (tmp_path/'d'/('0'*16)/'videos.tmp').symlink_to('gone')  # listed, and not there any more
    monkeypatch.setattr(decoded, 'MAX_FOLDER_BYTES', 3*12*4*25*33)
    assert opened(some[:4], tmp_path/'d', 25)(some[0], 25) is not None
    assert len(files(tmp_path/'d')) == 1
    assert not first.exists()


def test_a_video_that_is_replaced_meanwhile_is_left_out(some, tmp_path, monkeypatch):
    "What was decoded must not be taken for the content that was there before"
    whole, old = VideoFile.whole, Path(some[0]).read_bytes()
    def late(self, size):
        if self == some[0]: shutil.copy(some[-1], some[0])
        return whole(self, size)
    monkeypatch.setattr(VideoFile, 'whole', late)
    assert opened(some[:2], tmp_path/'d')(some[0], 24) is None
    Path(some[0]).write_bytes(old)
    assert opened(some[:2], tmp_path/'d')(some[0], 24) is None
    assert opened(some[:2], tmp_path/'d')(some[1], 24) is not None


def test_who_waited_for_a_file_that_found_no_room_does_not_try_again(some, tmp_path, monkeypatch):
    monkeypatch.setattr(decoded.shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(2, 1, 1))
    with pytest.warns(UserWarning, match='nearly full'): first = opened(some, tmp_path/'d')
    with monkeypatch.context() as m:
        m.setattr(VideoFile, 'whole', lambda *args: 1/0)
        assert first(some[0], 24) is None
        assert opened(some, tmp_path/'d')(some[0], 24) is None
    monkeypatch.undo()
    mark, = tmp_path.glob('d/*/refused')
    os.utime(mark, (0, 0))  # later there may be room
    assert opened(some, tmp_path/'d')(some[0], 24) is not None
    assert len(files(tmp_path/'d')) == 1


def batches(task, **kwargs):
    dls = task.dls(frames=4, size=24, bs=4, **kwargs)
    random.seed(1)
    torch.manual_seed(1)
    dls.train.rng = random.Random(2)
    return [x.as_subclass(torch.Tensor).clone() for dl in (*dls.loaders, task.dl(dls, 'test')) for x, _ in dl]


@pytest.mark.parametrize('kwargs', [dict(), dict(flip=True, area=(.3, 1.)), dict(k=2)], ids=str)
def test_batches_are_the_same(clips, tmp_path, kwargs, monkeypatch):
    task = Task.from_folder(clips, group=r'(p\d)_').hold_out(.3)
    want = batches(task, **kwargs)
    for name in ('made', 'read'):
        got = batches(task, decoded=tmp_path/'d', **kwargs)
        assert len(got) == len(want) == 4 and all(torch.equal(a, b) for a, b in zip(got, want)), name
        # the item that fastai looks at when a loader is made is kept by now
        monkeypatch.setattr(VideoFile, 'read', lambda *args: 1/0)
    assert len(files(tmp_path/'d')) == 1


def test_loaders_alone_decode_nothing(clips, tmp_path):
    task = Task.from_folder(clips, group=r'(p\d)_').hold_out(.3)
    dls = task.dls(frames=4, size=24, bs=4, decoded=tmp_path/'d')
    task.dl(dls, 'test')
    assert not (tmp_path/'d').exists()
    dls.valid.one_batch()
    assert len(files(tmp_path/'d')) == 1
    assert dls.train.after_item[0].cache is dls.valid.after_item[0].cache
    assert not task.dls(frames=4, size=24, bs=4, workers=1, decoded=tmp_path/'d').train.after_item[0].cache


# what is wrong with the folder -> what the warning says
NO_PLACE = {'a file is there': 'cannot be made', 'no room': 'nearly full', 'it cannot be written': 'Input/output error',
            'full': 'No space left'}


@pytest.mark.parametrize('how', NO_PLACE)
def test_without_a_place_batches_are_the_same(clips, tmp_path, how, monkeypatch):
    task, place = Task.from_folder(clips, group=r'(p\d)_').hold_out(.3), tmp_path/'d'
    want = batches(task)
    if how == 'a file is there': place.write_text('in the way')
    if how == 'no room': monkeypatch.setattr(decoded.shutil, 'disk_usage', lambda p: shutil._ntuple_diskusage(2, 1, 1))
    if how in ('it cannot be written', 'full'):
        def fail(videos, file):
            Path(file).write_bytes(b'a part')
            if how != 'full': raise OSError(5, 'Input/output error')
            raise SafetensorError('Error while serializing: I/O error: No space left on device (os error 28)')
        monkeypatch.setattr(decoded, 'save_file', fail)
    with pytest.warns(UserWarning, match=f'{re.escape(str(place))}.*{NO_PLACE[how]}.*each process'):
        got = batches(task, decoded=place)
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    assert not list(tmp_path.glob('d/*/*tmp*'))
    assert not files(place)


ONE = """
import sys, time
from sdfast.data.decoded import Decoded
from sdfast.data.video import VideoFile
whole, n = VideoFile.whole, [0]
def slow(*args):
    n[0] += 1
    print('decoding\\n', end='', flush=True)  # in one piece: threads print at once
    time.sleep(float(sys.argv[2]))
    return whole(*args)
VideoFile.whole = slow
print('ready', flush=True)
sys.stdin.readline()
d = Decoded(sys.argv[3:], 24, sys.argv[1])
d.open()
print(n[0], sum(int(d(p, 24).long().sum()) for p in sys.argv[3:]))
"""


def start(place, paths, pause, n=1):
    "Processes that begin at once"
    command = [sys.executable, '-c', ONE, str(place), str(pause), *paths]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    ps = [subprocess.Popen(command, text=True, **pipes) for _ in range(n)]
    for p in ps: assert p.stdout.readline() == 'ready\n'
    for p in ps:
        p.stdin.write('go\n')
        p.stdin.flush()
    return ps


@pytest.mark.nightly
def test_of_several_processes_one_decodes(some, tmp_path):
    said = [p.communicate()[0].split('\n')[-2].split() for p in start(tmp_path/'d', some, .1, 2)]
    assert sorted(int(n) for n, _ in said) == [0, len(some)]
    assert {int(s) for _, s in said} == {sum(int(VideoFile(p).read(np.arange(12), 24).long().sum()) for p in some)}


@pytest.mark.nightly
def test_a_process_that_dies_leaves_the_work_to_the_next(some, tmp_path):
    p, = start(tmp_path/'d', some, 60)
    assert p.stdout.readline() == 'decoding\n'
    p.kill()
    p.communicate()
    assert opened(some, tmp_path/'d')(some[0], 24) is not None
    assert len(files(tmp_path/'d')) == 1


def test_ctrl_c_does_not_wait_for_all(some, tmp_path):
    p, = start(tmp_path/'d', some, .7)
    assert p.stdout.readline() == 'decoding\n'
    time.sleep(.5)  # all are queued
    p.send_signal(signal.SIGINT)
    began = p.communicate()[0].count('decoding')
    assert p.returncode
    assert began < len(some)//2
    assert not files(tmp_path/'d')


def test_where_studies_share(tmp_path, monkeypatch):
    monkeypatch.setenv('SDFAST_HOME', str(tmp_path))
    for value, want in ((None, tmp_path/'decoded'), (str(tmp_path/'x'), tmp_path/'x'), ('', None)):
        monkeypatch.delenv('SDFAST_DECODED', raising=False)
        if value is not None: monkeypatch.setenv('SDFAST_DECODED', value)
        assert decoded_folder() == want


def test_studies_share(clips, tmp_path, monkeypatch):
    run = Run(task=f'folder:{clips},group=(p\\d)_', source='', frames=4, size=24, bs=4)
    for value in (str(tmp_path/'d'), ''):
        monkeypatch.setenv('SDFAST_DECODED', value)
        loaders_module.load_data.cache_clear()
        _, dls, test = loaders_module.target_data(run)
        next(iter(dls.train))
        next(iter(test))
        cache = dls.train.after_item[0].cache
        assert cache
        assert isinstance(cache, Decoded) == bool(value)
        if value:
            assert cache(str(next(iter(clips.glob('*/*')))), 24).shape == (12, 3, 24, 32)
            assert len(files(value)) == 1
    loaders_module.load_data.cache_clear()
