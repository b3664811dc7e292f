"""How many clips a second does the loader give, and does the model wait for them?

    python experiments/benchmarks/loader.py csv:videos/manifest.csv              # about 2 minutes on 2 CPU cores
    python experiments/benchmarks/loader.py ucf101:data --workers 0,4,8,16 --model r2plus1d_18 --device cuda --bs 32

Passes over the train part, clips of --frames and --stride, decoding, random crop, flip, batch, transfer and batch transforms included, for each number of
workers, in turns; clips a second are those of a whole pass, the start of its workers included. With no worker videos that fit are decoded whole in the first pass and kept in
memory: the second row of 0. What crosses to the device is one batch of bytes; turning it to float and normalising it there is timed by itself. With --model
a training step is done on each batch, and the part of the time spent waiting for batches is told. Writes JSON to --out."""
import time
import warnings

warnings.filterwarnings('ignore', category=FutureWarning)

import numpy as np
import torch
from fastcore.script import call_parse
from measure import need, show, write
from torch.nn.functional import cross_entropy

from sdfast.data.datasets import create_task
from sdfast.models.encoders import create_model


@call_parse
def main(
    task:str, # As for compare.py
    workers:str='0,1,2,4', # Numbers of loading processes
    rounds:int=3, # Passes over the train part with each
    frames:int=16, # In a clip
    stride:int=2, # Frames between two of a clip
    size:int=112, # Side of the square crop in pixels
    bs:int=8, # Clips in a batch
    clips:int=0, # Of each class at most; 0: all
    model:str='', # Train this one meanwhile
    device:str='cpu', # Or cuda
    out:str='runs/benchmarks', # Folder for loader.json
):
    "Clips a second against workers"
    need(device)
    if device == 'cpu': torch.set_num_threads(1)
    data, counts = create_task(task), [int(w) for w in workers.split(',')]
    if clips: data = data.subset(train=clips, test=1, valid=1)
    def wait():
        if device.startswith('cuda'): torch.cuda.synchronize()
    def loaders(w): return data.dls(frames, stride, size, bs=bs, workers=w, flip=True, device=torch.device(device))
    all_dls = {w:loaders(w) for w in counts}
    net = create_model(model, len(data.vocab)).to(device) if model else None
    opt = torch.optim.SGD(net.parameters(), .01) if model else None

    def step(x, y):
        opt.zero_grad()
        cross_entropy(net(x), y).backward()
        opt.step()

    def one_pass(dl):
        n, marks, stepping = 0, [time.perf_counter()], 0.
        for x, y in dl:
            wait()
            if net is not None:
                start = time.perf_counter()
                step(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
                wait()
                stepping += time.perf_counter() - start
            n += len(x)
            marks.append(time.perf_counter())
        return dict(first_batch_s=marks[1] - marks[0], clips_a_second=n/(marks[-1] - marks[0]), waiting=1 - stepping/(marks[-1] - marks[0]) if net is not None else None)

    found = {}
    for i in range(rounds):
        for w in counts: found.setdefault(f'{w}' if w or not i else '0, from memory', []).append(one_pass(all_dls[w].train))
    rows = [dict(workers=k, **{f:None if v[0][f] is None else float(np.median([r[f] for r in v])) for f in v[0]}, best=max(r['clips_a_second'] for r in v)) for k, v in found.items()]
    show(f'{data.describe()}: clips of {frames} frames, stride {stride}, {size} pixels, batches of {bs}, to {device}, {rounds} passes', rows)

    # what crosses to the device, and what is done there
    dl = all_dls[counts[0]].train
    batch = next(dl.create_batches(iter(range(bs))))
    x = batch[0]
    moved = tuple(b.to(device) for b in batch)
    took = []
    for _ in range(10):
        start = time.perf_counter()
        dl.after_batch(moved)
        wait()
        took.append(time.perf_counter() - start)
    crossing = dict(dtype=str(x.dtype), shape=list(x.shape), megabytes=x.nbytes/1e6, contiguous=x.is_contiguous(), transforms_ms=1e3*min(took), transforms_ms_a_clip=1e3*min(took)/bs)
    print('crosses to the device:', crossing)
    write(out, 'loader', device, task=data.describe(), notes=list(data.notes), frames=frames, stride=stride, size=size, bs=bs, model=model, rows=rows, crossing=crossing)
