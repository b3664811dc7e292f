"""What does a training step cost with protection, compared with plain fine-tuning?

    python experiments/benchmarks/step.py --memory 0   # 11 minutes on 2 CPU cores: three nets at 16x112x112
    python experiments/benchmarks/step.py --quick      # half a minute: the tiny net

For each net the same fit with fastai as it comes (the net in PyTorch's default layout), with sdfast's (channels last, `plain`), and that with a
strategy, in turns; a batch from its forward pass to the end of the optimizer's step, without what happens once an epoch. On a CPU sdfast's studies keep freed memory
(`keep_freed_memory`), fastai does not: `fastai`, `plain_handing_back` and `self_distill_handing_back` are of a second process, which hands it back as glibc does by itself.
The ratios are to `plain`, of seconds of the process on a CPU, of the wall clock on a GPU. With one thread and less than 16 clips torch takes convolutions over time
alone by a slow way of its own, in any layout, and channels last pay for it; with two it does not. `added` is what a penalty on weights takes when measured by itself (its term and its gradient), relative to the least
plain step. SelfDistill's default is exact; `self_distill_bf16` has a
bf16 teacher, whose effect on accuracy experiments/teacher_precision.py measures. `memory` is the most that operations
returned and that was alive at once in the second step of a fit of its own, without the model and the optimizer's state: bytes, and relative to plain; beside it the teacher's weights and the peak
of its forward pass alone, both of which it may add. A teacher renewed in each epoch is counted, as here a step is one.
Prints a table a net and writes step.json to --out. Goals: self_distill at most the time of fastai and 1.22 of plain; l2sp and ewc 1.02 of plain."""
import multiprocessing
import os
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # else the threads' waiting counts as work

warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)

import torch
from bench import Timer, in_turns, peak_bytes, prepare, record, show, summary
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import SGD
from fastcore.script import bool_arg, call_parse, store_true

from sdfast.models.encoders import create_model
from sdfast.models.surgery import frozen_copy
from sdfast.runtime.memory import keep_freed_memory
from sdfast.strategies import EWC, L2SP, FixedTeacher, Importance, SelfDistill


class Clock(Callback):
    "Seconds of each batch"
    order, run_valid = -100, False
    def __init__(self, timer): self.timer, self.taken = timer, []
    def before_batch(self): self.since = self.timer.now()


class ClockEnd(Callback):
    "Behind all others, when the batch's step is done"
    order, run_valid = 1000, False
    def after_batch(self): self.learn.clock.taken.append(self.learn.clock.timer.now() - self.learn.clock.since)


def ones(net): return Importance({n:torch.ones_like(p) for n, p in net[0].named_parameters()}, {n:p.detach().clone() for n, p in net[0].named_parameters()}, 1)


WAYS = dict(fastai=lambda net: [], plain=lambda net: [], self_distill=lambda net: [SelfDistill(10.)],
            self_distill_bf16=lambda net: [SelfDistill(10., teacher_dtype='bfloat16')], fixed_teacher=lambda net: [FixedTeacher(10.)], l2sp=lambda net: [L2SP(.01)], ewc=lambda net: [EWC(.01, ones(net))])


def step(way, name, batch, device, timer):
    "A function that does one step and returns its seconds, and the learner"
    torch.manual_seed(0)
    net = create_model(name, 101).to(device)
    if way == 'fastai':
        net[0].body.to(memory_format=torch.contiguous_format)
        net[0].forward = lambda x: net[0].body(x.transpose(1, 2).contiguous())
    learn = Learner(DataLoaders([batch], [batch], device=device), net, loss_func=CrossEntropyLossFlat(), opt_func=partial(SGD, mom=.9), lr=.001, wd=0., cbs=[clock := Clock(timer), ClockEnd(), *WAYS[way](net)])
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == 'ProgressCallback'])
    learn.logger, learn._do_epoch_validate = (lambda *a: None), lambda *a, **k: None
    def once():
        learn.fit(1)
        return clock.taken.pop()
    return once, learn


APART = 'fastai', 'plain_handing_back', 'self_distill_handing_back'  # in a process as it comes


def make_batch(bs, frames, size, device):
    g = torch.Generator().manual_seed(0)
    return torch.randn(bs, frames, 3, size, size, generator=g).to(device), torch.randint(0, 101, (bs,), generator=g).to(device)


def serve(pipe, threads, name, shape):
    "In a process of its own: does the steps that it is asked for, and answers with their seconds"
    prepare('cpu', threads)
    batch, made = make_batch(*shape, 'cpu'), {}
    while (way := pipe.recv()) is not None:
        if way not in made: made[way] = step(way.removesuffix('_handing_back'), name, batch, 'cpu', Timer('cpu'))[0]
        pipe.send(made[way]())


