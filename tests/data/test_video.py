"Frames are the right ones, whatever the file; clips, crops and augmentation are what they say."
import collections
import itertools
import math
import random
import warnings
from fractions import Fraction
from itertools import islice

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter, IntToFloatTensor, ItemGetter
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import Brightness, Flip
from fastai.vision.core import imagenet_stats
from fasttransform import Pipeline, Transform
from helpers import numbered
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import interpolate

from sdfast.data import video as video_module
from sdfast.data.clips import (
    ClipTransform,
    MultiClip,
    NormalizeClips,
    SampleClips,
    TensorVideo,
    VideoBlock,
    clip_indices,
    normalize_video,
)
from sdfast.data.datasets import folder
from sdfast.data.video import VideoError, VideoFile
from sdfast.errors import InputError

# frames decoded by PyAV from first to last, from the table in the data's README; what is not here cannot be decoded
TORTURE = {'real/av1_video.mkv': 125, 'real/bt709_full_range.mp4': 30, 'real/h264_10bits.mp4': 30, 'real/h265_10bits.mp4': 30, 'real/nasa_13013.mp4': 325,
           'real/var_fps_video.mp4': 300, 'real/unordered.mov': 4, 'real/video_0.mov': 3, 'real/video_90.mov': 3, 'real/test.avi': 164, 'real/part_0.mp4': 32,
           'real/anomaly_detection.mpg': 250, 'real/carphone_distorted.mp4': 120, 'real/cockatoo.mp4': 280, 'real/newtonscradle.gif': 36,
           'real/v_Punch_g03_c01.avi': 108, 'real/person01_jogging_d1_uncomp.avi': 415, 'real/Kickflip83.mov': 31, 'made/one_frame.mp4': 1,
           'made/two_frames.mkv': 2, 'made/odd_161x121.mkv': 24, 'made/tall_32x720.mp4': 20, 'made/long_gop_600.mp4': 600, 'made/all_intra_mjpeg.avi': 25,
           'made/gray8.mkv': 25, 'made/mpeg2_ts.ts': 40, 'made/fps_1.mp4': 8, 'made/fps_ntsc_film.mkv': 24, 'made/anamorphic_sar_64_45.mkv': 16,
           'made/audio_longer_than_video.mp4': 15, 'made/vfr_wild.mkv': 60, 'made/fragmented.mp4': 40, 'made/first_keyframe_dropped.ts': 30,
           'made/truncated_half_original.avi': 52, 'made/UPPER_EXT.AVI': 108, 'made/mp4_named_as.avi': 36, 'made/black_all.mp4': 40}
BROKEN = ['real/nasa_13013.mp4.audio.mp3', 'made/truncated_90pct_original.mp4', 'made/zero_bytes.mp4', 'made/text_named.mp4']


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
    rng = random.Random(0)
    for want in [[len(full) - 1], [0]] + [sorted(rng.choices(range(len(full)), k=3)) for _ in range(4)]:
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            np.testing.assert_array_equal(v.read(want, 24).permute(0, 2, 3, 1).numpy(), full[want])


@pytest.mark.parametrize('name', TORTURE)
def test_pixels_are_those_of_the_straightforward_path(shared, name):
    "Packed RGB, frame by frame: with all that makes swscale exact, which its default is not, or unscaled its default to the bit"
    v = VideoFile(shared/'torture'/name)
    with av.open(str(v)) as f: frames = list(islice(f.decode(video=0), 3))
    exact = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
    for size in (33, 64, 128, None):  # widths even and odd
        got = v.read(range(len(frames)), size).permute(0, 2, 3, 1).numpy().astype(int)
        off = abs(got - np.stack([upright(x, v, size, 'rgb24', interpolation=exact if size and got.shape[1:3] != (x.height, x.width) else None) for x in frames]))
        assert off.max() <= bool(size) and off.mean() < .02


