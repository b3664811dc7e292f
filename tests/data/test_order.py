"Loaders that give other clips each time they are read are refused, whatever the reason."
import random

import pytest
import torch
from fastai.data.core import Datasets, TfmdDL
from fastai.distributed import DistributedDL
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from sdfast.data.clips import SampleClips
from sdfast.data.order import check_order, check_trace, trace
from sdfast.data.task import Task
from sdfast.errors import InputError

CLIPS = TensorDataset(torch.rand(10, 3, 4, 4), torch.arange(10) % 2)


@pytest.mark.parametrize('loader', [
    lambda: DataLoader(CLIPS, 4, shuffle=True),
    lambda: DataLoader(CLIPS, 4, sampler=RandomSampler(CLIPS)),
    lambda: DataLoader(CLIPS, 4, sampler=SubsetRandomSampler(range(8))),
    lambda: DataLoader(CLIPS, 4, sampler=WeightedRandomSampler(torch.ones(10), 10)),
    lambda: DataLoader(CLIPS, batch_sampler=BatchSampler(RandomSampler(CLIPS), 4, False)),
    lambda: DataLoader(CLIPS, 4, sampler=DistributedSampler(CLIPS, num_replicas=2, rank=0, shuffle=False)),
    lambda: DataLoader(CLIPS, 4, sampler=DistributedSampler(CLIPS, num_replicas=1, rank=0)),
    lambda: TfmdDL(Datasets(CLIPS), bs=4, shuffle=True, num_workers=0),
    lambda: DistributedDL(TfmdDL(Datasets(CLIPS), bs=4, num_workers=0), rank=0, world_size=2),
    lambda: iter(DataLoader(CLIPS, 4)),
    lambda: (batch for batch in DataLoader(CLIPS, 4)),
])
def test_loaders_without_a_fixed_order(loader):
    with pytest.raises(InputError, match=r'^it (shuffles|reads other clips|can be read only once)'):
        check_order('it', loader())


@pytest.mark.parametrize('loader', [
    lambda: None,
    lambda: list(DataLoader(CLIPS, 4)),
    lambda: DataLoader(CLIPS, 4),
    lambda: DataLoader(CLIPS, 5, drop_last=True),
    lambda: DataLoader(CLIPS, 4, sampler=DistributedSampler(CLIPS, num_replicas=1, rank=0, shuffle=False)),
    lambda: TfmdDL(Datasets(CLIPS), bs=4, num_workers=0),
])
def test_loaders_with_a_fixed_order(loader, recwarn):
    check_order('it', loader())
    assert not [w for w in recwarn if 'drops' in str(w.message)]


def test_train_loaders_augment_even_if_they_do_not_shuffle(clips):
    dls = Task.from_folder(clips, group=r'(p\d)_').dls(frames=4, size=24, bs=4)
    with pytest.raises(InputError, match='it shuffles'): check_order('it', dls.train)
    with pytest.raises(InputError, match='it augments'): check_order('it', dls.train.new(shuffle=False))
    with pytest.raises(InputError, match='it augments'):
        check_order('it', TfmdDL(dls.train_ds, bs=4, num_workers=0, after_item=[SampleClips(4, size=24)]))
    check_order('it', dls.valid)


@pytest.mark.parametrize('loader', [
    lambda: DataLoader(CLIPS, 4, drop_last=True),
    lambda: DataLoader(CLIPS, batch_sampler=BatchSampler(range(10), 4, True)),
    lambda: TfmdDL(list(CLIPS), bs=4, drop_last=True, num_workers=0),
])
def test_a_dropped_batch_is_named(loader):
    with pytest.warns(UserWarning, match='it drops its last batch: 2 of 10 clips are not measured'):
        check_order('it', loader())


def test_the_same_clips_are_recognised():
    x = torch.rand(6, 8, 3, 64, 64)
    for again in (x, x.double(), x*(1 + 1e-7)): check_trace('it', trace(x), trace(again))
    bytes_ = (255*x).to(torch.uint8)
    check_trace('it', trace(bytes_), trace(bytes_.clone()))


@pytest.mark.parametrize('change', [
    lambda x: x.flip(-1), lambda x: x.flip(0), lambda x: x.roll(1, -2), lambda x: x.roll(1, 1), lambda x: .99*x,
    lambda x: x[:-1], lambda x: torch.cat([x[1:2], x[1:]]),
], ids=['mirrored', 'order', 'shifted', 'another start', 'darker', 'fewer', 'one drawn twice'])
@pytest.mark.parametrize('shape', [(6, 8, 3, 64, 64), (6, 2, 4, 3, 24, 24), (6, 5)], ids=str)
def test_other_clips_are_recognised(change, shape):
    torch.manual_seed(0)
    x = torch.rand(shape)
    if len(shape) == 2 and change(x).shape == x.shape: x = x[:, :, None, None].expand(6, 5, 5, 5)*torch.rand(5, 5, 5)
    with pytest.raises(InputError, match='^it (gives other clips|gave 6 clips)'):
        check_trace('it', trace(x), trace(change(x)))


def test_a_digit_on_black_is_recognised():
    x = torch.zeros(4, 8, 3, 40, 40)
    x[..., 5:15, 3:13] = random.Random(0).random()
    with pytest.raises(InputError, match='gives other clips'): check_trace('it', trace(x), trace(x.flip(-1)))
