"Estimate how long runs will take on this machine, from a few timed steps."
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from fastai.torch_core import default_device
from torch.nn.functional import cross_entropy

from ..data.clips import SampleClips
from ..data.datasets import create_task
from ..data.video import VideoFile
from ..models.encoders import create_model
from .config import Run

__all__ = ['StepSeconds', 'time_steps', 'time_loading', 'estimate_run']

CLASSES = 101  # of the head that is timed


@dataclass(frozen=True)
class StepSeconds:
    "Seconds per clip"
    plain: float  # for a training step
    distilled: float  # for a training step with a teacher
    forward: float  # for a forward pass without gradients


def time_steps(
    run:Run, # Its model, clip and batch size are used
)->StepSeconds: # Seconds of each
    """Time training steps, plain and with a teacher, and forward passes.

    A batch has two clips on a CPU, and the run's batch size on a GPU."""
    device = default_device()
    n = run.bs if device.type == 'cuda' else 2
    model = create_model(run.model, CLASSES, **run.options()).to(device)
    teacher = create_model(run.model, CLASSES, **run.options())[0].to(device)
    opt = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=.9)
    x = torch.randn(n, run.frames, 3, run.size, run.size, device=device)
    y = torch.zeros(n, dtype=torch.long, device=device)

    def step(lam):
        f = model[0](x)
        loss = cross_entropy(model[1](f), y)
        if lam:
            with torch.no_grad(): target = teacher(x)
            loss = loss + lam*(f - target).square().mean()
        loss.backward()
        opt.step()
        opt.zero_grad()

    @torch.no_grad()
    def forward(): model[0](x)

    return StepSeconds(*(clock(f, device)/n for f in (lambda: step(0), lambda: step(1), forward)))


def clock(
    f:Callable, # Called three times, without arguments
    device:torch.device, # Synchronised before the clock is read
)->float: # Mean seconds of a call
    "Time the second and third of three calls of a function"
    def wait():
        if device.type == 'cuda': torch.cuda.synchronize()
    f()
    wait()
    start = time.perf_counter()
    for _ in range(2): f()
    wait()
    return (time.perf_counter() - start)/2


def time_loading(
    run:Run, # Its task and clip are used
    n:int=8, # Number of videos
)->float: # Seconds per clip
    "Time decoding and cropping of training clips in one process"
    area = (run.area, 1.) if run.area else None
    sample = SampleClips(run.frames, run.stride, run.size, area=area, wrap=run.wrap)
    sample.train = True
    paths = create_task(run.task).df.path.sample(n, random_state=0, replace=True)
    videos = [VideoFile(p) for p in paths]
    start = time.perf_counter()
    for v in videos: sample.encodes(v)
    return (time.perf_counter() - start)/n


def estimate_run(
    run:Run, # A final run
    n_train:int, # Number of videos in train, including the part to hold out
    n_test:int, # Number of videos in test
    seconds:StepSeconds, # From `time_steps`
    load:float=0., # Seconds to load a clip, from `time_loading` divided by the processes that load
)->tuple[int, float]: # `(steps, hours)`
    "Estimate the length of a run; on a GPU loading and training overlap"
    n_valid = round(n_train*run.valid_frac)
    trained = run.epochs*(n_train - n_valid)
    watched = n_test if run.select == 'paper' else n_valid  # in each epoch
    tests = 1 + (run.select != 'last')
    seen = run.epochs*watched + run.clips*n_test*tests
    compute = trained*(seconds.distilled if run.lam else seconds.plain) + seen*seconds.forward
    read = (trained + seen)*load
    overlap = run.workers and default_device().type == 'cuda'
    total = max(compute, read) if overlap else compute + read
    steps = run.epochs*((n_train - n_valid)//run.bs)
    return steps, total/3600


def loading_processes(run:Run)->int: # At least 1
    "How many processes load clips at once on this machine"
    return max(1, min(run.workers, os.cpu_count() or 1))
