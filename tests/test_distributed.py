"Two gloo processes that train together through fastai's `distrib_ctx`, with each strategy, equal one process."
import os
import socket
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Source, learner, model
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.transforms import ItemGetter
from fastai.metrics import accuracy
from torch import nn

from sdfast.launch import join_processes
from sdfast.strategies import STRATEGIES, fisher_information
from sdfast.study import Seeded, _together


def net(name=''):
    m = model()
    # batch norm itself depends on which images share a process, unless it is frozen
    if name not in ('frozen_bn', 'linear_probe', 'lora'): m[0].bn = nn.GroupNorm(2, 4)
    return m


def loaders(rank, world, n=48, bs=16):
    "Loaders of all items, shuffled for training, with each process's share of a batch. A valid part of no whole number of batches"
    g = torch.Generator().manual_seed(0)
    items = list(zip(torch.randn(n, 1, 6, 6, generator=g), torch.randint(0, 3, (n,), generator=g)))
    sets = Datasets(items, tfms=[[ItemGetter(0)], [ItemGetter(1)]], splits=[range(n), range(11)])
    return DataLoaders(TfmdDL(sets.train, bs=bs//world, num_workers=0, shuffle=True, drop_last=True), TfmdDL(sets.valid, bs=8//world, num_workers=0), device='cpu')


def train(name, rank=0, world=1):
    m = net(name)
    source = Source(m)
    source.batches = loaders(0, 1).valid
    learn = learner([*STRATEGIES[name].callbacks(.5, source), Seeded(3)], dls=loaders(rank, world), net=m, metrics=accuracy)
    with _together(learn): learn.fit(3)
    return [p.detach() for p in learn.model.parameters()] + [torch.tensor(learn.recorder.values[-1][2])]


# not so by nature: a spectrum of the batch (bss), noise drawn for each process (r3f), batch norm that is not frozen (stoch_norm)
SAME = [n for n in STRATEGIES if n not in ('bss', 'r3f', 'stoch_norm') and (n != 'lora' or find_spec('peft'))]


def fisher(rank, world):
    "Of each process's part of the samples, put together"
    return fisher_information(net(), list(loaders(0, 1).valid)[rank::world]).diag


def work(rank, port, folder):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2', RANK=str(rank), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    join_processes()
    out, failed = {}, {}
    for name in SAME:
        try: out[name] = train(name, rank, 2)
        except Exception as e: failed[name] = repr(e)
    out |= dict(fisher=fisher(rank, 2), failed=failed)
    if rank == 0: torch.save(out, f'{folder}/ddp.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ddp')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.spawn(work, args=(port, folder), nprocs=2)
    return torch.load(folder/'ddp.pt')


@pytest.mark.parametrize('name', SAME)
def test_two_processes_equal_one(two, name):
    assert name not in two['failed'], two['failed'][name]
    for a, b in zip(two[name], train(name)): torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_fisher_of_two_processes_is_that_of_all_samples(two):
    for a, b in zip(two['fisher'].values(), fisher(0, 1).values()): torch.testing.assert_close(a, b)
