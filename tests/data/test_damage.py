"Frames are those of a full decoding, or they are flagged, whatever was done to the file."
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from mutants import FORMATS, Decoded, H, W, is_off, mutate, write_sources

from sdfast.data.damage import find_damage
from sdfast.data.video import VideoError, VideoFile

crashes = pytest.mark.skipif(
    int(av.__version__.split('.')[0]) < 18, reason='FFmpeg of PyAV 17 crashes on some damaged files')


@pytest.fixture(scope='module')
def sources(tmp_path_factory): return write_sources(tmp_path_factory.mktemp('sources'))


def read(video, frames):
    "Frames of a video, and whether it warned"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        x = video.read(frames, (W, H)).numpy()
    assert all('frames are damaged' in str(w.message) for w in caught)
    return x, bool(caught)


def check(path, original, rng):
    "Assert what must hold of a file; returns whether it can be read, has damage, and the number of flags that matter"
    video = VideoFile(path)
    if video.problem(): return False, False, 0
    index = video.index
    subsets = [[rng.randrange(index.n)] for _ in range(3)]
    subsets += [sorted(rng.randrange(index.n) for _ in range(k)) for k in (2, 2, 5)]
    # these decoders do not report all damage, which is found only by decoding all of a file
    early, silent = [], path.suffix in ('.webm', '.mov') or path.name.endswith('y.mkv')
    try:
        early = [(s, *read(video, s)) for s in subsets]  # before all of it was decoded
        damaged = set(video.damaged.tolist())
        full, _ = read(video, range(index.n))
    except VideoError as e:
        assert str(path) in str(e)
        return False, False, 0
    for s, x, warned in [(s, *read(video, s)) for s in subsets]:
        assert warned == bool(damaged & set(s))
        for i, a in zip(s, x): np.testing.assert_array_equal(a, full[i], str((path, i, s)))
    oracle = Decoded(path)
    by_time = {x.pts:i for i, x in enumerate(original.frames)}
    n_flags, place = 0, oracle.of_index(index)
    for s, x, warned in early:
        for i, a in zip(s, x):
            if warned or silent or np.array_equal(a, full[i]): continue
            # what was decoded before may have spoilt the decoder for frames that are sound when they are read alone
            reference = by_time.get(oracle.frames[place[i]].pts)
            assert i in damaged and reference is not None and not is_off(a, original.rgb(reference)), (path, i, s)
    for number, at in place.items():
        want = oracle.rgb(at)
        if want is None: continue
        if number not in damaged: np.testing.assert_array_equal(full[number], want, str((path, number)))
        reference = by_time.get(oracle.frames[at].pts)
        if at in oracle.flagged and reference is not None and is_off(want, original.rgb(reference)):
            n_flags += 1
            assert number in damaged, (path, number)
    return True, bool(damaged), n_flags


def fuzz(sources, folder, seed, n):
    "Check `n` mutants; returns the sums of what `check` returns"
    rng, originals, found = random.Random(seed), [Decoded(p) for p in sources], []
    for i in range(n):
        k = i % len(sources)
        path = folder/f'{i}{sources[k].name}'
        path.write_bytes(mutate(sources[k].read_bytes(), rng))
        found.append(check(path, originals[k], rng))
        path.unlink()
    return [sum(column) for column in zip(*found)]


def test_undamaged_clips_have_no_flag(sources, tmp_path):
    for path in sources:
        readable, damaged, _ = check(path, Decoded(path), random.Random(0))
        assert readable and not damaged


def test_threads_find_the_same_damage(sources, tmp_path):
    "The number of damaged frames is part of a task's fingerprint"
    path = tmp_path/'x.mp4'
    data = bytearray(sources[0].read_bytes())
    data[len(data)//2:len(data)//2 + 300] = bytes(300)
    path.write_bytes(data)
    index = VideoFile(path).index
    with ThreadPoolExecutor(8) as pool: found = list(pool.map(lambda _: find_damage(str(path), index), range(32)))
    assert len(found[0][0])
    assert len({(tuple(damaged.tolist()), tuple(missing.tolist())) for damaged, missing in found}) == 1


@crashes
def test_80_damaged_files(sources, tmp_path):
    readable, damaged, _ = fuzz(sources, tmp_path, 1, 80)
    assert readable > 30
    assert damaged > 15


@crashes
@pytest.mark.nightly
def test_1500_damaged_files(sources, tmp_path):
    readable, damaged, n_flags = fuzz(sources, tmp_path, 2, 1500)
    assert len(FORMATS) == 8
    assert readable > 750
    assert damaged > 400
    assert n_flags > 100
