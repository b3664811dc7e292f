"Two processes train one net, with the keys, queues, banks and negatives of both."
import socket
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from helpers import same
from pretraining import random_clips
from two_processes import cvrl_step, dogo_step, hdc_step, keys_net, moved_banks, work


@pytest.fixture(scope='module')
def two(tmp_path_factory, counted):
    "What each of two processes found"
    folder = tmp_path_factory.mktemp('ddp')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.spawn(work, args=(port, folder, counted), nprocs=2)
    return [torch.load(folder/f'{rank}.pt') for rank in range(2)]


@pytest.fixture
def clips():
    "Eight clips, four of each process"
    return random_clips(b=8, t=4)[:, 0]


@pytest.mark.nightly
def test_shuffled_keys_return_to_their_clips(two, clips):
    "Without batch norm the batch of a clip does not matter: keys are those of one process"
    together = torch.cat([two[0][False], two[1][False]], 1)
    torch.testing.assert_close(together, keys_net(False).heads.keys(clips))


@pytest.mark.nightly
def test_shuffled_keys_are_normalised_with_clips_of_the_other_process(two, clips):
    "They are those of one of the ways to divide eight clips between two processes, but not of the unshuffled one"
    def divided(order):
        halves = clips[list(order[:4])], clips[list(order[4:])]
        keys = torch.cat([keys_net(True).heads.keys(half) for half in halves], 1)
        return keys[:, torch.tensor(order).argsort()]
    shuffled = torch.cat([two[0][True], two[1][True]], 1)
    assert not torch.allclose(shuffled, divided(tuple(range(8))), atol=1e-3)
    ways = [first + tuple(i for i in range(8) if i not in first) for first in combinations(range(8), 4)]
    assert any(torch.allclose(divided(way), shuffled, atol=1e-5) for way in ways)


@pytest.mark.nightly
def test_queues_take_the_keys_of_all_processes_and_stay_equal(two):
    assert two[0]['queue'][0, :4].tolist() == [1., 1., 2., 2.]
    assert torch.equal(two[0]['queue'], two[1]['queue'])
    assert two[0]['trimmed'] == 8  # of 9, for two processes with batches of two


@pytest.mark.nightly
def test_cvrl_contrasts_with_the_clips_of_all_processes(two):
    "Gradients of two processes with four videos each are those of one with eight"
    alone = cvrl_step(random_clips(b=8, t=4))
    for found in two: torch.testing.assert_close(found['cvrl step'], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.nightly
def test_hdc_contrasts_with_the_views_of_all_processes(two):
    alone = hdc_step(random_clips(b=8, k=3, t=4))
    for found in two: torch.testing.assert_close(found['hdc step'], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.nightly
def test_dogo_contrasts_and_teaches_with_the_clips_of_all_processes(two):
    alone = dogo_step(random_clips(b=8, k=4, t=4))
    for found in two: torch.testing.assert_close(found['dogo step'], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.nightly
def test_banks_take_the_features_of_all_processes(two):
    "Three of one process, two of the other"
    for found in two: torch.testing.assert_close(found['banks'], moved_banks(slice(0, 5)))


@pytest.mark.nightly
@pytest.mark.parametrize(
    'name', ['rspnet', 'pace', 'order', 'cvrl', 'iic', 'memdpc', 'hdc', 'dogo', 'cycle', 'sharded'])
def test_two_processes_train_one_net(two, name):
    "Encoders, heads, queue; running statistics of batch norm are each process's, as DDP leaves them"
    def shared(found): return {k:v for k, v in found[name].items() if 'running' not in k and 'num_batches' not in k}
    a, b = map(shared, two)
    assert same(a, b)
    assert all(torch.isfinite(v).all() for v in a.values())
    assert np.allclose(two[0][f'{name}.columns'], two[1][f'{name}.columns'], equal_nan=True)


@pytest.mark.nightly
def test_videos_are_split_between_processes(two):
    "Six videos to train on and two to validate"
    epoch = [(True, 1)]*3 + [(False, 1)]
    assert two[0]['seen'] == epoch*2