def test_colours_follow_the_formula(shared):
    "Against ITU-R BT.601 in float, the chroma planes scaled as the luma is; swscale's default conversion of even widths is 2 levels too dark"
    path = shared/'torture/real/v_Punch_g03_c01.avi'
    with av.open(str(path)) as f:
        y, u, v = (torch.from_numpy(np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, :p.width].astype(np.float32))[None, None] for p in next(f.decode(video=0)).planes)
    for size in (120, 119):
        w, h = VideoFile(path).scaled(size)
        a, b, c = (interpolate(x, (h, w), mode='bilinear', antialias=True)[0, 0] for x in (y, u, v))
        a, b, c = (a - 16)*255/219, (b - 128)*255/224, (c - 128)*255/224
        rgb = torch.stack([a + 1.402*c, a - .344136*b - .714136*c, a + 1.772*b]).clamp(0, 255)
        off = VideoFile(path).read([0], size)[0].float() - rgb
        assert abs(off.mean()) < .2 and off.abs().mean() < 1


def test_skipping_frames_that_no_other_is_made_from(shared, monkeypatch):
    "Half of the frames of a clip of stride 2, and of those before it, are not decoded; the others are the same"
    v, decoded, want = VideoFile(shared/'torture/real/nasa_13013.mp4'), [], np.arange(100, 132, 2)
    frames = video_module._frames
    def count(*args):
        for x in frames(*args):
            decoded.append(x)
            yield x
    monkeypatch.setattr(video_module, '_frames', count)
    v.index, decoded.clear()
    got = v.read(want, 24)
    n = len(decoded)
    monkeypatch.setattr(video_module, '_frames', lambda f, s, times=None: count(f, s))
    decoded.clear()
    assert torch.equal(got, v.read(want, 24)) and len(decoded) == 131 and n < .75*len(decoded)


def test_an_mp4_is_opened_without_a_look_at_its_frames(shared, monkeypatch):
    "And once more with one where frames are missing, as from a file that does not tell how far they are out of order"
    v, probed, loses, want = VideoFile(shared/'torture/made/mp4_named_as.avi'), [], False, [5, 9, 20]
    frames, opened, full = video_module._frames, video_module._open, decode_all(shared/'torture/made/mp4_named_as.avi', v, 24)
    def noted(path, format=None, probe=True):
        probed.append(probe)
        return opened(path, format, probe)
    monkeypatch.setattr(video_module, '_open', noted)
    monkeypatch.setattr(video_module, '_frames', lambda *args: (x for i, x in enumerate(frames(*args)) if not (loses and i > 1 and not probed[-1])))
    for loses, how in ((False, [False]), (True, [False, True])):
        probed.clear()
        np.testing.assert_array_equal(v.read(want, 24).permute(0, 2, 3, 1).numpy(), full[want])
        assert probed == how


def by_definition(frame):
    "RGB of a planar YUV frame by ITU-R BT.601 or 709, in floats; chroma is repeated, not interpolated"
    ten = '10' in frame.format.name
    y, u, v = (np.frombuffer(p, np.uint16 if ten else np.uint8).reshape(p.height, -1)[:, :p.width]/(4. if ten else 1.) for p in frame.planes)
    full, (kr, kb) = frame.color_range == 2, (.2126, .0722) if frame.colorspace == 1 else (.299, .114)
    u, v = ((np.kron(c, np.ones((2, 2) if c.shape != y.shape else (1, 1))) - 128)/(255 if full else 224) for c in (u, v))
    y = y/255 if full else (y - 16)/219
    r, b = y + 2*(1 - kr)*v, y + 2*(1 - kb)*u
    return 255*np.stack([r, (y - kr*r - kb*b)/(1 - kr - kb), b]).clip(0, 1)


@pytest.mark.parametrize('name', ['real/h264_10bits.mp4', 'real/h265_10bits.mp4', 'real/bt709_full_range.mp4', 'real/var_fps_video.mp4', 'made/odd_161x121.mkv'])
def test_colours_are_those_of_the_standard(shared, name):
    "10 bits, full range, odd sizes: most pixels within two levels; at edges chroma is interpolated"
    with av.open(str(shared/'torture'/name)) as f: want = by_definition(next(f.decode(video=0)))
    got = VideoFile(shared/'torture'/name).read([0])[0].numpy()
    assert np.percentile(abs(got - want), 70) < 2.5 and abs(np.median(got - want, (1, 2))).max() < 1.1


