"The same training in a plain loop, in Lightning and in `transformers.Trainer`."
import logging
import os
import socket
import warnings
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, model
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from sdfast.strategies import logits_of

SIZES = {'lower_lr': 1., 'lp_ft': 1., 'layer_decay': 1., 'stoch_norm': .5, 'wise_ft': .3}  # strengths, else .3


def rows(n=48, part='train', dtype=torch.float32):
    "Images and labels in a fixed order"
    return [(x.to(dtype), y) for x, y in getattr(data(n=n), part).dataset]


def loader(n=48, bs=8, part='train', dtype=torch.float32): return DataLoader(rows(n, part, dtype), batch_size=bs)


def half_loader(rank):
    "Each process's half of the batches of `loader`"
    items = rows(dtype=torch.float64)
    return DataLoader(items, batch_size=4, sampler=DistributedSampler(items, 2, rank, shuffle=False))


class Smooth(Net):
    "Without a kink, at which the last bit of a sum would decide"
    def forward(self, x): return self.out(self.drop(nn.functional.softplus(self.bn(self.conv(x)))).flatten(1))


def smooth_net():
    "A net that computes the same for halves of a batch, in double precision"
    net = model()
    net[0].__class__, net[0].bn = Smooth, nn.GroupNorm(2, 4)
    return net.double()


def sgd(net): return torch.optim.SGD(net.parameters(), lr=.1, momentum=.9)


# strategies that call the model or the encoder themselves
OWN_PASSES = 'co_tuning', 'flow', 'lines', 'r3f', 'replay', 'wise_ft', 'wise_ft_depth'


def plainly(net, strategies, dl=None, epochs=2, accumulate=1, clip=0., half=False, seed=1, apart=False,
            always_half=False):
    """Train in plain PyTorch.

    With `apart` each pass casts the weights by itself, so the gradients of two passes in a step are added in single
    precision: trainers enter autocast for the model and for the terms. With `always_half` the model computes in half
    precision between steps, too: that of transformers' Trainer enters autocast by itself."""
    dl, opt = dl or loader(), sgd(net)
    torch.manual_seed(seed)
    def autocast(on):
        return torch.autocast('cpu', torch.bfloat16, cache_enabled=not apart) if on else nullcontext()
    with autocast(half and always_half):
        for s in strategies: s.attach(net, opt, epochs=epochs, batches=dl)
    for _ in range(epochs):
        net.train()
        with autocast(half and always_half):
            for s in strategies: s.start_epoch()
        for i, (x, y) in enumerate(dl, 1):
            with autocast(half):
                loss = F.cross_entropy(logits_of(net(x)), y)
                for s in strategies:
                    if hasattr(s, 'loss'): loss = loss + s.loss(y)
            (loss/accumulate).backward()
            if i % accumulate: continue
            if clip: nn.utils.clip_grad_norm_(net.parameters(), clip)
            opt.step()
            for s in strategies: s.after_step()
            opt.zero_grad()
    with autocast(half and always_half):
        for s in strategies: s.detach()
    return net


def assert_same(a, b, tolerance=1e-6):
    for (k, v), w in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(w, v, rtol=tolerance, atol=tolerance, msg=lambda m, k=k: f'{k}: {m}')


# ---- Lightning

def lightning():
    "Lightning, silent"
    L = pytest.importorskip('lightning', reason="pip install -e '.[lightning]'")
    for name in ('lightning.pytorch', 'lightning.fabric'): logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings('ignore', module='lightning')
    return L


def lightning_module(net, step=None):
    "A module whose `training_step` calls `self.net`, or `step(self, batch)`"
    L = lightning()
    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch, batch_idx):
            if step is not None: return step(self, batch)
            x, y = batch
            loss = F.cross_entropy(self.net(x), y)
            self.log('train_loss', loss, on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch, batch_idx):
            x, y = batch
            self.log('valid_loss', F.cross_entropy(self.net(x), y))

        def configure_optimizers(self): return sgd(self)
    return Module()


