"""What does decoding a clip cost beyond what the codec costs?

    python experiments/benchmarks/decode.py        # about 2 minutes on 2 CPU cores

Clips of 16 frames, stride 2, from a random start, short side 128, one thread: sdfast beside the straightforward PyAV, decord and torchcodec, if they
are installed (`pip install decord torchcodec`; the latter needs FFmpeg's libraries), and the floor, PyAV decoding the frames from the same key frame
on without converting any. In turns in one process, which keeps freed memory on a CPU, as studies do; prints milliseconds a clip (of the processor, which other
processes do not add to; with --device cuda by the clock) and ratios, and writes JSON to --out. The goals: UCF101 AVI at most 1.5
times the floor and 1.8 times as fast as decord; H.264 with long groups of pictures at most 1.15 times the floor."""
import random
import sys
import time
import warnings
from pathlib import Path

warnings.filterwarnings('ignore', category=FutureWarning)

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from fastcore.script import call_parse
from measure import SHARED, need, ratio, show, side_by_side, write

from sdfast.data.datasets import VIDEO_SUFFIXES
from sdfast.data.video import VideoFile
from sdfast.runtime.memory import keep_freed_memory

FRAMES, STRIDE, SIZE = 16, 2, 128


def each(path, idx):
    "Decoded frames of `idx`, from the key frame before"
    ix = VideoFile(path).index
    with av.open(path) as f:
        s = f.streams.video[0]
        s.thread_type = 'NONE'
        if len(ix.keys) > 1: f.seek(int(ix.pts[idx[0]]), stream=s)
        wanted, end = set(ix.pts[idx].tolist()), ix.pts[idx[-1]]
        for frame in f.decode(s):
            if frame.pts in wanted: yield frame
            if frame.pts >= end: break


def floor(path, idx, wh):
    for frame in each(path, idx): pass


def pyav(path, idx, wh):
    scaler = VideoReformatter()
    x = np.stack([scaler.reformat(frame, *wh, 'rgb24', threads=1).to_ndarray() for frame in each(path, idx)])
    return torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()


def sdfast(path, idx, wh): return VideoFile(path).read(idx, SIZE)


def peers(some):
    "Readers that work here, and why others do not"
    found, why = {}, {}
    def decord(path, idx, wh): return torch.from_numpy(VideoReader(path, ctx=cpu(0), width=wh[0], height=wh[1], num_threads=1).get_batch(idx).asnumpy()).permute(0, 3, 1, 2).contiguous()
    def torchcodec(path, idx, wh, **kwargs): return VideoDecoder(path, num_ffmpeg_threads=1, transforms=[Resize(wh[::-1])], **kwargs).get_frames_at(idx.tolist()).data
    def approximate(path, idx, wh): return torchcodec(path, idx, wh, seek_mode='approximate')
    try:
        from decord import VideoReader, cpu
        found['decord'] = decord
    except ImportError: why['decord'] = 'not installed'
    try:
        from torchcodec.decoders import VideoDecoder
        from torchcodec.transforms import Resize
        torchcodec(*some)
        found |= {'torchcodec':torchcodec, 'torchcodec, approximate':approximate}
    except ImportError: why['torchcodec'] = 'not installed'
    except Exception as e: why['torchcodec'] = f'cannot be loaded: {str(e).strip().splitlines()[0]}'
    return found, why


def groups(videos):
    if videos: return {Path(videos).name:sorted(str(p) for p in Path(videos).rglob('*') if p.suffix.lower() in VIDEO_SUFFIXES)}
    if not SHARED.is_dir(): sys.exit('decode.py: ../shared/data is not here; say where videos are with --videos FOLDER')
    real = [sorted((SHARED/'real').glob(p))[i] for p in ('arid6/*/*.mp4', 'fights2/*/*.mp4') for i in (3, 33, 63, 93)]
    return {'UCF101 AVI':[str(SHARED/'torture/real/v_Punch_g03_c01.avi')], 'H.264, long GOP':[str(p) for p in [SHARED/'torture/made/long_gop_600.mp4', *real]]}


@call_parse
def main(
    videos:str='', # A folder of video files instead of those of ../shared/data
    rounds:int=15, # In each of which every reader decodes the same clips
    clips:int=2, # Of each file in a round; of one file alone 12 times as many
    device:str='cpu', # Where the clips are to arrive: cpu or cuda
    out:str='runs/benchmarks', # Folder for decode.json
    seed:int=0, # Of the starts
):
    "Milliseconds to decode a clip, and ratios to the floor"
    need(device)
    torch.set_num_threads(1)
    kept = not device.startswith('cuda') and keep_freed_memory()
    rng, found = random.Random(seed), {}
    for name, files in groups(videos).items():
        jobs = []
        for p in files:
            n = VideoFile(p).index.n
            for _ in range(clips if len(files) > 1 else 12*clips):
                start = rng.randint(0, max(0, n - (FRAMES - 1)*STRIDE - 1))
                jobs.append((p, np.unique(np.minimum(start + np.arange(FRAMES)*STRIDE, n - 1)), VideoFile(p).scaled(SIZE)))
        others, why = peers(jobs[0])
        def all_of(read):
            def go():
                for j in jobs:
                    x = read(*j)
                    if x is not None: x.to(device)
            return go
        took = side_by_side({f.__name__:all_of(f) for f in (floor, sdfast, pyav)} | {k:all_of(f) for k, f in others.items()}, rounds, device, time.perf_counter if device.startswith('cuda') else time.process_time)
        rows = [dict(reader=k, ms_min=1e3*t.min()/len(jobs), ms_median=1e3*np.median(t)/len(jobs), **{f'{k}_to_floor':v for k, v in ratio(t, took['floor']).items()},
                     slower_than_sdfast=ratio(t, took['sdfast'])['ratio']) for k, t in took.items()]
        show(f'{name}: {len(jobs)} clips of {len(files)} files, {rounds} rounds, to {device}', rows)
        for k, w in why.items(): print(f'{k}: {w}')
        found[name] = dict(files=[p.rsplit('/', 1)[-1] for p in files], clips=len(jobs), readers=rows, missing=why)
    write(out, 'decode', device, kept_freed_memory=kept, frames=FRAMES, stride=STRIDE, size=SIZE, rounds=rounds, groups=found)
