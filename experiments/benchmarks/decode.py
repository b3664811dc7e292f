"""What does decoding a clip cost beyond the codec itself?

    python experiments/benchmarks/decode.py        # about 2 minutes on 2 CPU cores

Decodes clips of 16 frames, stride 2, from a random start, short side 128, with one thread: by sdfast, by
straightforward PyAV, and by decord and torchcodec if they are installed (`pip install decord torchcodec`; the latter
needs FFmpeg's libraries). The floor is PyAV decoding the frames from the same key frame without converting any. All
take turns in one process, which keeps freed memory on a CPU, as studies do. Prints milliseconds a clip (of the
processor; with --device cuda of the clock) and ratios, and writes decode.json to --out. Goals: UCF101 AVI at most 1.5
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
from measure import SHARED, is_cuda, ratio, require_device, show, side_by_side, write

from sdfast.data.folders import find_videos
from sdfast.data.video import VideoFile
from sdfast.runtime.memory import keep_freed_memory

FRAMES = 16
STRIDE = 2
SIZE = 128
SPAN = (FRAMES - 1)*STRIDE  # from the first frame of a clip to the last


# ---- readers: a path, frame numbers and the size (width, height) of scaled frames to a uint8 clip

def decoded_frames(path, idx):
    "Decode the frames `idx`, from the key frame before the first"
    index = VideoFile(path).index
    wanted = set(index.pts[idx].tolist())
    end = index.pts[idx[-1]]
    with av.open(path) as f:
        stream = f.streams.video[0]
        stream.thread_type = 'NONE'
        if len(index.keys) > 1: f.seek(int(index.pts[idx[0]]), stream=stream)
        for frame in f.decode(stream):
            if frame.pts in wanted: yield frame
            if frame.pts >= end: break


def floor(path, idx, wh):
    for _ in decoded_frames(path, idx): pass


def pyav(path, idx, wh):
    scaler = VideoReformatter()
    frames = [scaler.reformat(frame, *wh, 'rgb24', threads=1).to_ndarray() for frame in decoded_frames(path, idx)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()


def sdfast(path, idx, wh): return VideoFile(path).read(idx, SIZE)


def decord_reader():
    from decord import VideoReader, cpu
    def decord(path, idx, wh):
        frames = VideoReader(path, ctx=cpu(0), width=wh[0], height=wh[1], num_threads=1).get_batch(idx).asnumpy()
        return torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
    return decord


def torchcodec_readers():
    "Exact and approximate seeking"
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize
    def exact(path, idx, wh, **kwargs):
        decoder = VideoDecoder(path, num_ffmpeg_threads=1, transforms=[Resize(wh[::-1])], **kwargs)
        return decoder.get_frames_at(idx.tolist()).data
    def approximate(path, idx, wh): return exact(path, idx, wh, seek_mode='approximate')
    return exact, approximate


def peers(job):
    "`(readers, reasons)`: other readers that can read the clip `job`, and why the rest cannot"
    readers = {}
    missing = {}
    try: readers['decord'] = decord_reader()
    except ImportError: missing['decord'] = 'not installed'
    try:
        exact, approximate = torchcodec_readers()
        exact(*job)
        readers |= {'torchcodec':exact, 'torchcodec, approximate':approximate}
    except ImportError: missing['torchcodec'] = 'not installed'
    except Exception as e: missing['torchcodec'] = f'cannot be loaded: {str(e).strip().splitlines()[0]}'
    return readers, missing


# ---- what is read

def groups(videos):
    "Name -> files that are measured together"
    if videos:
        files, _ = find_videos(videos)
        return {Path(videos).name:sorted(map(str, files))}
    if not SHARED.is_dir(): sys.exit('decode.py: ../shared/data is missing; name a folder of videos with --videos')
    real = [sorted((SHARED/'real').glob(p))[i] for p in ('arid6/*/*.mp4', 'fights2/*/*.mp4') for i in (3, 33, 63, 93)]
    long_gop = [SHARED/'torture/made/long_gop_600.mp4', *real]
    return {'UCF101 AVI':[str(SHARED/'torture/real/v_Punch_g03_c01.avi')], 'H.264, long GOP':[str(p) for p in long_gop]}


def draw_clips(files, per_file, rng):
    "Arguments of the readers: clips from random starts"
    jobs = []
    for path in files:
        n = VideoFile(path).index.n
        for _ in range(per_file):
            start = rng.randint(0, max(0, n - SPAN - 1))
            idx = np.unique(np.minimum(start + np.arange(FRAMES)*STRIDE, n - 1))
            jobs.append((path, idx, VideoFile(path).scaled(SIZE)))
    return jobs


def reader_row(name, taken, clips):
    "A row of the table for one reader"
    seconds = taken[name]
    to_floor = {f'{k}_to_floor':v for k, v in ratio(seconds, taken['floor']).items()}
    slower = ratio(seconds, taken['sdfast'])['ratio']
    times = dict(ms_min=1e3*seconds.min()/clips, ms_median=1e3*np.median(seconds)/clips)
    return dict(reader=name, **times, **to_floor, slower_than_sdfast=slower)


@call_parse
def main(
    videos:str='', # A folder of video files instead of those of ../shared/data
    rounds:int=15, # Rounds, in each of which every reader decodes the same clips
    clips:int=2, # Clips of each file in a round; of a single file 12 times that
    device:str='cpu', # Where the clips arrive: cpu or cuda
    out:str='runs/benchmarks', # Folder for decode.json
    seed:int=0, # Seed of the starts
):
    "Milliseconds to decode a clip, and ratios to the floor"
    require_device(device)
    torch.set_num_threads(1)
    kept = not is_cuda(device) and keep_freed_memory()
    clock = time.perf_counter if is_cuda(device) else time.process_time
    rng = random.Random(seed)
    found = {}
    for name, files in groups(videos).items():
        jobs = draw_clips(files, clips if len(files) > 1 else 12*clips, rng)
        others, missing = peers(jobs[0])

        def read_all(reader):
            for job in jobs:
                x = reader(*job)
                if x is not None: x.to(device)

        readers = dict(floor=floor, sdfast=sdfast, pyav=pyav) | others
        taken = side_by_side({k:lambda f=f: read_all(f) for k, f in readers.items()}, rounds, device, clock)
        rows = [reader_row(k, taken, len(jobs)) for k in taken]
        show(f'{name}: {len(jobs)} clips of {len(files)} files, {rounds} rounds, to {device}', rows)
        for reader, why in missing.items(): print(f'{reader}: {why}')
        found[name] = dict(files=[Path(p).name for p in files], clips=len(jobs), readers=rows, missing=missing)
    settings = dict(frames=FRAMES, stride=STRIDE, size=SIZE, rounds=rounds)
    write(out, 'decode', device, kept_freed_memory=kept, **settings, groups=found)
