"""How many clips a second does the loader give, and does the model wait for them?

    python experiments/benchmarks/loader.py csv:videos/manifest.csv              # about 2 minutes on 2 CPU cores
    python experiments/benchmarks/loader.py ucf101:data --workers 0,4,8,16 --model r2plus1d_18 --device cuda --bs 32

Passes over the train part, in turns for each number of workers: decoding, random crop, flip, batch, transfer and
batch transforms included. Clips a second are those of a whole pass, including the start of its workers. Without
workers, videos that fit into memory are decoded whole in the first pass and kept: the second row of 0. One batch of
bytes crosses to the device; converting it to float and normalising it there is timed separately. With --model a
training step follows each batch, and the share of the time spent waiting for batches is reported. Writes loader.json
to --out."""
import time
import warnings

warnings.filterwarnings('ignore', category=FutureWarning)

import numpy as np
import torch
from fastcore.script import call_parse
from measure import require_device, show, synchronize, write
from torch.nn.functional import cross_entropy

from sdfast.data.datasets import create_task
from sdfast.models.encoders import create_model


def training_step(model, n_classes, device):
    "A function that takes one step of SGD on a batch"
    net = create_model(model, n_classes).to(device)
    opt = torch.optim.SGD(net.parameters(), .01)
    def step(x, y):
        opt.zero_grad()
        cross_entropy(net(x), y).backward()
        opt.step()
        synchronize(device)
    return step


def one_pass(dl, step, device):
    "Seconds to the first batch, clips a second, and the share of the time without a training step"
    n = 0
    stepping = 0.
    marks = [time.perf_counter()]
    for x, y in dl:
        synchronize(device)
        if step is not None:
            start = time.perf_counter()
            step(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
            stepping += time.perf_counter() - start
        n += len(x)
        marks.append(time.perf_counter())
    seconds = marks[-1] - marks[0]
    waiting = None if step is None else 1 - stepping/seconds
    return dict(first_batch_s=marks[1] - marks[0], clips_a_second=n/seconds, waiting=waiting)


def workers_row(name, passes):
    "Medians over the passes with one number of workers, and the best rate"
    medians = {}
    for field, value in passes[0].items():
        medians[field] = None if value is None else float(np.median([p[field] for p in passes]))
    return dict(workers=name, **medians, best=max(p['clips_a_second'] for p in passes))


def crossing_batch(dl, bs, device):
    "What crosses to the device in a batch, and milliseconds of the transforms there"
    batch = next(dl.create_batches(iter(range(bs))))
    x = batch[0]
    moved = tuple(b.to(device) for b in batch)
    taken = []
    for _ in range(10):
        start = time.perf_counter()
        dl.after_batch(moved)
        synchronize(device)
        taken.append(time.perf_counter() - start)
    milliseconds = 1e3*min(taken)
    return dict(dtype=str(x.dtype), shape=list(x.shape), megabytes=x.nbytes/1e6, contiguous=x.is_contiguous(),
                transforms_ms=milliseconds, transforms_ms_a_clip=milliseconds/bs)


@call_parse
def main(
    task:str, # As for compare.py
    workers:str='0,1,2,4', # Numbers of loading processes
    rounds:int=3, # Passes over the train part with each
    frames:int=16, # Frames in a clip
    stride:int=2, # Frames between two of a clip
    size:int=112, # Side of the square crop in pixels
    bs:int=8, # Clips in a batch
    clips:int=0, # Clips of each class at most; 0: all
    model:str='', # Model to train on the batches; none by default
    device:str='cpu', # Or cuda
    out:str='runs/benchmarks', # Folder for loader.json
):
    "Clips a second against workers"
    require_device(device)
    if device == 'cpu': torch.set_num_threads(1)
    data = create_task(task)
    if clips: data = data.subset(train=clips, test=1, valid=1)
    counts = [int(w) for w in workers.split(',')]
    shape = dict(bs=bs, flip=True, device=torch.device(device))
    all_dls = {w:data.dls(frames, stride, size, workers=w, **shape) for w in counts}
    step = training_step(model, len(data.vocab), device) if model else None

    found = {}
    for i in range(rounds):
        for w in counts:
            name = '0, from memory' if i and not w else str(w)
            found.setdefault(name, []).append(one_pass(all_dls[w].train, step, device))
    rows = [workers_row(name, passes) for name, passes in found.items()]
    show(f'{data.describe()}: clips of {frames} frames, stride {stride}, {size} pixels, batches of {bs}, to {device}, '
         f'{rounds} passes', rows)
    crossing = crossing_batch(all_dls[counts[0]].train, bs, device)
    print('crosses to the device:', crossing)
    settings = dict(frames=frames, stride=stride, size=size, bs=bs, model=model)
    write(out, 'loader', device, task=data.describe(), notes=list(data.notes), **settings, rows=rows, crossing=crossing)
