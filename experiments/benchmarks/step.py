"""What does a training step cost with protection, compared with plain fine-tuning?

    python experiments/benchmarks/step.py --memory 0   # 11 minutes on 2 CPU cores: three nets at 16x112x112
    python experiments/benchmarks/step.py --quick      # half a minute: the tiny net

Times one batch, from its forward pass to the end of the optimizer's step, without what happens once an epoch. For
each net these ways take turns: stock fastai (`fastai`, PyTorch's default memory layout), sdfast without a strategy
(`plain`, channels last), and sdfast with a strategy. On a CPU sdfast's studies keep freed memory
(`keep_freed_memory`) and fastai does not: `fastai`, `plain_handing_back` and `self_distill_handing_back` run in a
second process, which returns freed memory to the system as glibc does by default. Ratios are to `plain`, of processor
seconds on a CPU and of the wall clock on a GPU. With one thread and fewer than 16 clips, torch computes convolutions
over time alone by a slow path in any layout, which channels last make slower; with two threads it does not.

`added` is the time of a penalty on weights when measured separately (its term and its gradient), relative to the
least plain step. SelfDistill is exact by default; `self_distill_bf16` has a bf16 teacher, and
experiments/teacher_precision.py measures its effect on accuracy. `memory` is the peak of what operations returned in
the second step of a separate fit, without the model and the optimizer's state: bytes, and relative to plain; next to
it the teacher's weights and the peak of its forward pass alone, both of which it may add. A teacher renewed in each
epoch is included, since an epoch has one step in this benchmark. Prints a table a net and writes step.json to --out.
Goals: self_distill takes at most the time of fastai and 1.22 of plain; l2sp and ewc 1.02 of plain."""
import multiprocessing
import os
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # else waiting threads count as work

warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)

import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from fastcore.script import bool_arg, call_parse, store_true
from measure import Timer, in_turns, peak_bytes, set_device, show_ratios, summary, write

from sdfast.models.encoders import create_model
from sdfast.models.surgery import frozen_copy
from sdfast.runtime.memory import keep_freed_memory
from sdfast.strategies import EWC, L2SP, FixedTeacher, Importance, SelfDistill


class Clock(Callback):
    "Seconds of each batch; starts before all other callbacks"
    order = -100
    run_valid = False
    def __init__(self, timer):
        self.timer = timer
        self.taken = []

    def before_batch(self): self.since = self.timer.now()


class ClockEnd(Callback):
    "Ends a batch after all other callbacks"
    order = 1000
    run_valid = False
    def after_batch(self):
        clock = self.learn.clock
        clock.taken.append(clock.timer.now() - clock.since)


def ones(net):
    "Importance of 1 for every weight of the encoder"
    weights = dict(net[0].named_parameters())
    diag = {n:torch.ones_like(p) for n, p in weights.items()}
    start = {n:p.detach().clone() for n, p in weights.items()}
    return Importance(diag, start, 1)


WAYS = dict(fastai=lambda net: [],
            plain=lambda net: [],
            self_distill=lambda net: [SelfDistill(10.)],
            self_distill_bf16=lambda net: [SelfDistill(10., teacher_dtype='bfloat16')],
            fixed_teacher=lambda net: [FixedTeacher(10.)],
            l2sp=lambda net: [L2SP(.01)],
            ewc=lambda net: [EWC(.01, ones(net))])
# ways that run in a process with the default memory allocation
HANDING_BACK = ('fastai', 'plain_handing_back', 'self_distill_handing_back')


def make_batch(bs, frames, size, device):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(bs, frames, 3, size, size, generator=g)
    y = torch.randint(0, 101, (bs,), generator=g)
    return x.to(device), y.to(device)


def make_step(way, name, batch, device, timer):
    "`(function that does one step and returns its seconds, learner)`"
    torch.manual_seed(0)
    net = create_model(name, 101).to(device)
    if way == 'fastai':
        net[0].body.to(memory_format=torch.contiguous_format)
        net[0].forward = lambda x: net[0].body(x.transpose(1, 2).contiguous())
    clock = Clock(timer)
    dls = DataLoaders([batch], [batch], device=device)
    cbs = [clock, ClockEnd(), *WAYS[way](net)]
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9), lr=.001, wd=0., cbs=cbs)
    learn.remove_cbs([cb for cb in learn.cbs if isinstance(cb, ProgressCallback)])
    learn.logger = lambda *a: None
    learn._do_epoch_validate = lambda *a, **k: None
    def once():
        learn.fit(1)
        return clock.taken.pop()
    return once, learn


def serve(pipe, threads, name, shape):
    "Do the steps that another process asks for, and answer with their seconds"
    set_device('cpu', threads)
    batch = make_batch(*shape, 'cpu')
    made = {}
    while (way := pipe.recv()) is not None:
        if way not in made:
            made[way], _ = make_step(way.removesuffix('_handing_back'), name, batch, 'cpu', Timer('cpu'))
        pipe.send(made[way]())


