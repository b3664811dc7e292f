"Frames are the right ones, with the right colours, whatever the file."
import random
import warnings
from fractions import Fraction
from itertools import islice
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from helpers import numbered
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate
from videos import BREAKS_OFF, BROKEN, CUT, TORTURE

from sdfast.data import indexing as indexing_module
from sdfast.data import video as video_module
from sdfast.data.indexing import MAX_ASPECT
from sdfast.data.video import VideoError, VideoFile
from sdfast.errors import InputError


def upright(frame, v, size, form='gbrp', **kwargs):
    "A frame converted and turned on its own"
    w, h = v.scaled(size)
    if frame.rotation % 180: w, h = h, w
    return np.rot90(frame.to_ndarray(format=form, width=w, height=h, **kwargs), frame.rotation//90 % 4)


def decode_all(path, v, size):
    "The oracle: every frame from the first"
    with av.open(str(path)) as f:
        s = f.streams.video[0]
        s.thread_type = 'NONE'
        return np.stack([upright(x, v, size) for x in f.decode(s)])


@pytest.mark.parametrize('name', TORTURE)
def test_frames_equal_a_full_decode(shared, name):
    v = VideoFile(shared/'torture'/name)
    full = decode_all(v, v, 24)
    assert v.index.n == len(full) == TORTURE[name]
    assert v.damaged.tolist() == ([51] if name == CUT else [])
    rng = random.Random(0)
    if name == CUT: full = full[:-1]  # the last frame is only a half
    for want in [[len(full) - 1], [0]] + [sorted(rng.choices(range(len(full)), k=3)) for _ in range(4)]:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            np.testing.assert_array_equal(v.read(want, 24).permute(0, 2, 3, 1).numpy(), full[want])


@pytest.mark.parametrize('name', TORTURE)
def test_pixels_are_those_of_the_straightforward_path(shared, name):
    """Packed RGB, frame by frame: scaled with all flags that make swscale exact, which it is not by default.

    Unscaled frames equal the default bit for bit."""
    v = VideoFile(shared/'torture'/name)
    with av.open(str(v)) as f: frames = list(islice(f.decode(video=0), 3))
    exact = 0x2 | 0x2000 | 0x4000 | 0x40000  # bilinear, full chroma in and out, accurate rounding: FFmpeg's numbers
    for size in (33, 64, 128, None):  # widths even and odd
        got = v.read(range(len(frames)), size).permute(0, 2, 3, 1).numpy().astype(int)
        want = []
        for x in frames:
            scaled = size and got.shape[1:3] != (x.height, x.width)
            want.append(upright(x, v, size, 'rgb24', interpolation=exact if scaled else None))
        off = abs(got - np.stack(want))
        assert off.max() <= bool(size)
        assert off.mean() < .02


def test_colours_follow_the_formula(shared):
    """ITU-R BT.601 in float, the chroma planes scaled like the luma.

    swscale's default conversion of even widths is 2 levels too dark."""
    path = shared/'torture/real/v_Punch_g03_c01.avi'
    with av.open(str(path)) as f:
        planes = next(f.decode(video=0)).planes
        y, u, v = (np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, :p.width] for p in planes)
    y, u, v = (torch.from_numpy(x.astype(np.float32))[None, None] for x in (y, u, v))
    for size in (120, 119):
        w, h = VideoFile(path).scaled(size)
        a, b, c = (interpolate(x, (h, w), mode='bilinear', antialias=True)[0, 0] for x in (y, u, v))
        a, b, c = (a - 16)*255/219, (b - 128)*255/224, (c - 128)*255/224
        rgb = torch.stack([a + 1.402*c, a - .344136*b - .714136*c, a + 1.772*b]).clamp(0, 255)
        off = VideoFile(path).read([0], size)[0].float() - rgb
        assert abs(off.mean()) < .2
        assert off.abs().mean() < 1