@contextmanager
def apart(threads, name, shape):
    "Name -> function of the ways of another process"
    spawn = multiprocessing.get_context('spawn')
    ours, theirs = spawn.Pipe()
    other = spawn.Process(target=serve, args=(theirs, threads, name, shape), daemon=True)
    other.start()
    def ask(way):
        ours.send(way)
        return ours.recv()
    yield {w:partial(ask, w) for w in APART}
    ours.send(None)
    other.join()


def added(learn, timer, rounds):
    "Least seconds that the weight penalty's term and gradient take"
    cb = next(c for c in learn.cbs if isinstance(c, (L2SP, EWC)))
    learn.loss_grad = torch.zeros((), device=next(learn.model.parameters()).device)
    weights, taken = list(cb.weights().values()), []
    held = [torch.zeros_like(w) for w in weights]
    for _ in range(rounds + 1):
        since = timer.now()
        grads = torch.autograd.grad(cb.lam*cb.term(), weights)
        torch._foreach_add_(held, list(grads))  # as autograd does to the task's
        taken.append(timer.now() - since)
    return min(t[1 if timer.device == 'cpu' else 0] for t in taken[1:])


def peaks(name, batch, device, timer):
    "Way -> bytes at the peak of its second step, and their ratio to plain; `teacher`: its weights, and its forward pass alone"
    out = {}
    for way in WAYS:
        once, learn = step(way, name, batch, device, timer)
        once()  # the optimizer makes its state
        out[way] = peak_bytes(once, device)
    teacher = frozen_copy(learn.model[0]).train()
    def alone():
        with torch.no_grad(): teacher(batch[0])
    out = {w:dict(bytes=b, ratio=b/out['plain'], added=b - out['plain']) for w, b in out.items()}
    out['teacher'] = dict(weights=sum(t.numel()*t.element_size() for t in teacher.state_dict().values()), alone=peak_bytes(alone, device))
    print('peak memory, MB: ' + ', '.join(f'{w} {v["bytes"]/1e6:.1f} (x {v["ratio"]:.3f})' for w, v in out.items() if w in WAYS) + f'; the teacher has {out["teacher"]["weights"]/1e6:.1f}, its forward pass takes {out["teacher"]["alone"]/1e6:.1f}')
    return out


@call_parse
def main(
    models:str='r2plus1d,r2plus1d_18,c3d', # Nets, by commas
    bs:int=0, # Clips of a batch; 0: 4 on a CPU, 24 on a GPU
    frames:int=16, # Of a clip
    size:int=112, # Height and width
    rounds:int=3, # Of all ways
    threads:int=0, # Of torch; 0: as many as it takes by itself
    device:str='cpu', # Or cuda
    memory:bool_arg=True, # Also the peak of each way's memory
    quick:store_true=False, # The tiny net at 8x40x40
    out:str='runs/benchmarks', # Folder for step.json
):
    "Seconds of a training step, and ratios"
    prepare(device, threads := threads or torch.get_num_threads())
    kept = device == 'cpu' and keep_freed_memory()
    bs = bs or (4 if device == 'cpu' else 24)
    if quick: models, frames, size, rounds, bs = 'tiny', 8, 40, max(rounds, 10), 16
    timer, found = Timer(device), {}
    for name in models.split(','):
        batch = make_batch(bs, frames, size, device)
        with apart(threads, name, (bs, frames, size)) if kept else nullcontext({}) as ways:
            made = {w:step(w, name, batch, device, timer) for w in WAYS if w not in ways}
            rows = summary(in_turns(ways | {w:f for w, (f, _) in made.items()}, rounds), 'plain', device)
        for w in ('l2sp', 'ewc'): rows[w]['added'] = added(made[w][1], timer, 5)/rows['plain']['min']
        found[name] = rows
        show(f'{name}: a step of {bs} clips {frames}x{size}x{size}', rows)
        if memory: found[name] = rows | dict(memory=peaks(name, batch, device, timer))
        print('of fastai, medians (least rounds): ' + ', '.join(f'{w} {rows[w]["median"]/rows["fastai"]["median"]:.3f} ({rows[w]["min"]/rows["fastai"]["min"]:.3f})' for w in ('self_distill', 'self_distill_bf16')) + '; '
              f'the penalty by itself adds l2sp {rows["l2sp"]["added"]:.4f}, ewc {rows["ewc"]["added"]:.4f} of a plain step', flush=True)
        record(out, 'step', dict(bs=bs, frames=frames, size=size, rounds=rounds, kept_freed_memory=kept, models=found), device)
