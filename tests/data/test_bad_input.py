"Broken, odd and hostile files: a run over them ends, names what it cannot use, keeps its memory and its files, and writes nothing that does harm."
import csv
import ctypes
import gc
import html.parser
import http.server
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import threading
import time
import traceback
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.load import SkipItemException
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_video import BROKEN, TORTURE

from sdfast.data import clips as clips_module
from sdfast.data import video as video_module
from sdfast.data.clips import SampleClips
from sdfast.data.datasets import create_task, folder
from sdfast.data.datasets import csv as csv_task
from sdfast.data.text import FORMULA, as_markdown
from sdfast.data.video import MAX_ASPECT, MAX_PIXELS, VideoError, VideoFile, index_video
from sdfast.errors import InputError
from sdfast.report.paper import right_answers
from sdfast.report.summary import answered_right, mcnemar_of_runs
from sdfast.study.config import Run
from sdfast.study.execute import execute

TESTS = Path(__file__).parents[1]
linux = pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='reads /proc')


def alone(function, *args, limit=240):
    "What a function returns in a process of its own, which is killed after `limit` seconds: its memory is its own, and what hangs or dies there is told here"
    r, w = os.pipe()
    if not (pid := os.fork()):
        try:
            signal.alarm(limit)
            os.close(r)
            with os.fdopen(w, 'w') as out: json.dump(function(*args), out)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(99)
    os.close(w)
    with os.fdopen(r) as found: text = found.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert not code, f'{function.__name__}{args}: exit status {code}'
    return json.loads(text)


def encode(path, frames, codec='ffv1', fmt='yuv444p', **options):
    "Write RGB frames `(T, H, W, 3)`"
    with av.open(str(path), 'w') as f:
        s = f.add_stream(codec, rate=25)
        s.height, s.width, s.pix_fmt, s.options = *frames.shape[1:3], fmt, options
        for x in frames: f.mux(s.encode(av.VideoFrame.from_ndarray(x, format='rgb24')))
        f.mux(s.encode())
    return path


# --- every odd and broken file in one data set ----------------------------------------------------------------------------

@pytest.fixture(scope='module')
def odd(shared, tmp_path_factory):
    "All of them in three class folders; the sound without a picture under a video's name"
    root = tmp_path_factory.mktemp('odd')
    for i, name in enumerate(sorted([*TORTURE, *BROKEN, 'real/corrupted.mp4'])):
        file = shared/'torture'/name
        (root/'abc'[i % 3]).mkdir(exist_ok=True)
        shutil.copy(file, root/'abc'[i % 3]/(file.name if file.suffix != '.mp3' else f'{file.name}.mp4'))
    return root