def test_skipping_frames_that_no_other_is_made_from(shared, monkeypatch):
    "Half of the frames of a clip of stride 2, and of those before it, are not decoded; the others are the same"
    v, decoded, want = VideoFile(shared/'torture/real/nasa_13013.mp4'), [], np.arange(100, 132, 2)
    frames = video_module.decode_frames
    def count(*args):
        for x in frames(*args):
            decoded.append(x)
            yield x
    monkeypatch.setattr(video_module, 'decode_frames', count)
    v.index, decoded.clear()
    got = v.read(want, 24)
    n = len(decoded)
    monkeypatch.setattr(video_module, 'decode_frames', lambda f, s, *_: count(f, s))
    decoded.clear()
    assert torch.equal(got, v.read(want, 24))
    assert len(decoded) == 131
    assert n < .75*len(decoded)


def test_an_mp4_is_opened_without_a_look_at_its_frames(shared, monkeypatch):
    "It is opened again, with a look, if frames are missing: a file may not say how far they are out of order"
    v = VideoFile(shared/'torture/made/mp4_named_as.avi')
    full, want = decode_all(v, v, 24), [5, 9, 20]
    decode_frames, open_video = video_module.decode_frames, video_module.open_video
    probed, loses = [], False
    def noted(path, format=None, probe=True, number=None):
        probed.append(probe)
        return open_video(path, format, probe, number)
    def lossy(*args):
        for i, x in enumerate(decode_frames(*args)):
            if not (loses and i > 1 and not probed[-1]): yield x
    monkeypatch.setattr(video_module, 'open_video', noted)
    monkeypatch.setattr(video_module, 'decode_frames', lossy)
    for loses, how in ((False, [False]), (True, [False, True])):
        probed.clear()
        np.testing.assert_array_equal(v.read(want, 24).permute(0, 2, 3, 1).numpy(), full[want])
        assert probed == how


def by_definition(frame):
    "RGB of a planar YUV frame by ITU-R BT.601 or 709, in floats; chroma is repeated, not interpolated"
    ten = '10' in frame.format.name
    kind, scale = (np.uint16, 4.) if ten else (np.uint8, 1.)
    y, u, v = (np.frombuffer(p, kind).reshape(p.height, -1)[:, :p.width]/scale for p in frame.planes)
    full = frame.color_range == 2
    kr, kb = (.2126, .0722) if frame.colorspace == 1 else (.299, .114)
    repeat = np.ones((1, 1) if u.shape == y.shape else (2, 2))
    u, v = ((np.kron(c, repeat) - 128)/(255 if full else 224) for c in (u, v))
    y = y/255 if full else (y - 16)/219
    r, b = y + 2*(1 - kr)*v, y + 2*(1 - kb)*u
    return 255*np.stack([r, (y - kr*r - kb*b)/(1 - kr - kb), b]).clip(0, 1)


@pytest.mark.parametrize('name', [
    'real/h264_10bits.mp4', 'real/h265_10bits.mp4', 'real/bt709_full_range.mp4', 'real/var_fps_video.mp4',
    'made/odd_161x121.mkv'])
def test_colours_are_those_of_the_standard(shared, name):
    "10 bits, full range, odd sizes: most pixels within two levels; at edges chroma is interpolated"
    with av.open(str(shared/'torture'/name)) as f: want = by_definition(next(f.decode(video=0)))
    got = VideoFile(shared/'torture'/name).read([0])[0].numpy()
    assert np.percentile(abs(got - want), 70) < 2.5
    assert abs(np.median(got - want, (1, 2))).max() < 1.1


@pytest.mark.parametrize('name', BROKEN)
def test_undecodable_files_are_named_with_a_reason(shared, name):
    v = VideoFile(shared/'torture'/name)
    assert v.problem()
    with pytest.raises(VideoError, match=name.split('/')[1]): v.read([0])


