"Pre-training in two processes; in a module of its own, as processes that are spawned import it."
import os
import random

import fastai.distributed  # noqa: F401 (patches `distrib_ctx` into `Learner`)
import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from helpers import state
from pretraining import Seed, quiet, random_clips, tiny
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sdfast.pretext import CVRL, HDC, ClipOrder, DoGo, InterIntra, MemDPC, Pace, RSPNet, TimeCycle, video_dls
from sdfast.runtime.sharded import ShardedDL


class Plain(nn.Module):
    "An encoder with batch norm or without"

    def __init__(self, norm):
        super().__init__()
        self.conv, self.num_features = nn.Conv3d(3, 6, 3, stride=2), 6
        self.bn = nn.BatchNorm3d(6) if norm else nn.Identity()

    def forward(self, x): return self.bn(self.conv(x.transpose(1, 2))).relu().mean((2, 3, 4))


def rspnet(queue=8): return RSPNet(queue=queue, dim=6)


def keys_net(norm):
    torch.manual_seed(0)
    return rspnet().build(Plain(norm)).train()


def cvrl_step(x, wrap=lambda net: net):
    "Gradients of a step of CVRL"
    torch.manual_seed(0)
    m = CVRL(layers=0, dim=4)
    net = m.build(Plain(False)).train()
    wrapped = wrap(net)  # DDP sums gradients while it lives
    m.loss(wrapped(x), None).backward()
    return {n:p.grad for n, p in net.named_parameters()}


def hdc_step(x, wrap=lambda net: net):
    "Gradients of a step of HDC"
    torch.manual_seed(0)
    m = HDC(layers=('conv', 'bn'), channels=(6, 6), dim=4)
    net = m.build(Plain(False)).train()
    wrapped = wrap(net)
    m.loss(wrapped(x), None).backward()
    return {n:p.grad for n, p in net.named_parameters()}


def dogo_step(x, wrap=lambda net: net):
    "Gradients of a step of DoGo"
    torch.manual_seed(0)
    m = DoGo(layers=0, dim=4)
    net = m.build(Plain(False)).train()
    wrapped = wrap(net)
    m.loss(wrapped(x), None).backward()
    return {n:p.grad for n, p in net.named_parameters()}


def moved_banks(part):
    "Rows of the banks after an update with a part of five videos"
    torch.manual_seed(0)
    banks = InterIntra(videos=6).heads(4)
    f, index = torch.randn(3, 5, 4), torch.tensor([5, 0, 3, 1, 2])
    banks.update(f[:, part], index[part], .5)
    return banks.rows


class DDP(Callback):
    "Wraps the model as fastai's `DistributedTrainer` does, and leaves the loaders alone"
    order = 11
    def before_fit(self): self.learn.model = DistributedDataParallel(self.learn.model)
    def after_fit(self): self.learn.model = self.learn.model.module


def weights(encoder, method):
    "Of the encoder and of the method's heads"
    return state(encoder) | {f'heads.{k}':v for k, v in state(method.pretext_net.heads).items()}


def work(rank, port, folder, videos):
    "What process `rank` of two does; writes its findings to `folder`"
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2')
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    found = parts(rank)
    found |= separate_loaders(rank, videos)
    found |= sharded_loader(rank, videos)
    torch.save(found, f'{folder}/{rank}.pt')
    dist.destroy_process_group()


def parts(rank):
    "Keys, queue, gradients and banks of methods"
    mine, found = random_clips(b=8, t=4)[4*rank:4*rank + 4], {}
    for norm in (False, True):
        torch.manual_seed(1 + rank)
        found[norm] = keys_net(norm).heads.keys(mine[:, 0])
    net = keys_net(False)
    net.heads.enqueue(torch.full((2, 6), 1. + rank))
    found['queue'] = net.heads.queue
    found['cvrl step'] = cvrl_step(mine, DistributedDataParallel)
    three, four = random_clips(b=8, k=3, t=4), random_clips(b=8, k=4, t=4)
    found['hdc step'] = hdc_step(three[4*rank:4*rank + 4], DistributedDataParallel)
    found['dogo step'] = dogo_step(four[4*rank:4*rank + 4], DistributedDataParallel)
    found['banks'] = moved_banks(slice(3*rank, 3 + 2*rank))
    return found


def separate_loaders(rank, videos):
    "Fits of two epochs, each process on its own videos"
    methods = dict(rspnet=rspnet(9), pace=Pace(paces=(1, 2)), order=ClipOrder(gap=2, hidden=4),
                   cvrl=CVRL(hidden=4, dim=4), iic=InterIntra(negatives=2),
                   memdpc=MemDPC(blocks=4, steps=2, slots=5), hdc=HDC(dim=4), dogo=DoGo(hidden=4, dim=4),
                   cycle=TimeCycle(steps=2, ahead=1, dim=8))
    found = {}
    for name, method in methods.items():
        dls = video_dls(videos[3*rank:3*rank + 3], videos[:2], frames=4, size=24, bs=2)
        learn = quiet(dls, encoder := tiny(rank), method)
        torch.manual_seed(rank), random.seed(rank)
        learn.fit(2, cbs=DDP())
        assert learn.model is encoder
        found[name] = weights(encoder, method)
        found[f'{name}.columns'] = list(learn.recorder.values[-1])[2:]
    found['trimmed'] = methods['rspnet'].queue
    return found


def sharded_loader(rank, videos):
    "A fit of two epochs as under `torchrun` with fastai's own trainer: one set of videos, split between processes"
    learn = quiet(video_dls(videos, videos[:2], frames=4, size=24, bs=1), encoder := tiny(rank), method := rspnet(9))
    seen = []
    class See(Callback):
        order = 50
        def before_batch(self): seen.append((self.learn.training, len(self.learn.x)))
    def sharded(dl): return dl if isinstance(dl, ShardedDL) else ShardedDL(dl, device=torch.device('cpu'))
    with learn.distrib_ctx(sync_bn=False, cpu=True):
        learn.distributed_trainer._wrap_dl = sharded
        learn.fit(2, cbs=[Seed(), See()])
    return {'sharded': weights(encoder, method), 'sharded.columns': list(learn.recorder.values[-1])[2:], 'seen': seen}