@pytest.mark.parametrize('name', BROKEN)
def test_undecodable_files_are_named_with_a_reason(shared, name):
    v = VideoFile(shared/'torture'/name)
    assert v.problem()
    with pytest.raises(VideoError, match=name.split('/')[1]): v.read([0])


def test_a_file_that_breaks_off_repeats_its_last_good_frame(shared):
    v = VideoFile(shared/'torture/real/corrupted.mp4')  # promises 50 frames, 28 can be decoded
    with pytest.warns(UserWarning, match='frames 40 to 45 cannot be decoded'): x = v.read([3, 40, 45], 24)
    good = v.read([3, 27], 24)
    assert torch.equal(x, good[[0, 1, 1]])


def test_rotated_phone_video_stands_upright_and_keeps_its_aspect(shared):
    upright, turned = (VideoFile(shared/f'torture/real/video_{a}.mov') for a in (0, 90))
    assert upright.scaled(None) == (568, 320) and turned.scaled(None) == (320, 568)
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


@pytest.mark.parametrize('codec,quality', [('mpeg4', dict(flags='+qscale', global_quality='118')), ('libx264', dict(crf='4', bf='3'))])
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


def test_ten_even_clips_of_the_reference_protocol():
    # numeric fixture of RSPNet: 29 frames, clips of 16
    assert [int(clip_indices(29, 16, at=a)[0]) for a in np.linspace(0, 1, 10)] == [0, 1, 3, 4, 6, 7, 9, 10, 12, 13]
    assert clip_indices(29, 16)[0] == 6


@given(n=st.integers(1, 300), frames=st.integers(1, 32), stride=st.integers(1, 8), at=st.floats(0, 1))
def test_clip_indices_stay_inside_and_keep_their_stride(n, frames, stride, at):
    i = clip_indices(n, frames, stride, at)
    assert len(i) == frames and i.min() >= 0 and i.max() < n
    if n > (frames - 1)*stride: assert (np.diff(i) == stride).all()
    else: assert i[0] == 0 and i[-1] == n - 1 and (np.diff(i) >= 0).all()
    if at == 1 and n > (frames - 1)*stride: assert i[-1] == n - 1


@given(n=st.integers(1, 200), frames=st.integers(1, 32), stride=st.integers(1, 8), at=st.floats(0, 1), wrap=st.booleans())
def test_clip_indices_equal_a_plain_reference(n, frames, stride, at, wrap):
    "Frame by frame and in fractions: the start is `at` of the room, rounded to the nearest frame, halves to even but the middle down"
    span = 1 + stride*(frames - 1)
    if n >= span or not wrap:
        start = math.floor(Fraction(max(0, n - span))/2) if at == .5 else round(Fraction(at*max(0, n - span)))
        want = []
        for i in range(frames): want.append(start + stride*i if start + stride*i < n else n - 1)
    elif n <= frames: want = [next(itertools.islice(itertools.cycle(range(n)), i, None)) for i in range(frames)]
    else: want = [round(Fraction(i*(n - 1), frames - 1)) for i in range(frames)]
    got = clip_indices(n, frames, stride, at, wrap)
    assert len(got) == frames and got.dtype.kind == 'i' and got.min() >= 0 and got.max() < n
    assert [int(i) for i in got] == want
    if n >= frames or not wrap: assert (np.diff(got) >= 0).all()