@contextmanager
def second_process(threads, name, shape):
    "Name -> function of the ways that run in a second process"
    spawn = multiprocessing.get_context('spawn')
    ours, theirs = spawn.Pipe()
    other = spawn.Process(target=serve, args=(theirs, threads, name, shape), daemon=True)
    other.start()
    def ask(way):
        ours.send(way)
        return ours.recv()
    yield {w:partial(ask, w) for w in HANDING_BACK}
    ours.send(None)
    other.join()


def penalty_seconds(learn, timer, rounds):
    "Least seconds that a weight penalty's term and gradient take"
    cb = next(c for c in learn.cbs if isinstance(c, (L2SP, EWC)))
    learn.loss_grad = torch.zeros((), device=next(learn.model.parameters()).device)
    weights = list(cb.weights().values())
    held = [torch.zeros_like(w) for w in weights]
    def add_gradient():
        grads = torch.autograd.grad(cb.lam*cb.term(), weights)
        torch._foreach_add_(held, list(grads))  # as autograd does with the task's
    taken = [timer.of(add_gradient) for _ in range(rounds + 1)]
    column = 1 if timer.device == 'cpu' else 0
    return min(t[column] for t in taken[1:])


def measure_memory(name, batch, device, timer):
    "Way -> peak bytes of its second step and their ratio to plain; `teacher`: its weights, and its forward pass alone"
    peaks = {}
    for way in WAYS:
        once, learn = make_step(way, name, batch, device, timer)
        once()  # the optimizer creates its state
        peaks[way] = peak_bytes(once, device)
    plain = peaks['plain']
    rows = {way:dict(bytes=b, ratio=b/plain, added=b - plain) for way, b in peaks.items()}

    teacher = frozen_copy(learn.model[0]).train()
    def forward():
        with torch.no_grad(): teacher(batch[0])
    weights = sum(t.numel()*t.element_size() for t in teacher.state_dict().values())
    alone = peak_bytes(forward, device)
    ways = ', '.join(f'{way} {r["bytes"]/1e6:.1f} (x {r["ratio"]:.3f})' for way, r in rows.items())
    print(f'peak memory, MB: {ways}; the teacher has {weights/1e6:.1f}, its forward pass takes {alone/1e6:.1f}')
    return rows | dict(teacher=dict(weights=weights, alone=alone))


def to_fastai(rows, way):
    "Seconds of a way relative to stock fastai, of medians and of the least rounds"
    fastai = rows['fastai']
    return f'{way} {rows[way]["median"]/fastai["median"]:.3f} ({rows[way]["min"]/fastai["min"]:.3f})'


@call_parse
def main(
    models:str='r2plus1d,r2plus1d_18,c3d', # Nets, separated by commas
    bs:int=0, # Clips in a batch; 0: 4 on a CPU, 24 on a GPU
    frames:int=16, # Frames in a clip
    size:int=112, # Height and width
    rounds:int=3, # Rounds of all ways
    threads:int=0, # Threads of torch; 0: its default
    device:str='cpu', # Or cuda
    memory:bool_arg=True, # Also measure the peak memory of each way
    quick:store_true=False, # The tiny net at 8x40x40
    out:str='runs/benchmarks', # Folder for step.json
):
    "Seconds of a training step, and ratios"
    threads = threads or torch.get_num_threads()
    set_device(device, threads)
    kept = device == 'cpu' and keep_freed_memory()
    bs = bs or (4 if device == 'cpu' else 24)
    if quick:
        models, frames, size, bs = 'tiny', 8, 40, 16
        rounds = max(rounds, 10)
    timer = Timer(device)
    found = {}
    for name in models.split(','):
        batch = make_batch(bs, frames, size, device)
        other = second_process(threads, name, (bs, frames, size)) if kept else nullcontext({})
        with other as ways:
            made = {w:make_step(w, name, batch, device, timer) for w in WAYS if w not in ways}
            taken = in_turns(ways | {w:once for w, (once, _) in made.items()}, rounds)
        rows = summary(taken, 'plain', device)
        for w in ('l2sp', 'ewc'): rows[w]['added'] = penalty_seconds(made[w][1], timer, 5)/rows['plain']['min']
        show_ratios(f'{name}: a step of {bs} clips {frames}x{size}x{size}', rows)
        found[name] = rows | dict(memory=measure_memory(name, batch, device, timer)) if memory else rows
        relative = ', '.join(to_fastai(rows, way) for way in ('self_distill', 'self_distill_bf16'))
        print(f'relative to fastai, medians (least rounds): {relative}; the penalty alone adds '
              f'l2sp {rows["l2sp"]["added"]:.4f}, ewc {rows["ewc"]["added"]:.4f} of a plain step', flush=True)
        settings = dict(threads=threads, bs=bs, frames=frames, size=size, rounds=rounds)
        write(out, 'step', device, **settings, kept_freed_memory=kept, models=found)