def test_all_files_in_one_data_set(shared, odd):
    assert len(list(odd.rglob('*.*'))) == len([f for d in ('real', 'made') for f in (shared/'torture'/d).iterdir()]) == 42
    task = folder(odd)
    assert sorted(Path(p).name.removesuffix('.mp3.mp4') for p in task.skipped) == sorted(Path(n).name.removesuffix('.mp3') for n in BROKEN)
    assert all(task.skipped.values()) and '4 skipped' in task.describe() and len(task.df) == 38
    dls = task.dls(frames=4, size=32, bs=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        seen = torch.cat([y for _, y in task.dl(dls, 'train', 'test')])
        assert sum(len(x) for x, _ in dls.train) == task.count('train')//4*4
    assert [dls.vocab[i] for i in seen] == [label for _, label in task.items('train', 'test')]
    told = {str(w.message).split(': ')[0] for w in caught if 'cannot be decoded' in str(w.message) or 'skipped' in str(w.message)}
    assert [Path(p).name for p in told] == ['corrupted.mp4']  # 28 of its 50 frames


def test_a_run_over_all_files_ends(odd, tmp_path):
    row = execute(Run(task=f'folder:{odd}', source='', size=32, frames=4, bs=4, epochs=1, final=True), tmp_path)
    assert row['status'] == 'ok', row['error']
    scores = pd.read_csv(tmp_path/'runs'/row['key']/'scores.csv', dtype=dict(label=str))
    task = create_task(f'folder:{odd}')
    assert list(zip(scores.path, scores.label)) == task.items('test')
    np.testing.assert_allclose(scores[['a', 'b', 'c']].sum(1), 1, atol=1e-4)


def decode(path):
    "Whether frames here and there and clips of a video can be had, and seconds of CPU"
    start, v = time.process_time(), VideoFile(path)
    if v.problem(): return False, time.process_time() - start
    n = v.index.n
    v.read([n - 1], 32), v.read([0, n//3, n//2], None)
    for split in (0, 1): SampleClips(4, 3, 32, k=2)(v, split_idx=split)
    return True, time.process_time() - start


@linux
def test_no_file_hangs(odd, tmp_path):
    found = {p.name:alone(decode, p, limit=60) for p in sorted(odd.rglob('*.*'))}  # a busy machine may take ten times as long as an idle one
    assert {n for n, (read, _) in found.items() if not read} == {Path(n).name.replace('.mp3', '.mp3.mp4') for n in BROKEN}
    assert max(found.values(), key=lambda f: f[1])[1] < 15, found
    os.mkfifo(tmp_path/'pipe.mp4')  # who opens one waits for a writer
    (tmp_path/'folder.mp4').mkdir()
    assert [alone(decode, p, limit=20)[0] for p in sorted(tmp_path.iterdir())] == [False, False]


SMALL = ['real/h264_10bits.mp4', 'real/unordered.mov', 'real/video_90.mov', 'real/carphone_distorted.mp4', 'made/one_frame.mp4', 'made/two_frames.mkv', 'made/tall_32x720.mp4',
         'made/fps_1.mp4', 'made/anamorphic_sar_64_45.mkv', 'made/black_all.mp4', 'made/first_keyframe_dropped.ts', 'made/fragmented.mp4', *BROKEN]


def decode_many(paths, n):
    "Memory in MB and open files, eleven times on the way through `n` clips; indexes are read anew each time"
    found, left, clip, libc = [], 0, SampleClips(3, 2, 32), ctypes.CDLL(None)
    warnings.simplefilter('ignore')
    for i in range(n + 1):
        if i % (n//10) == 0:
            gc.collect()
            getattr(libc, 'malloc_trim', lambda _: None)(0)  # what is freed but kept for later is no leak
            found.append((int(Path('/proc/self/statm').read_text().split()[1])*resource.getpagesize()/2**20, len(os.listdir('/proc/self/fd'))))
        index_video.cache_clear()
        try: clip(VideoFile(paths[i % len(paths)]), split_idx=i//len(paths) % 2)
        except SkipItemException: left += 1
    return found, left


@linux
def test_memory_and_files_stay_flat_over_2000_decodes(shared, write, tmp_path):
    write(tmp_path/'made.mp4', np.zeros((12, 32, 32), np.uint8))
    for name in ('half.mp4', 'noise.mp4'): shutil.copy(tmp_path/'made.mp4', tmp_path/name)
    os.truncate(tmp_path/'half.mp4', (tmp_path/'half.mp4').stat().st_size//2)
    (tmp_path/'noise.mp4').write_bytes(random.Random(0).randbytes(4000))
    paths = [*(shared/'torture'/n for n in SMALL), *sorted(tmp_path.iterdir())]
    found, left = alone(decode_many, paths, 2000)
    memory, files = zip(*found)
    assert left > 2000*6//len(paths) - 6  # those of `BROKEN` and the two made here
    assert set(files) == {files[0]}
    assert max(memory[5:]) - memory[3] < 4, memory  # MB in 1,400 decodes; containers that are kept cost 2,000, 6 kB a decode 8


# --- hostile videos -------------------------------------------------------------------------------------------------------

def gif(path, w, h):
    "Three tiny frames of a picture that is declared to be `w` x `h`"
    encode(path, np.zeros((3, 16, 16, 3), np.uint8), 'gif', 'rgb8')
    b = bytearray(path.read_bytes())
    b[6:10] = struct.pack('<HH', w, h)
    path.write_bytes(b)
    return path


def try_video(path):
    "Why it cannot be used, MB of memory and seconds to find out, or to read a clip of it"
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    v = VideoFile(path)
    why = v.problem()
    if not why:
        try: SampleClips(4, 1, 64)(v, split_idx=0)
        except SkipItemException as e: why = str(e)
    return why, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/2**10, time.process_time() - start


def test_a_video_of_100000_x_1_pixels(tmp_path):
    path = encode(tmp_path/'x.mkv', np.zeros((2, 1, 100_000, 3), np.uint8))
    why, mb, seconds = alone(try_video, path)
    assert f'frames of 100000x1 pixels, the long side more than {MAX_ASPECT} times the short one' in why and mb < 100 and seconds < 5
    encode(tmp_path/'legal.mkv', np.zeros((2, 2, 2*MAX_ASPECT, 3), np.uint8))  # on the limit
    assert VideoFile(tmp_path/'legal.mkv').read([1], 64).shape == (1, 3, 64, 64*MAX_ASPECT)


@pytest.mark.parametrize('w,h', [(60_000, 60_000), (16_000, 16_000), (65_535, 1), (1, 65_535), (8193, 8192)])
def test_a_few_bytes_that_declare_a_huge_picture(tmp_path, w, h):
    path = gif(tmp_path/'x.gif', w, h)
    assert path.stat().st_size < 5000
    why, mb, seconds = alone(try_video, path)
    assert why and (f'{MAX_PIXELS:,} pixels' if w*h > MAX_PIXELS else f'more than {MAX_ASPECT} times') in why and mb < 100 and seconds < 5, (why, mb, seconds)


def test_a_container_that_declares_a_huge_picture(tmp_path):
    path = encode(tmp_path/'x.avi', np.zeros((2, 32, 48, 3), np.uint8), 'huffyuv', 'yuv422p')
    b = path.read_bytes()
    assert struct.pack('<ii', 48, 32) in b
    for side in (9000, 60_000):
        path.write_bytes(b.replace(struct.pack('<ii', 48, 32), struct.pack('<ii', side, side)))
        why, mb, seconds = alone(try_video, path)
        assert why and f'{MAX_PIXELS:,}' in why and mb < 100 and seconds < 5, (why, mb, seconds)


def test_a_real_picture_that_is_too_large_is_not_decoded_to_find_out(tmp_path):
    with av.open(str(tmp_path/'x.mov'), 'w') as f:  # FFmpeg decodes a PNG in it to know its kind of pixels, when it opens the file
        s = f.add_stream('png', rate=25)
        s.width = s.height = 9000
        s.pix_fmt = 'gray'
        f.mux(s.encode(av.VideoFrame.from_ndarray(np.zeros((9000, 9000), np.uint8), format='gray')))
        f.mux(s.encode())
    assert (tmp_path/'x.mov').stat().st_size < 2*10**5
    why, mb, seconds = alone(try_video, tmp_path/'x.mov')
    assert why and f'{MAX_PIXELS:,}' in why and mb < 60 and seconds < 5, (why, mb, seconds)


def test_a_picture_that_grows_in_mid_stream(tmp_path, monkeypatch):
    a, b = (encode(tmp_path/f'{n}.ts', np.full((10, n, n, 3), n//2, np.uint8), 'mpeg2video', 'yuv420p') for n in (64, 256))
    (tmp_path/'x.ts').write_bytes(a.read_bytes() + b.read_bytes())
    index_video.cache_clear()
    assert max(f.width for f in av.open(str(tmp_path/'x.ts')).decode(video=0)) == 256
    monkeypatch.setattr(video_module, 'MAX_PIXELS', 64*64)
    v = VideoFile(tmp_path/'x.ts')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        x = v.read(np.arange(v.index.n), 32)
    assert x.shape[1:] == (3, 32, 32) and (x.float() - 32).abs().max() < 4  # none of the large ones
    if v.index.n > 10: assert 'cannot be decoded' in str(caught[0].message)


@given(st.integers(1, 9000), st.integers(1, 9000), st.one_of(st.none(), st.integers(1, 512)))
def test_scaled_size_is_bounded(w, h, size):
    index, VideoFile.index = VideoFile.index, SimpleNamespace(width=w, height=h)
    try: sw, sh = VideoFile('x').scaled(size)
    finally: VideoFile.index = index
    if size is None: assert (sw, sh) == (w, h)
    else:
        assert min(sw, sh) == size and abs(max(sw, sh) - size*max(w, h)/min(w, h)) <= .5
        if max(w, h) <= MAX_ASPECT*min(w, h): assert sw*sh <= MAX_ASPECT*size*size


def test_long_videos_are_not_kept_decoded(write, tmp_path, monkeypatch):
    write(tmp_path/'x.mp4', np.zeros((12, 32, 32), np.uint8))
    kept = []
    monkeypatch.setattr(clips_module, 'decode_whole', lambda path, side: kept.append(path) or VideoFile(path).read(np.arange(12), side))
    clip = SampleClips(4, 1, 32, cache=True)
    a = clip(VideoFile(tmp_path/'x.mp4'), split_idx=1)
    assert len(kept) == 1
    monkeypatch.setattr(video_module, 'WHOLE_BYTES', 12*32*32*3 - 1)
    assert torch.equal(clip(VideoFile(tmp_path/'x.mp4'), split_idx=1), a) and len(kept) == 1


def test_text_that_is_not_utf8_kinds_unknown_and_names_that_are_none(write, tmp_path):
    encode(tmp_path/'x.mkv', np.zeros((3, 32, 32, 3), np.uint8))
    with av.open(str(tmp_path/'x.mkv')) as i, av.open(str(tmp_path/'y.mkv'), 'w') as o:
        o.metadata['title'] = 'TITLETITLE'
        s = o.add_stream_from_template(i.streams.video[0])
        for p in i.demux(video=0):
            if p.dts is not None:
                p.stream = s
                o.mux(p)
    b = (tmp_path/'y.mkv').read_bytes()
    assert b.count(b'TITLETITLE') == 1 and b.count(b'V_FFV1') == 1
    (tmp_path/'y.mkv').write_bytes(b.replace(b'TITLETITLE', 'Café à gogo'.encode('latin-1')[:10]))
    assert VideoFile(tmp_path/'y.mkv').read([2]).shape == (1, 3, 32, 32)
    (tmp_path/'z.mkv').write_bytes(b.replace(b'V_FFV1', b'V_XXXX'))
    assert 'cannot decode' in VideoFile(tmp_path/'z.mkv').problem()
    for name in ('a\0b.mp4', 'a\ud800.mp4', '', '.'): assert VideoFile(name).problem().startswith('cannot be opened')


def test_files_with_changed_bytes_are_read_or_named(shared, tmp_path):
    "Whatever the change, a `VideoError` at most"
    rng, read = random.Random(0), 0
    for i in range(120):
        file = shared/'torture'/rng.choice(SMALL[:12])
        b = bytearray(file.read_bytes())
        for _ in range(rng.choice((1, 5, 40))): b[rng.choice((rng.randrange(len(b)), rng.randrange(500), len(b) - 1 - rng.randrange(500)))] = rng.choice((0, 255, rng.randrange(256)))
        (tmp_path/f'{i}{file.suffix}').write_bytes(b)
        v = VideoFile(tmp_path/f'{i}{file.suffix}')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: read += v.read([0, v.index.n - 1, v.index.n//2], 24).shape[0] == 3
            except VideoError as e: assert str(v) in str(e)
    assert 40 < read < 120


def test_playlists_fetch_nothing(tmp_path):
    asked = []
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, args=(.01,), daemon=True).start()
    url = f'http://127.0.0.1:{server.server_port}/x.ts'
    texts = [f'#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\n{url}\n#EXT-X-ENDLIST\n', f'ffconcat version 1.0\nfile {url}\n',
             f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4">'
             f'<Representation id="1" bandwidth="1"><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>']
    for i, text in enumerate(texts):
        for suffix in ('mp4', 'ts', 'm3u8', 'mpd'):
            (tmp_path/f'{i}.{suffix}').write_text(text)
            assert VideoFile(tmp_path/f'{i}.{suffix}').problem()
    server.shutdown()
    server.server_close()
    assert not asked


# --- hostile tables and names ---------------------------------------------------------------------------------------------

@pytest.fixture
def table(clips, tmp_path):
    "Writes a csv of the clips beside a copy of them, with the given names for classes (two clips each, one to train and one to test) and changed paths"
    def table(labels, path=lambda p: p, split='test'):
        files = [f.relative_to(clips) for f in sorted(clips.rglob('*.mp4'))]
        shutil.copytree(clips, tmp_path/'set', dirs_exist_ok=True)
        rows = [(path(str(files[2*i + j])), label, ('train', split)[j]) for i, label in enumerate(labels) for j in range(2)]
        with open(tmp_path/'set/t.csv', 'w', newline='', encoding='utf-8') as f: csv.writer(f, quoting=csv.QUOTE_ALL).writerows([('path', 'label', 'split'), *rows])
        return tmp_path/'set/t.csv'
    return table


def test_paths_that_leave_the_folder_of_the_csv(table, clips):
    for out in ('../set/{}', 'down/../../set/{}', './/..//set/{}', '..'):
        file = table(['a', 'b'], out.format)
        with pytest.raises(InputError, match='4 files outside its own folder.*outside=1') as e: csv_task(file)
        assert '\n' not in str(e.value)
    file = table(['a', 'b'], '../set/{}'.format)
    task = csv_task(file, outside=True)
    assert len(task.df) == 4 and create_task(f'csv:{file},outside=1').df.equals(task.df) and not any('..' in p for p in task.df.path)
    with pytest.raises(InputError, match='outside its own folder'): create_task(f'csv:{file},outside=0')
    for fine in ('{}', './{}', 'down/../{}', str(clips)+'/{}', f'{clips}/../{clips.name}/{{}}'): assert len(csv_task(table(['a', 'b'], fine.format)).df) == 4


@pytest.mark.parametrize('name', ['=cmd()', "=cmd|' /C calc'!A0", '+1+1', '-2+3', '-', '@SUM(A1)', '\t=1', '\r=1', '＝1+1', '－x', '＠x', 'walk;=1+1', 'walk; @x', '-1;x', 'a\0b', 'a\nb', 'a\rb',
                                  'a\tb', 'a\x1b[31mb', 'a\x7f', 'a\x85b', 'a\u2028b', 'a\u200fb', 'a\u200eb', '\u202egnp.x', 'a\u2066b', 'a\u200bb', '\ufeffa', 'a\xadb', '', ' ', 'path', 'label'])
def test_class_names_that_are_refused(table, name):
    with pytest.raises(InputError, match='rename it') as e: csv_task(table(['good', name, 'fine'], split='test'))
    text = str(e.value)
    assert repr(name) in text and text.isprintable()


@pytest.mark.skipif(sys.platform != 'linux', reason='names files by bytes')
def test_folders_and_files_whose_names_are_no_text_or_formulas(clips, tmp_path):
    root = tmp_path/'c'
    shutil.copytree(clips, root)
    files = sorted((root/'down').iterdir())
    for f, name in zip(files, (b'a\xff.mp4', b'b\n.mp4', b'c;=1+1.mp4', b'd;-)_.mp4', b'e;@x.mp4', b'=f.mp4')): os.rename(f, os.path.join(os.fsencode(f.parent), name))
    task = folder(root)
    assert sorted(p.rsplit('/', 1)[1] for p in task.skipped) == ['a\\udcff.mp4', 'b\\n.mp4', 'c;=1+1.mp4', 'e;@x.mp4']  # hmdb51 has files with such a smiley
    assert all('rename it' in w for w in task.skipped.values()) and ''.join(task.skipped).isprintable()
    os.rename(root/'down', os.fsencode(root) + b'/d\xff')
    with pytest.raises(InputError, match='rename it'): folder(root)


ODD = ['<script>alert(1)</script>', '../x', 'a/b', '/etc/passwd', '-1', '+1.5', r'$\frac{', 'a|b, "c"']


def cells(folder):
    "Every cell of every csv file below, with comma or semicolon for what divides them"
    for file in folder.rglob('*.csv'):
        for mark in ',;':
            with open(file, newline='', encoding='utf-8') as f:
                for row in csv.reader(f, delimiter=mark): yield from ((file, c) for c in row)


def test_odd_class_names_stay_names(table, tmp_path, monkeypatch):
    "They come back from what is written as they went in, make no files, and no cell that is a formula"
    file = table(ODD)
    rows = pd.read_csv(file, dtype=str)
    pd.concat([rows, rows[rows.split.eq('train')].assign(split='valid')]).to_csv(file, index=False)
    before = sorted(tmp_path.rglob('*'))
    monkeypatch.chdir(tmp_path/'set/down')
    run = Run(task=f'csv:{file}', source='', size=24, frames=4, bs=4, epochs=1, final=True)
    row = execute(run, tmp_path/'out')
    assert row['status'] == 'ok', row['error']
    assert [p for p in sorted(tmp_path.rglob('*')) if not p.is_relative_to(tmp_path/'out')] == before
    assert {p.name for p in (tmp_path/'out').rglob('*') if p.is_file()} - {'.lock'} == {'run.json', 'epochs.csv', 'scores.csv', 'log.txt', 'result.json'}
    pd.DataFrame([row]).to_csv(tmp_path/'out/runs.csv', index=False)
    for _, cell in cells(tmp_path/'out'): assert not FORMULA.search(cell) or cell in ('-1', '+1.5')
    scores = pd.read_csv(tmp_path/'out/runs'/row['key']/'scores.csv', dtype=dict(label=str))
    assert list(scores.columns[2:]) == sorted(ODD) and list(scores.label) == ODD
    assert right_answers(tmp_path/'out', row, 'last').mean() == pytest.approx(row['acc1'])
    runs = pd.DataFrame([row])
    assert mcnemar_of_runs(partial(answered_right, tmp_path/'out'), runs, runs.set_index('seed')) == 1


def test_notes_escape_names(table):
    file = table(ODD, split='<b>test</b>')
    df = pd.read_csv(file, dtype=str)
    df.loc[df.label.eq(ODD[0]), 'split'] = 'train'
    df.to_csv(file, index=False)
    task = csv_task(file, test='<b>test</b>')
    assert task.notes == (r'test is \<b\>test\</b\>', r'test has no clip of \<script\>alert(1)\</script\>')


class Seen(html.parser.HTMLParser):
    "Tags and text of a page"
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ''
        self.feed(page)

    def handle_starttag(self, tag, attrs): self.tags.append(tag)
    def handle_data(self, data): self.text += data


@given(st.one_of(st.text(st.sampled_from('<>&|[]()`*_~$\\!#"\'./:; -ab1é走'), min_size=1, max_size=30), st.text(st.characters(exclude_categories=['Cs']), max_size=9).map(lambda t: f'a{t}b')))
@example('<script>alert(1)</script>')
@example(r'\<b>')
@example('_a_ __b__ *c* `d`')
@example('![a](b) [c](javascript:d) <http://e>')
@example('&lt;b&gt;')
@settings(deadline=None, max_examples=300)
def test_escaped_names_are_shown_as_they_are(name):
    from markdown_it import MarkdownIt  # rich brings it
    text = as_markdown(name)
    assert '\n' not in text and not any(c in text for c in '\0\r\u202e\u200f')
    page = MarkdownIt('commonmark').enable('table')  # with raw HTML, as files are shown
    seen = Seen(page.render(f'- test has no clip of {text}, y'))
    assert set(seen.tags) <= {'ul', 'li'}
    if name.isprintable(): assert seen.text.strip() == f'test has no clip of {name}, y'
    row = Seen(page.render(f'| a | b |\n|---|---|\n| x {text} | 1 |'))
    assert row.tags.count('td') == 2 and not set(row.tags) - {'table', 'thead', 'tbody', 'tr', 'th', 'td'}


def test_ordinary_names_are_not_escaped():
    for name in ('brush_hair', 'ApplyEyeMakeup', 'talk to (e.g., self)', '-1', "massaging person's head", 'test_x'): assert as_markdown(name) == name


def test_titles_with_dollars_are_drawn_as_they_are(table):
    import matplotlib
    matplotlib.use('Agg')
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from matplotlib import pyplot as plt

    from sdfast.models.encoders import create_model
    task = csv_task(table([r'$\frac{$', r'$\nope$ <b>']))
    dls = task.dls(frames=4, size=24, bs=2)
    dls.show_batch(max_n=2)
    plt.gcf().canvas.draw()
    assert {a.get_title() for a in plt.gcf().axes if a.images} == set(task.vocab)
    Learner(dls, create_model('tiny', 2), loss_func=CrossEntropyLossFlat()).show_results(dl=task.dl(dls, 'test'), max_n=2)
    plt.gcf().canvas.draw()
    assert all(a.get_title().startswith('$') for a in plt.gcf().axes if a.images)
    plt.close('all')