def test_decoding_goes_on_after_a_damaged_packet(shared):
    "The one frame that cannot be decoded repeats the one before; all others are those of a full decode"
    v, frames = VideoFile(shared/'torture'/BREAKS_OFF), {}
    with av.open(str(v)) as f:
        s = f.streams.video[0]
        s.thread_type = 'NONE'
        for packet in f.demux(s):
            try: frames |= {x.pts//1024:upright(x, v, 24) for x in packet.decode()}
            except av.FFmpegError: lost = packet.pts//1024
    assert (v.index.n, sorted(frames)) == (50, [i for i in range(50) if i != lost])
    with pytest.warns(UserWarning, match='21 of its 50 frames are damaged: 29 to 49'):
        x = v.read(range(50), 24).permute(0, 2, 3, 1).numpy()
    frames[lost] = frames[lost - 1]
    for i in range(50): np.testing.assert_array_equal(x[i], frames[i])
    assert v.damaged.tolist() == list(range(29, 50))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.array_equal(v.read([3, 28], 24).permute(0, 2, 3, 1), x[[3, 28]])


def test_rotated_phone_video_stands_upright_and_keeps_its_aspect(shared):
    upright, turned = (VideoFile(shared/f'torture/real/video_{a}.mov') for a in (0, 90))
    assert upright.scaled(None) == (568, 320)
    assert turned.scaled(None) == (320, 568)
    assert turned.read([0], 64).shape == (1, 3, 114, 64)
    # the same keyboard: a key of the one is found in the other, and not in that turned on its side or head
    a, b = (v.read([0], 80)[0].float().mean(0) for v in (upright, turned))
    key = a[12:56, 60:112]
    def found(y):
        there, k = (x - x.mean(0) for x in (torch.nn.functional.unfold(y[None, None], key.shape)[0], key.flatten()))
        return (k@there/k.norm()/there.norm(dim=0)).max()
    like = [found(torch.rot90(b, k).contiguous()) for k in range(4)]
    assert like[0] > max(like[1:]) + .1
    assert VideoFile(shared/'torture/made/anamorphic_sar_64_45.mkv').scaled(None) == (455, 240)


@pytest.mark.parametrize('codec,quality', [
    ('mpeg4', dict(flags='+qscale', global_quality='118')), ('libx264', dict(crf='4', bf='3'))])
def test_written_numbers_are_read_back(tmp_path, codec, quality):
    path = tmp_path/'x.mp4'
    with av.open(str(path), 'w') as f:
        s = f.add_stream(codec, rate=25)
        s.width = s.height = 32
        s.pix_fmt, s.gop_size, s.options = 'yuv420p', 10, quality
        for x in numbered(40): f.mux(s.encode(av.VideoFrame.from_ndarray(x, format='gray')))
        f.mux(s.encode())
    v = VideoFile(path)
    for want in ([0, 1, 2], [39], [7, 33, 34, 38], [38, 7, 7]):
        level = v.read(want).float().mean((1, 2, 3))/6  # limited to full range and back is within a level
        assert (level - torch.tensor(want)).abs().max() < .5


def test_variable_frame_rate_counts_frames_not_seconds(tmp_path):
    path, times = tmp_path/'x.mkv', [0, 10, 20, 900, 910, 2000, 2010, 2020, 2030, 5000]
    with av.open(str(path), 'w') as f:
        s = f.add_stream('ffv1', rate=25)
        s.width = s.height = 32
        s.pix_fmt = s.codec_context.pix_fmt = 'gray'
        s.codec_context.time_base = Fraction(1, 1000)
        for t, x in zip(times, numbered(10)):
            frame = av.VideoFrame.from_ndarray(x, format='gray')
            frame.pts, frame.time_base = t, Fraction(1, 1000)
            f.mux(s.encode(frame))
        f.mux(s.encode())
    v = VideoFile(path)
    assert v.index.n == 10
    assert v.read([0, 3, 9])[:, 0, 0, 0].tolist() == [0, 18, 54]


def test_reading_outside_the_video_says_what_it_has(write, tmp_path):
    write(tmp_path/'x.mp4', numbered(5))
    for bad in ([5], [-1], []):
        with pytest.raises(InputError, match='frames 0 to 4'): VideoFile(tmp_path/'x.mp4').read(bad)


def test_awkward_names(write, tmp_path):
    for name in ('a b.mp4', '[x] (1)#!&;~@.mp4', 'файл.mp4', 'x%d.mp4', "quote's.mp4"):
        write(tmp_path/name, numbered(3))
        assert VideoFile(tmp_path/name).read([2]).shape == (1, 3, 32, 32)


def test_all_frames_are_in_order_whatever_the_container_does(tmp_path):
    "Packets out of order, as no encoder of pictures by themselves would write them"
    path = str(tmp_path/'x.mp4')
    with av.open(path, 'w') as f:
        s = f.add_stream('mjpeg', rate=25)
        s.width, s.height, s.pix_fmt = 32, 32, 'yuvj420p'
        packets = []
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 30*i, np.uint8), 'rgb24')
            frame.pts = i
            packets += s.encode(frame)
        packets += s.encode()
        times = [(p.pts, p.dts) for p in packets]
        for k, i in enumerate([0, 2, 1, 3, 5, 4, 6, 7]):
            packets[i].dts = times[k][1]
            packets[i].pts = times[i][0] + 2*(times[1][0] - times[0][0])
            f.mux(packets[i])
    v = VideoFile(path)
    assert np.abs(v.whole()[:, 0, 0, 0].numpy().astype(int) - 30*np.arange(8)).max() <= 3
    assert torch.equal(v.whole(), v.read(np.arange(8)))


