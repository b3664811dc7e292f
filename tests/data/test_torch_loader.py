"`Task.torch_dl`: plain tensors, seeded, the same with any number of loading processes."
import random
import shutil
import warnings

import pytest
import torch
from fastai.vision.core import imagenet_stats
from torch.utils.data import DataLoader

from sdfast.data.clips import SampleClips
from sdfast.data.indexing import index_video
from sdfast.data.task import Task
from sdfast.data.video import VideoError, VideoFile
from sdfast.errors import InputError


@pytest.fixture
def task(clips): return Task.from_folder(clips, group=r'(p\d)_').hold_out(.3)


SMALL = dict(frames=4, size=24, bs=4)


def same(a, b): return len(a) == len(b) and all(map(torch.equal, sum(a, ()), sum(b, ())))
def read(dl): return [tuple(b) for b in dl]


def test_plain_tensors(task):
    dl = task.torch_dl('train', **SMALL)
    assert type(dl) is DataLoader
    x, y = next(iter(dl))
    assert type(x) is type(y) is torch.Tensor
    assert x.shape == (4, 4, 3, 24, 24)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert sum(len(y) for _, y in dl) == task.count('train')
    raw, _ = next(iter(task.torch_dl('train', floats=False, **SMALL)))
    assert raw.dtype == torch.uint8
    mean, std = (torch.tensor(v)[:, None, None] for v in imagenet_stats)
    torch.testing.assert_close(x, (raw/255 - mean)/std)
    unit, _ = next(iter(task.torch_dl('train', stats=(), **SMALL)))
    torch.testing.assert_close(unit, raw/255)


def test_held_out_clips_are_those_of_fastai(task):
    "In the order of the table, the middle clip of each"
    ours = read(task.torch_dl('test', **SMALL))
    theirs = [(x.as_subclass(torch.Tensor), y.as_subclass(torch.Tensor))
              for x, y in task.dl(task.dls(**SMALL), 'test')]
    for (a, i), (b, j) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
        assert torch.equal(i, j)
    assert [task.vocab[i] for _, y in ours for i in y] == [label for _, label in task.items('test')]
    assert next(iter(task.torch_dl('valid', 'test', k=2, **SMALL)))[0].shape == (4, 2, 4, 3, 24, 24)


@pytest.mark.parametrize('kwargs', [dict(), dict(area=(.3, 1.), flip=True)], ids=['crops', 'areas'])
def test_epochs_depend_on_the_seed_alone(task, kwargs):
    def epochs(**more):
        dl = task.torch_dl('train', **SMALL, **kwargs, **more)
        return [read(dl) for _ in range(2)]
    random.seed(1)
    torch.manual_seed(1)
    first = epochs(seed=3)
    random.seed(2)
    torch.manual_seed(2)
    again, state = epochs(seed=3), (random.getstate(), torch.get_rng_state())
    assert all(map(same, first, again))
    assert all(map(same, first, epochs(seed=3, workers=2)))
    assert not same(first[0], first[1])
    assert not same(first[0], epochs(seed=4)[0])
    resumed = task.torch_dl('train', seed=3, **SMALL, **kwargs)
    resumed.sampler.set_epoch(1)
    assert same(read(resumed), first[1])
    list(task.torch_dl('train', seed=3, **SMALL))
    assert random.getstate() == state[0]  # loading draws none of the numbers of the user's loop


def test_an_index_alone_is_an_item(task):
    path, label = task.items('train')[0]
    x, y = task.torch_dl('train', **SMALL).dataset[0]
    assert x.shape == (4, 3, 24, 24)
    assert task.vocab[y] == label
    x, _ = task.torch_dl('valid', 'train', **SMALL).dataset[0]
    path = task.items('valid', 'train')[0][0]
    assert torch.equal(x, SampleClips(4, size=24)(VideoFile(path), split_idx=1).as_subclass(torch.Tensor))


@pytest.mark.parametrize('workers', [0, 1])
def test_videos_that_break_later(clips, tmp_path, workers):
    shutil.copytree(clips, tmp_path/'c')
    task = Task.from_folder(tmp_path/'c')
    train, test = (task.torch_dl(part, workers=workers, **SMALL) for part in ('train', 'test'))
    for part in ('train', 'test'): open(task.items(part)[0][0], 'wb').close()
    index_video.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert sum(len(y) for _, y in train) == task.count('train') - 1
        with pytest.raises(VideoError, match='cannot be opened'): list(test)


def test_what_makes_no_loader_is_refused(task):
    with pytest.raises(InputError, match='unknown split .*; use train, valid, test'): task.torch_dl('training')
    with pytest.raises(InputError, match='has no clips of no part'): task.torch_dl()
    with pytest.raises(InputError, match='clips make no batch of 64: take a batch size'):
        task.torch_dl('train', bs=64, drop_last=True, size=24)
    with pytest.raises(InputError, match='bs must be a whole number'): task.torch_dl('train', bs=0)
