"""The videos of `moving_digits`: real handwritten digits that move, written to small MPEG-4 files.

The digits are scikit-learn's copy of the UCI optical digits, 8x8, enlarged to 16x16. Train, valid and test show
different images."""
from pathlib import Path

import av
import numpy as np
import pandas as pd
from scipy.ndimage import zoom
from sklearn.datasets import load_digits

from ..runtime.progress import track

__all__ = ['TARGET', 'SOURCE', 'MOTION', 'DIGIT', 'PARTS', 'CLIPS', 'places', 'write_moving_digits']

MOTIONS = ['left', 'right', 'up', 'down', 'clockwise', 'anticlockwise']
# The 8 target classes: a group of digits and a motion. Each group has two motions and each motion two groups, so that
# the class depends on both: neither a still frame nor the motion alone is enough.
TARGET_GROUPS = [
    ('024', (0, 2, 4), ('left', 'clockwise')), ('135', (1, 3, 5), ('left', 'clockwise')),
    ('68', (6, 8), ('up', 'anticlockwise')), ('79', (7, 9), ('up', 'anticlockwise'))]
TARGET = {f'{name}_{motion}': (digits, motion) for name, digits, motions in TARGET_GROUPS for motion in motions}
SOURCE = {f'{digit}_{motion}': ((digit,), motion) for digit in range(10) for motion in MOTIONS}
# Each has half of the source's task: the motion or the digit is the class, and the other half may be forgotten
MOTION = {f'any_{motion}': (range(10), motion) for motion in MOTIONS}
DIGIT = {f'{digit}_any': ((digit,), MOTIONS) for digit in range(10)}
# Part -> class -> its digits and motion(s). A part's position seeds its random numbers: add new parts at the end
PARTS: dict[str, dict[str, tuple]] = dict(source=SOURCE, target=TARGET, motion=MOTION, digit=DIGIT)
# Handwritten images of each split
IMAGES = dict(train=range(1000), valid=range(1000, 1200), test=range(1200, 1797))
# Number of clips of each split, which are drawn in this order: add new splits at the end
CLIPS = dict(
    source=dict(train=6000, test=1200, valid=600), target=dict(train=160, valid=160, test=800),
    motion=dict(train=162, valid=162, test=798), digit=dict(train=160, valid=160, test=800))
STEPS = dict(left=(0, -1), right=(0, 1), up=(-1, 0), down=(1, 0))  # rows and columns


def places(
    rng:np.random.Generator, # For start and speed
    motion:str, # One of `MOTIONS`
    frames:int, # Number of frames
    size:int, # Side of a frame in pixels
    thing:int, # Side of the square that moves, in pixels
)->list[np.ndarray]: # Row and column of its corner, for each frame
    "Where a square is in each frame, with random start and speed"
    speed = rng.uniform(1.5, 2.8)  # pixels per frame
    turns = motion in ('clockwise', 'anticlockwise')
    centre = rng.uniform(10, size - thing - 10, 2) if turns else rng.uniform(4, size - thing - 4, 2)
    phase = rng.uniform(0, 2*np.pi)
    corners = []
    for t in range(frames):
        if turns:
            angle = phase + (1 if motion == 'clockwise' else -1)*t*speed*.3
            at = centre + 5 + 6*np.array([np.sin(angle), np.cos(angle)])
        else: at = centre + np.array(STEPS[motion])*speed*(t - frames/2)
        corners.append(np.clip(np.round(at).astype(int), 0, size - thing))
    return corners


def _draw(rng, image, motion, frames=8, size=40):
    "Draw uint8 `(frames, size, size)`: a 16x16 digit that moves over noise"
    x = np.zeros((frames, size, size), np.float32)
    for frame, (r, c) in zip(x, places(rng, motion, frames, size, 16)): frame[r:r + 16, c:c + 16] = image
    return ((x + rng.normal(0, .1, x.shape)).clip(0, 1)*255).astype(np.uint8)


def write_video(path:str|Path, frames:np.ndarray, fps:int=8)->None:
    "Write grey frames `(T, H, W)` or colours `(T, H, W, 3)`, uint8, to a small MPEG-4 file"
    with av.open(str(path), 'w') as f:
        stream = f.add_stream('mpeg4', rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = 'yuv420p'
        stream.options = dict(flags='+qscale', global_quality=str(4*118))  # constant quality 4, in lambda units
        stream.codec_context.thread_count = 1
        format = 'gray' if frames.ndim == 3 else 'rgb24'
        for x in frames: f.mux(stream.encode(av.VideoFrame.from_ndarray(x, format=format)))
        f.mux(stream.encode())


def write_moving_digits(
    root:Path, # Folder to create
    part:str, # One of `PARTS`
)->None:
    "Write the videos of a part and their `manifest.csv`"
    classes = PARTS[part]
    digits = load_digits()
    images = np.stack([zoom(i, 2, order=1) for i in digits.images/16]).astype(np.float32)
    rng = np.random.default_rng([2024, list(PARTS).index(part)])
    rows = []
    for split, n in CLIPS[part].items():
        pool = np.array(IMAGES[split])
        for i in track(range(n), f'writing the videos of moving_digits, {part}: {split}'):
            label = list(classes)[i % len(classes)]
            class_digits, motion = classes[label]
            image = rng.choice(pool[np.isin(digits.target[pool], class_digits)])
            file = root/split/label/f'{i:05d}.mp4'
            file.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(motion, str): motion = rng.choice(motion)
            write_video(file, _draw(rng, images[image], motion))
            rows.append((file.relative_to(root), label, split, f'image{image}'))
    pd.DataFrame(rows, columns=['path', 'label', 'split', 'group']).to_csv(root/'manifest.csv', index=False)