def test_a_broken_packet_spoils_its_group_of_pictures_alone(tmp_path):
    "The frame that replaces a broken one is the one before it"
    path, noise = tmp_path/'x.mp4', np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    with av.open(str(path), 'w') as f:
        s = f.add_stream('libx264', rate=25, options={'x264-params': 'keyint=12:scenecut=0', 'bf': '0'})
        s.width, s.height, s.pix_fmt = 64, 48, 'yuv420p'
        for i in range(60):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 3*i, 1)//2 + np.uint8(2*i), 'rgb24')
            frame.pts = i
            f.mux(s.encode(frame))
        f.mux(s.encode())
    with av.open(str(path)) as f: places = [(p.pos, p.size) for p in f.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for i in (5, 52): data[places[i][0]:places[i][0] + places[i][1]] = bytes(places[i][1])
    path.write_bytes(data)
    v = VideoFile(path)
    with pytest.warns(UserWarning, match='15 of its 60 frames are damaged: 5 to 11, 52 to 59'): x = v.read([52])
    with pytest.warns(UserWarning, match='5 to 11, 52 to 59'): y = v.read([53, 52, 59])
    assert v.damaged.tolist() == [*range(5, 12), *range(52, 60)]
    assert torch.equal(x[0], v.read([51])[0])
    assert torch.equal(x[0], y[1])


@given(st.integers(1, 9000), st.integers(1, 9000), st.one_of(st.none(), st.integers(1, 512)))
def test_scaled_size_is_bounded(w, h, size):
    index, VideoFile.index = VideoFile.index, SimpleNamespace(width=w, height=h)
    try: sw, sh = VideoFile('x').scaled(size)
    finally: VideoFile.index = index
    if size is None: assert (sw, sh) == (w, h)
    else:
        assert min(sw, sh) == size
        assert abs(max(sw, sh) - size*max(w, h)/min(w, h)) <= .5
        if max(w, h) <= MAX_ASPECT*min(w, h): assert sw*sh <= MAX_ASPECT*size*size


def test_indexes_in_memory_are_bounded_in_bytes(monkeypatch):
    "The least recently used ones go, as the bytes of the index decide, not the number of files"
    read = []
    def index(path):
        read.append(path)
        return SimpleNamespace(nbytes=int(path[1:]))
    kept = indexing_module.KeepRecent(index)
    monkeypatch.setattr(indexing_module, 'MAX_INDEX_BYTES', 10_000)
    for path in ('a3000', 'b4000', 'a3000', 'c3000', 'a3000', 'b4000', 'd50000', 'd50000', 'a1'): kept(path)
    assert read == ['a3000', 'b4000', 'c3000', 'b4000', 'd50000', 'a1']
    assert list(kept.kept) == ['a1']
    assert kept.nbytes < 10_000
    kept.cache_clear()
    assert (len(kept.kept), kept.nbytes) == (0, 0)
