"""Only local files that hold their own data are videos; what ends in zeros is named at once.

Indexes are stored, and damaged videos are listed, left out or refused."""
import os
import shutil
import time

import av
import numpy as np
import pytest
from processes import alone
from videos import encode

from sdfast.data import ffmpeg as ffmpeg_module
from sdfast.data import indexing as indexing_module
from sdfast.data.index import IndexFile
from sdfast.data.indexing import index_video
from sdfast.data.task import Task
from sdfast.data.video import VideoError, VideoFile
from sdfast.errors import InputError


@pytest.fixture
def clip(write, tmp_path):
    write(tmp_path/'clip.mp4', np.random.default_rng(0).integers(0, 255, (8, 32, 48), np.uint8))
    return tmp_path/'clip.mp4'


def why_not(path): return VideoFile(path).problem()


# ---- files that read others

OTHERS = {
    'concat.mp4': 'ffconcat version 1.0\nfile clip.mp4\n',
    'itself.mp4': 'ffconcat version 1.0\nfile itself.mp4\n',
    'list.m3u8': '#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\nclip.mp4\n#EXT-X-ENDLIST\n',
    'list.mp4': '#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\nclip.mp4\n#EXT-X-ENDLIST\n',
    'session.sdp': 'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n'
                   'a=rtpmap:96 H264/90000\n'}


@pytest.mark.parametrize('name', OTHERS)
def test_lists_of_files_are_refused(clip, name):
    (clip.parent/name).write_text(OTHERS[name])
    why = alone(why_not, clip.parent/name, limit=60)
    assert why and '\n' not in why


def test_lists_of_pictures_are_refused(tmp_path):
    with av.open(str(tmp_path/'1.png'), 'w', format='image2', options=dict(update='1')) as f:
        s = f.add_stream('png', rate=1)
        s.width, s.height, s.pix_fmt = 32, 32, 'rgb24'
        f.mux(s.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format='rgb24')))
        f.mux(s.encode())
    for name in ('%d.png', '1.png'): assert why_not(tmp_path/name)


@pytest.mark.parametrize('name', ['x:1.mp4', 'http:1.mp4', 'concat:a|b.mp4', 'file:1.mp4', 'pipe:', '%d.mp4', '-.mp4'])
def test_any_name_is_that_of_a_file(clip, monkeypatch, name):
    "Relative names, too"
    shutil.copy(clip, clip.parent/name)
    monkeypatch.chdir(clip.parent)
    assert VideoFile(name).read([7]).equal(VideoFile(clip).read([7]))


ADDRESSES = 'http://127.0.0.1:9/x.mp4', 'udp://127.0.0.1:9', 'concat:clip.mp4', 'data:video/mp4,x'


@pytest.mark.parametrize('name', ADDRESSES)
def test_addresses_are_names_of_files_that_do_not_exist(clip, monkeypatch, name):
    monkeypatch.chdir(clip.parent)
    start = time.monotonic()
    assert 'No such file' in alone(why_not, name, limit=60)
    assert time.monotonic() - start < 30


# ---- zeros

@pytest.mark.parametrize('name', ['flv1.flv', 'mpeg4.avi', 'mpeg4.mkv', 'mpeg2video.ts', 'mpeg1video.mpg'])
def test_a_tail_of_zeros_is_named(tmp_path, monkeypatch, name):
    path = encode(tmp_path/name, np.zeros((9, 32, 48, 3), np.uint8), name.split('.')[0], 'yuv420p')
    os.truncate(path, path.stat().st_size + 2**20)
    assert why_not(path) is None
    os.truncate(path, 2**30)
    index_video.cache_clear()
    monkeypatch.setattr(indexing_module, 'open_video', lambda *args, **kwargs: 1/0)  # FFmpeg would search for packets
    assert 'MiB, or more, are zeros' in why_not(path)


def test_zeros_after_an_mp4_do_not_matter(clip):
    "Its packets are listed, not searched for"
    want = VideoFile(clip).read(range(8))
    os.truncate(clip, 2**28)
    index_video.cache_clear()
    assert VideoFile(clip).read(range(8)).equal(want)