def lightning_trainer(*callbacks, late=False, **options):
    "A silent trainer, and a random state; with `late` it is set again when a fit starts, as for LoRA's first weights"
    L = lightning()
    class Seed(L.Callback):
        def on_train_start(self, trainer, module):
            if late: torch.manual_seed(1)
    torch.manual_seed(1)
    quiet = dict(max_epochs=2, accelerator='cpu', devices=1, logger=False, enable_checkpointing=False,
                 enable_progress_bar=False, enable_model_summary=False)
    return L.Trainer(**quiet | options, callbacks=[Seed(), *callbacks])


class Stateful:
    "A loader that resumes where it stopped, as Lightning's documentation asks for"
    def __init__(self, dl):
        self.batches, self.done = list(dl), 0
        self.dataset, self.batch_size, self.collate_fn = dl.dataset, dl.batch_size, dl.collate_fn

    def __len__(self): return len(self.batches)

    def __iter__(self):
        if self.done == len(self): self.done = 0
        while self.done < len(self):
            self.done += 1
            yield self.batches[self.done - 1]

    def state_dict(self): return dict(done=self.done)
    def load_state_dict(self, state): self.done = state['done']


# ---- transformers

class Output(nn.Sequential):
    "A model that is called with keywords and returns its loss, as those of transformers do"
    def forward(self, pixel_values, labels=None):
        logits = super().forward(pixel_values)
        return dict(logits=logits) if labels is None else dict(loss=F.cross_entropy(logits, labels), logits=logits)


def hf_rows(*args, **kwargs): return [dict(pixel_values=x, labels=y) for x, y in rows(*args, **kwargs)]


def in_order(trainer_class):
    "A Trainer class that does not shuffle"
    class InOrder(trainer_class):
        def _get_train_sampler(self, *args): return SequentialSampler(self.train_dataset)
    return InOrder


def hf_trainer(folder, net, strategies=(), n=48, base=None, optimizer=None, dtype=torch.float32, trainer=None,
               eval_rows=None, **options):
    "A silent Trainer with strategies; `options` are those of `TrainingArguments`, `trainer` further ones of its own"
    transformers = pytest.importorskip('transformers', reason="pip install -e '.[hf]'")
    from sdfast.hf import with_strategies
    transformers.logging.set_verbosity_error()
    quiet = dict(num_train_epochs=2, per_device_train_batch_size=8, learning_rate=.1, lr_scheduler_type='constant',
                 max_grad_norm=0., save_strategy='no', report_to=[], use_cpu=True, disable_tqdm=True, seed=1,
                 logging_strategy='epoch', remove_unused_columns=False)
    args = transformers.TrainingArguments(str(folder), **quiet | options)
    made = with_strategies(in_order(base or transformers.Trainer))(
        net, args, train_dataset=hf_rows(n, dtype=dtype), eval_dataset=eval_rows, strategies=strategies,
        optimizers=(optimizer or sgd(net), None), **trainer or {})
    made.remove_callback(transformers.PrinterCallback)
    torch.manual_seed(1)
    return made


# ---- two processes

def in_two(work, *args):
    "Fork two processes that call `work(rank, *args)`, ready to join a gloo group; raises if one fails"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    context = torch.multiprocessing.get_context('fork')
    processes = [context.Process(target=_process, args=(rank, port, work, args)) for rank in range(2)]
    for p in processes: p.start()
    for p in processes: p.join(240)
    codes = [p.exitcode for p in processes]
    for p in processes:
        if p.is_alive(): p.kill()
    assert codes == [0, 0], f'exit codes {codes}'


def _process(rank, port, work, args):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2', RANK=str(rank),
                      LOCAL_RANK=str(rank), NODE_RANK='0', LOCAL_WORLD_SIZE='2')
    torch.set_num_threads(1)
    if find_spec('accelerate'): _forget_processes()
    work(rank, *args)


def _forget_processes():
    "Drop what accelerate knows of the process that was forked"
    from accelerate.state import AcceleratorState, PartialState
    AcceleratorState._reset_state(True)
    PartialState._reset_state()
