"Damaged copies of small clips in eight formats, and what FFmpeg makes of them, without sdfast."
import random
from collections import Counter

import av
import numpy as np

TAGS = {} if int(av.__version__.split('.')[0]) > 18 else dict(metadata_errors='replace')  # PyAV 19 needs no telling
W, H, N = 96, 64, 36
# name -> encoder, options
FORMATS = {
    'x.mp4': ('libx264', dict(g='12', bf='2')), 'x.avi': ('mpeg4', dict(g='12')), 'x.mkv': ('libx264', dict(g='10')),
    'x.flv': ('flv1', dict(g='12')), 'x.ts': ('mpeg2video', dict(g='9', bf='2')),
    'x.webm': ('libvpx', dict(g='12', deadline='good', threads='1')), 'y.mkv': ('ffv1', {}),
    'x.mov': ('libx265', {'x265-params': 'log-level=none:keyint=12:pools=none:frame-threads=1'})}


def write_sources(folder):
    "One clip in each format, of blocks that move"
    rng = np.random.default_rng(5)
    still = np.kron(rng.integers(0, 255, (H//8, W//4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    for name, (codec, options) in FORMATS.items():
        with av.open(str(folder/name), 'w') as f:
            s = f.add_stream(codec, rate=25)
            s.width, s.height, s.pix_fmt, s.options = W, H, 'yuv420p', options
            for i in range(N):
                x = np.roll(still, 3*i, 1)[:, :W]//2 + np.uint8(3*i)
                f.mux(s.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(x), format='rgb24')))
            f.mux(s.encode())
    return [folder/name for name in FORMATS]


def mutate(data:bytes, rng:random.Random)->bytes:
    "Flip bytes, zero, remove or repeat a block, or cut the end off"
    b = bytearray(data)
    kind = rng.choice(('flip', 'flip', 'zero', 'remove', 'repeat', 'cut'))
    start, length = rng.randrange(len(b)), rng.choice((16, 100, 500, 2000))
    block = b[start:start + length]
    if kind == 'flip':
        for _ in range(rng.choice((1, 4, 20))): b[rng.randrange(len(b))] = rng.randrange(256)
    elif kind == 'zero': b[start:start + length] = bytes(len(block))
    elif kind == 'remove': del b[start:start + length]
    elif kind == 'repeat': b[start:start] = block
    else: del b[max(start, len(b)//5):]
    return bytes(b)


class Decoded:
    "All frames of a file by a plain loop of PyAV, and those that FFmpeg flags"

    def __init__(self, path):
        self.frames, bad, times = [], {None}, Counter()
        with av.open(str(path), **TAGS) as f:
            stream = f.streams.video[0]
            stream.thread_type = 'NONE'
            for packet in self._packets(f, stream):
                times[packet.pts] += 1
                if packet.is_corrupt: bad.add(packet.pts)
                try: frames = packet.decode()
                except (av.FFmpegError, ValueError):  # `ValueError`: PyAV 19, after it has failed to open the decoder
                    bad.add(packet.pts)
                    continue
                self.frames += frames
        bad = {time for time in bad if times[time] == 1} - {None}  # damaged times can repeat
        self.flagged = {i for i, x in enumerate(self.frames) if x.is_corrupt or x.pts in bad}

    def _packets(self, f, stream):
        for _ in range(1000):  # go on after what cannot be read
            try:
                yield from f.demux(stream)
                return
            except (av.FFmpegError, IndexError): pass

    def rgb(self, i):
        "Pixels `(3, H, W)`; `None` if they have another size or are turned"
        x = self.frames[i]
        if (x.width, x.height) != (W, H) or x.rotation: return None
        return x.to_ndarray(format='rgb24').transpose(2, 0, 1)

    def of_index(self, index):
        "Number in the index -> position among the frames, the first if there are several"
        if index.counted: return {i:i for i in range(min(index.n, len(self.frames)))}
        first = {}
        for i, x in enumerate(self.frames): first.setdefault(x.pts, i)
        return {n:first[t] for n, t in enumerate(index.pts.tolist()) if t in first}


def is_off(a, b): return abs(a.astype(int) - b).mean() > 10