def test_a_gap_takes_a_limited_time(tmp_path, monkeypatch):
    path = encode(tmp_path/'x.mkv', np.random.default_rng(0).integers(0, 255, (30, 32, 48, 3), np.uint8))
    data = path.read_bytes()
    with open(path, 'wb') as f:
        f.write(data[:len(data)//2])
        f.seek(2**32)
        f.write(data[len(data)//2:])
    monkeypatch.setattr(ffmpeg_module, 'PACKET_SECONDS', .2)
    start = time.monotonic()
    try: VideoFile(path).index
    except VideoError as e: assert 'may have a long gap' in str(e)
    assert time.monotonic() - start < 20


# ---- stored indexes

def test_an_index_is_made_once(clip, monkeypatch):
    want = VideoFile(clip).index
    assert VideoFile(clip).damaged.tolist() == []
    index_video.cache_clear()
    with monkeypatch.context() as m:
        m.setattr(indexing_module, '_read_index', lambda path: 1/0)
        m.setattr(indexing_module, 'find_damage', lambda *args: 1/0)
        assert VideoFile(clip).index.pts.tolist() == want.pts.tolist()
        assert VideoFile(clip).damaged.tolist() == []
    clip.write_bytes(clip.read_bytes() + b'0')  # another file
    index_video.cache_clear()
    assert IndexFile(str(clip)).load() is None
    assert VideoFile(clip).index.n == 8


@pytest.mark.parametrize('damage', ['a byte', 'empty', 'text', 'cut', 'a folder'])
def test_a_damaged_index_is_made_again(clip, damage):
    want = VideoFile(clip).index.pts.tolist()
    file = IndexFile(str(clip)).file
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    if damage == 'a folder':
        file.unlink()
        file.mkdir()
    else: file.write_bytes({'a byte': bytes(data), 'empty': b'', 'text': b'x\ny\nz', 'cut': bytes(data[:-9])}[damage])
    index_video.cache_clear()
    assert VideoFile(clip).index.pts.tolist() == want


def test_without_a_place_for_indexes_all_works(clip, tmp_path, monkeypatch):
    (tmp_path/'in the way').write_text('')
    for folder in (str(tmp_path/'in the way'), ''):
        monkeypatch.setenv('SDFAST_INDEX', folder)
        index_video.cache_clear()
        assert VideoFile(clip).index.n == 8


# ---- damaged videos of a task

@pytest.fixture
def spoilt(clips, tmp_path):
    "Class folders with a video of which most frames are damaged"
    shutil.copytree(clips, tmp_path/'set')
    path = tmp_path/'set'/'down'/'p9_spoilt.avi'
    encode(path, np.random.default_rng(0).integers(0, 255, (24, 48, 64, 3), np.uint8), 'mpeg4', 'yuv420p', g='24')
    data = bytearray(path.read_bytes())
    for place in range(len(data)//4, len(data)//2, 500): data[place:place + 60] = bytes(60)
    path.write_bytes(data)
    return tmp_path/'set'


GROUP = r'(p\d)_'


def test_damaged_videos_are_listed(spoilt):
    with pytest.warns(UserWarning, match='more than 3 damaged frames: they are used as they are'):
        task = Task.from_folder(spoilt, group=GROUP)
    (path, n), = task.damaged.items()
    assert n == len(VideoFile(path).damaged) > 3
    assert sum(f'{n} of 24 frames are damaged' in note for note in task.notes) == 1
    assert not task.skipped
    with pytest.warns(UserWarning, match='damaged'): VideoFile(path).read(range(24))


def test_damaged_videos_are_left_out_or_refused(spoilt):
    def make(damaged): return Task.from_folder(spoilt, group=GROUP, damaged=damaged)
    with pytest.warns(UserWarning, match='they are left out'): dropped = make('drop')
    (path, why), = dropped.skipped.items()
    assert 'p9_spoilt' in path and 'damaged' in why
    with pytest.raises(InputError, match='p9_spoilt.avi: .* are damaged'): make('fail')
    with pytest.raises(InputError, match='damaged must be'): make('maybe')
    with pytest.warns(UserWarning): kept = make('keep').fingerprint
    (spoilt/'down'/'p9_spoilt.avi').unlink()
    clean = make('keep')
    assert not clean.damaged
    assert dropped.fingerprint == clean.fingerprint != kept