@given(n=st.integers(1, 200), frames=st.integers(1, 32), stride=st.integers(1, 8), k=st.integers(1, 12), wrap=st.booleans())
def test_places_of_several_clips_reach_from_end_to_end(n, frames, stride, k, wrap):
    places = _places(SampleClips(frames, stride, 8, k=k, wrap=wrap), n, train=False)
    starts = [int(clip_indices(n, frames, stride, at, wrap)[0]) for at in places]
    room = max(0, n - 1 - stride*(frames - 1))
    assert len(starts) == k and starts == sorted(starts)
    if k == 1: assert starts == [room//2]
    else: assert all(abs(s - room*i/(k - 1)) <= .5 + 1e-9 for i, s in enumerate(starts))


def _places(clip, n, train):
    clip.train = train
    return clip._places(n)


@given(n=st.integers(1, 120), frames=st.integers(1, 32), stride=st.integers(1, 8), fine=st.integers(1, 5))
def test_every_training_start_is_as_likely_as_any_other(n, frames, stride, fine):
    "Draws of `random.random` on an even grid fall on each start equally often, the largest and smallest draws on the last and first"
    room, clip = max(0, n - 1 - stride*(frames - 1)), SampleClips(frames, stride, 8)
    def start(draw):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(random, 'random', lambda: draw)
            return int(clip_indices(n, frames, stride, *_places(clip, n, train=True))[0])
    grid = (room + 1)*fine
    assert collections.Counter(start((i + .5)/grid) for i in range(grid)) == {s:fine for s in range(room + 1)}
    assert start(0.) == 0 and start(np.nextafter(1., 0)) == room


def sample(path, split_idx, **kwargs):
    t = SampleClips(**kwargs)
    return t(VideoFile(path), split_idx=split_idx)


def test_training_clips_are_random_others_are_not(write, tmp_path):
    write(tmp_path/'x.mp4', numbered(40))
    path = tmp_path/'x.mp4'
    first = lambda split: round(sample(path, split, frames=4, stride=2, size=32)[0].float().mean().item()/6)
    random.seed(0)
    starts = {first(0) for _ in range(60)}
    assert min(starts) <= 3 and max(starts) >= 30 and len(starts) > 15
    assert {first(1) for _ in range(3)} == {16}  # (40 - 7)/2, the middle
    x = sample(path, 1, frames=4, stride=2, size=32, k=3)
    assert x.shape == (3, 4, 3, 32, 32)
    assert (x.float().mean((2, 3, 4))/6).round().int().tolist() == [[0, 2, 4, 6], [16, 18, 20, 22], [33, 35, 37, 39]]


def test_short_video_repeats_its_last_frame(write, tmp_path):
    write(tmp_path/'x.mp4', numbered(3))
    x = sample(tmp_path/'x.mp4', 1, frames=8, size=32)
    assert (x.float().mean((1, 2, 3))/6).round().int().tolist() == [0, 1, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize('cache', [False, True])
def test_short_side_is_scaled_then_cropped(write, tmp_path, cache):
    x = np.zeros((4, 60, 120), np.uint8)
    x[:, :, 60:] = 200  # right half bright
    write(tmp_path/'x.mp4', x)
    v = sample(tmp_path/'x.mp4', 1, frames=2, size=30, cache=cache)
    assert v.shape == (2, 3, 30, 30)
    columns = v[0, 0].float().mean(0)
    assert columns[:13].max() < 20 and columns[17:].min() > 180  # the centre, neither squeezed nor shifted
    random.seed(0)
    means = {round(sample(tmp_path/'x.mp4', 0, frames=2, size=30, cache=cache).float().mean().item()/40) for _ in range(40)}
    assert means >= {0, 5}  # training crops reach both ends


def test_cached_and_uncached_clips_are_equal(shared):
    path = shared/'real/fights2/fight/fi005.mp4'
    for split in (0, 1):
        a, b = ([random.seed(3), sample(path, split, frames=4, stride=3, size=48, cache=c)][1] for c in (False, True))
        assert torch.equal(a, b)


@pytest.mark.parametrize('bad', [dict(frames=0), dict(stride=0), dict(size=0), dict(k=0)])
def test_nonsense_sizes_are_refused(bad):
    with pytest.raises(InputError, match='at least 1'): SampleClips(**bad)


def test_one_draw_a_clip_shared_by_its_frames():
    x = TensorVideo(torch.rand(6, 6, 3, 8, 8))  # as many clips as frames: where image transforms go wrong silently
    y = ClipTransform([Brightness(max_lighting=.8, p=1., draw=None)])(TensorVideo(torch.full((6, 6, 3, 8, 8), .5)), split_idx=0)
    level = y.mean((2, 3, 4))
    assert level.std(1).max() < 1e-6 and level.std(0).min() > 1e-2
    torch.manual_seed(0)
    y = ClipTransform([Flip(p=.5)])(x, split_idx=0)
    flipped = [torch.allclose(b, a.flip(-1), atol=1e-5) for a, b in zip(x, y)]
    assert all(f or torch.allclose(a, b, atol=1e-5) for f, a, b in zip(flipped, x, y)) and 0 < sum(flipped) < 6
    torch.testing.assert_close(ClipTransform([Flip(p=1.)])(x, split_idx=1), x)  # not outside training


def block(root, **kwargs):
    items = [(str(p), p.parent.name) for p in sorted(root.rglob('*.mp4'))]
    d = DataBlock(blocks=(VideoBlock(frames=4, stride=2, size=24, **kwargs), CategoryBlock), getters=[ItemGetter(0), ItemGetter(1)],
                  splitter=IndexSplitter([0, 1, 8, 9]), batch_tfms=[normalize_video()])
    return d.dataloaders(items, bs=4, num_workers=0)


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        self.seen = []
    def forward(self, x):
        self.seen.append(x.shape)
        return torch.stack([x.mean((1, 2, 3, 4)), x.amax((1, 2, 3, 4))], 1)*self.w


def test_batches_predictions_and_export(clips, tmp_path):
    dls = block(clips)
    x, y = dls.one_batch()
    assert type(x) is TensorVideo and x.shape == (4, 4, 3, 24, 24) and x.dtype == torch.float32
    learn = Learner(dls, Mean(), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    name, _, probs = learn.predict(str(next(clips.rglob('*.mp4'))))
    assert name in ('right', 'down') and len(probs) == 2
    learn.export()
    from fastai.learner import load_learner
    loaded = load_learner(tmp_path/'export.pkl')
    test = loaded.dls.test_dl([str(p) for p in sorted(clips.rglob('*.mp4'))][:3])
    assert loaded.get_preds(dl=test)[0].shape == (3, 2)


@pytest.mark.parametrize('workers', [0, 1])
def test_one_batch_of_bytes_crosses_to_the_device(clips, workers):
    "All that makes floats of them runs on the batch, behind the transfer"
    seen, device = [], torch.device('cpu')
    class Look(Transform):
        order = -100
        def encodes(self, x:TensorVideo):
            seen.append((x.dtype, x.is_contiguous(), x.clone()))
            return x
    items = [(str(p), p.parent.name) for p in sorted(clips.rglob('*.mp4'))]
    d = DataBlock(blocks=(VideoBlock(frames=4, stride=2, size=24), CategoryBlock), getters=[ItemGetter(0), ItemGetter(1)], splitter=IndexSplitter([0, 1]),
                  batch_tfms=[Look(), normalize_video()])
    dl = d.dataloaders(items, bs=4, num_workers=workers, device=device).train
    seen.clear()
    x, _ = next(iter(dl))
    (dtype, contiguous, raw), = seen
    assert dtype == torch.uint8 and contiguous and raw.shape == x.shape == (4, 4, 3, 24, 24)
    mean, std = (torch.tensor(v)[:, None, None] for v in imagenet_stats)
    torch.testing.assert_close(x.as_subclass(torch.Tensor), (raw.as_subclass(torch.Tensor)/255 - mean)/std)


def test_bytes_become_normalised_floats_in_one_pass(clips):
    "Equal to dividing, subtracting and dividing in float64; decoded as by fastai's two transforms; `Task.dls` takes it where nothing else needs floats"
    x = torch.arange(256, dtype=torch.uint8).expand(3, 256).reshape(1, 1, 3, 16, 16)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in imagenet_stats)
    norm, exact = NormalizeClips.from_stats(*imagenet_stats, dim=2, ndim=5), (x.double()/255 - mean)/std
    for k in (x, x[:, None].expand(2, 3, 1, 3, 16, 16)):
        y = norm(TensorVideo(k))
        assert type(y) is TensorVideo and y.dtype == torch.float32 and y.shape == k.shape
        torch.testing.assert_close(y.as_subclass(torch.Tensor).double(), exact.expand(k.shape), rtol=1e-6, atol=1e-6)
    two = Pipeline([IntToFloatTensor(), normalize_video()])
    assert torch.equal(norm.decode(two(TensorVideo(x))), two.decode(two(TensorVideo(x)))) and norm.decode(y).dtype == torch.int64 and (norm.decode(y) - k).abs().max() <= 1  # fastai's rounds down
    with pytest.raises(InputError, match='takes bytes, not torch.float32'): norm(TensorVideo(x/255))
    class Look(Transform): order = 30
    task = folder(clips, group=r'(p\d)_').hold_out(.3)
    plain, looked = task.dls(frames=4, size=24, bs=4), task.dls(frames=4, size=24, bs=4, tfms=[Look()])
    assert [[type(f).__name__ for f in d.train.after_batch] for d in (plain, looked)] == [['NormalizeClips'], ['IntToFloatTensor', 'Look', 'Normalize']]
    torch.testing.assert_close(next(iter(plain.valid))[0], next(iter(looked.valid))[0], rtol=1e-6, atol=1e-6)
    plain.show_batch(max_n=1)


def test_multi_clip_averages_logits_of_a_video(clips):
    net = Mean()
    learn = Learner(block(clips, k=3), net, loss_func=CrossEntropyLossFlat(), cbs=MultiClip())
    from fastcore.basics import noop
    logits, y = learn.get_preds(act=noop)
    assert net.seen[0] == (12, 4, 3, 24, 24) and logits.shape == (4, 2)
    x, _ = learn.dls.valid.one_batch()
    by_hand = torch.stack([net(x[:, i].as_subclass(torch.Tensor)) for i in range(3)]).mean(0)
    torch.testing.assert_close(logits.as_subclass(torch.Tensor), by_hand.detach())


def test_a_file_that_breaks_later_is_skipped_and_named(clips, tmp_path):
    import shutil
    root = tmp_path/'c'
    shutil.copytree(clips, root)
    (root/'down'/'p0_1.mp4').write_bytes(b'')
    with pytest.warns(UserWarning, match='p0_1.mp4: cannot be opened'): n = sum(len(x) for x, _ in block(root).valid)
    assert n == 3


def test_film_strips(clips):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    dls = block(clips)
    dls.show_batch(max_n=3)
    image = plt.gcf().axes[0].images[0].get_array()
    assert image.shape[:2] == (24, 4*24) and len([a for a in plt.gcf().axes if a.images]) == 3
    assert 0 <= image.min() and 200 < image.max() <= 255  # decoded back from the normalised batch
    Learner(dls, Mean(), loss_func=CrossEntropyLossFlat()).show_results(max_n=2)
    titles = [a.get_title() for a in plt.gcf().axes if a.images]
    assert len(titles) == 2 and all(t.split(',')[0] in ('right', 'down') for t in titles)
    ax = TensorVideo(torch.zeros(2, 9, 3, 8, 8, dtype=torch.uint8)).show(n=3)
    assert ax.images[0].get_array().shape[:2] == (16, 24)
    plt.close('all')


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
    assert np.abs(v.whole()[:, 0, 0, 0].numpy().astype(int) - 30*np.arange(8)).max() <= 3 and torch.equal(v.whole(), v.read(np.arange(8)))


def test_behind_a_broken_part_reading_begins_at_the_key_frame_before_the_clip(tmp_path):
    "Not at the file's first: what is broken far before does not matter, and the frame that stands in is of the same group of pictures"
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
    with pytest.warns(UserWarning, match='cannot be decoded'): x = VideoFile(str(path)).read([53])
    with pytest.warns(UserWarning, match='cannot be decoded'): y = VideoFile(str(path)).read([53, 59])
    assert torch.equal(x[0], VideoFile(str(path)).read([51])[0]) and torch.equal(x[0], y[0])
