"The stream that is decoded is the video, not a cover; frames marked as interlaced are scaled as a whole."
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.stream import Disposition
from videos import encode

from sdfast.data.task import Task
from sdfast.data.video import VideoFile
from sdfast.errors import InputError


def add_stream(container, kind, codec):
    if kind == 'sound': return container.add_stream('aac', rate=44100)
    stream = container.add_stream('mpeg4' if kind == 'film' else codec, rate=10)
    stream.width, stream.height = (96, 64) if kind == 'film' else (200, 200)
    stream.pix_fmt = 'rgb24' if codec == 'png' and kind != 'film' else 'yuv420p' if kind == 'film' else 'yuvj420p'
    if kind == 'cover': stream.disposition = Disposition.attached_pic
    return stream


def frames_of(kind):
    if kind == 'sound':
        for i in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), 'fltp', 'mono')
            frame.sample_rate, frame.pts = 44100, 1024*i
            yield frame
        return
    n, shape = dict(film=(30, (64, 96, 3)), second=(12, (200, 200, 3))).get(kind, (1, (200, 200, 3)))
    for i in range(n):
        frame = av.VideoFrame.from_ndarray(np.full(shape, 5*i if kind == 'film' else 200, np.uint8), 'rgb24')
        frame.pts = i
        yield frame


def mux(path, kinds, codec='mjpeg'):
    "A file with streams in the given order: 'film', 'sound', 'cover' (marked as one) or 'picture' (not marked)"
    with av.open(str(path), 'w') as container:
        streams = [add_stream(container, kind, codec) for kind in kinds]
        for kind, stream in zip(kinds, streams):
            for frame in frames_of(kind): container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


FILES = [('mp4', 'cover', 'mjpeg'), ('mp4', 'cover', 'png'), ('mkv', 'picture', 'mjpeg'), ('avi', 'picture', 'mjpeg'),
         ('avi', 'picture', 'png')]


@pytest.mark.parametrize('suffix,kind,codec', FILES)
def test_a_film_beside_a_picture(tmp_path, suffix, kind, codec):
    for name, kinds in dict(first=(kind, 'film'), last=('film', kind), both=(kind, 'film', kind, 'sound')).items():
        video = VideoFile(mux(tmp_path/f'{name}.{suffix}', kinds, codec))
        assert (video.index.n, video.index.width, video.index.height) == (30, 96, 64)
        assert abs(video.read([0, 29, 7]).float().mean((1, 2, 3)) - torch.tensor([0., 145, 35])).max() < 6


@pytest.mark.parametrize('suffix,kind,codec', FILES)
def test_sound_with_a_picture_is_no_video(tmp_path, suffix, kind, codec):
    path = mux(tmp_path/f'x.{suffix}', ('sound', kind), codec)
    assert VideoFile(path).problem() == 'has no video stream, only a picture'
    assert VideoFile(mux(tmp_path/f'y.{suffix}', ('sound',))).problem() == 'has no video stream'


def test_a_film_of_pictures_is_a_video(tmp_path):
    "Also if it has one picture only, or another film behind it"
    assert VideoFile(mux(tmp_path/'a.avi', ('second', 'sound'))).index.n == 12
    assert VideoFile(mux(tmp_path/'b.mkv', ('second', 'film'))).index.n == 12
    assert VideoFile(mux(tmp_path/'c.avi', ('picture',))).index.n == 1


def test_a_file_of_sound_among_the_videos_of_a_task(tmp_path):
    for label in 'ab':
        (tmp_path/label).mkdir()
        for i in range(3):
            frames = np.full((3, 32, 32, 3), 60*i + 20*(label == 'a'), np.uint8)
            encode(tmp_path/f'{label}/{i}.mp4', frames, 'mpeg4', 'yuv420p')
    mux(tmp_path/'a/song.mp4', ('sound', 'cover'))
    task = Task.from_folder(tmp_path)
    assert task.skipped == {str(tmp_path/'a/song.mp4'): 'has no video stream, only a picture'}


@pytest.mark.parametrize('suffix,codec', [('h264', 'libx264'), ('m2v', 'mpeg2video'), ('mjpg', 'mjpeg')])
def test_streams_without_a_container(tmp_path, suffix, codec):
    "They cannot be rewound, and are read from the start"
    frames = np.stack([np.full((64, 64, 3), 20*i, np.uint8) for i in range(8)])
    path = encode(tmp_path/f'x.{suffix}', frames, codec, 'yuvj420p' if codec == 'mjpeg' else 'yuv420p')
    video = VideoFile(path)
    assert video.index.n == 8
    assert abs(video.read([7, 0, 3]).float().mean((1, 2, 3)) - torch.tensor([140., 0, 60])).max() < 4


# ---- fields

def mark(frame, mode):
    "A frame marked as interlaced ('tff') or progressive ('prog')"
    graph = av.filter.Graph()
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))
    setfield, sink = graph.add('setfield', mode), graph.add('buffersink')
    source.link_to(setfield)
    setfield.link_to(sink)
    graph.configure()
    graph.push(frame)
    return graph.pull()


def write_marked(path, frames, mode, fmt):
    "Lossless, with equal pixels whatever the mark"
    with av.open(str(path), 'w') as f:
        s = f.add_stream('ffv1', rate=25)
        s.height, s.width = frames.shape[1:3]
        s.pix_fmt = fmt
        for i, x in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(x, format='rgb24').reformat(format=fmt)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            f.mux(s.encode(mark(frame, mode)))
        f.mux(s.encode())
    return VideoFile(path)


@pytest.mark.parametrize('fmt', ['yuv420p', 'yuv422p10le', 'yuv444p'])
def test_progressive_frames_that_are_marked_as_interlaced(tmp_path, fmt):
    "Scaling the fields separately blurs edges and shifts lines"
    blocks = np.random.default_rng(0).integers(0, 255, (3, 15, 16, 3)).astype(np.uint8)
    frames = blocks.repeat(8, 1).repeat(8, 2)
    plain = write_marked(tmp_path/'plain.mkv', frames, 'prog', fmt)
    marked = write_marked(tmp_path/'marked.mkv', frames, 'tff', fmt)
    with av.open(str(marked)) as f: assert all(frame.interlaced_frame for frame in f.decode(video=0))
    for size in (24, 48, 100, None, (33, 45)):
        assert torch.equal(marked.read([0, 1, 2], size), plain.read([0, 1, 2], size)), size
    small = write_marked(tmp_path/'small.mkv', frames[:, :32, :40], 'bff', fmt)  # after another size
    assert small.read([1], 24).shape == (1, 3, 24, 30)


def test_a_file_that_is_no_video_any_more(tmp_path):
    path = mux(tmp_path/'x.mp4', ('film',))
    video = VideoFile(path)
    assert video.index.n == 30
    mux(path, ('sound',))
    with pytest.raises(InputError, match='x.mp4: has no video stream'): video.read([0])
