"Which clips of the training data a batch has: found by looking for each row among the data."
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.data.load import SkipItemException
from fastai.data.transforms import ItemGetter
from fastai.losses import CrossEntropyLossFlat
from helpers import data, learner, model
from torch import nn
from torch.utils.data import DataLoader

from sdfast.errors import InputError
from sdfast.strategies import ClipNumbers
from sdfast.strategies import clip_numbers as module
from sdfast.strategies.core import BaseStrategy
from sdfast.strategies.driver import Driver


class Look(Driver):
    "Compare the numbers of each batch with the rows of the data"
    run_valid = False
    def __init__(self): self.numbers, self.found, self.sizes = ClipNumbers('Look'), [], []

    def after_loss(self):
        numbers, x = self.numbers(self.loop), self.learn.xb[0]
        items = torch.stack([self.learn.dls.train_ds[int(i)][0] for i in numbers])
        assert torch.equal(items, x.as_subclass(torch.Tensor))
        self.found += numbers.tolist()
        self.sizes.append(len(numbers))


class Skips:
    "Items of which one cannot be read"
    def __init__(self, at): self.at, self.n = at, -1
    def __call__(self, x):
        self.n += 1
        if self.n == self.at: raise SkipItemException()
        return x


def loaders(n=20, workers=0, tfms=(), cls=TfmdDL, **kwargs):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 1, 6, 6, generator=g), torch.randint(0, 3, (n,), generator=g)
    sets = Datasets(list(zip(x, y)), tfms=[[ItemGetter(0)], [ItemGetter(1)]], splits=[range(n), range(4)])
    train = cls(sets.train, bs=8, num_workers=workers, after_item=list(tfms), **kwargs)
    return DataLoaders(train, TfmdDL(sets.valid, bs=4, num_workers=0), device='cpu')


@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('drop_last', [False, True])
def test_a_learner_knows_them(shuffle, drop_last):
    look = Look()
    learner(look, loaders(shuffle=shuffle, drop_last=drop_last)).fit(2)
    assert look.sizes == ([8, 8] if drop_last else [8, 8, 4])*2
    epochs = [look.found[:len(look.found)//2], look.found[len(look.found)//2:]]
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    assert (epochs[0] == epochs[1]) != shuffle


def test_loading_processes_keep_the_order():
    look = Look()
    learner(look, loaders(shuffle=True, workers=2)).fit(1)
    assert sorted(look.found) == list(range(20))


def test_a_skipped_clip_moves_all_that_follow_and_is_noticed():
    with pytest.raises(InputError, match='Look cannot tell which clips a batch has: its labels .*broken videos'):
        learner(Numbers(), loaders(40, tfms=[Skips(3)])).fit(1)
    with pytest.raises(InputError, match='the number of each of the 7 clips'):  # no label gives it away
        learner(Numbers(), DataLoaders(_same_labels(), data().valid, device='cpu')).fit(1)


def _same_labels():
    rows = [(torch.randn(1, 6, 6), torch.tensor(1)) for _ in range(8)]
    sets = Datasets(rows, tfms=[[ItemGetter(0)], [ItemGetter(1)]])
    return TfmdDL(sets, bs=8, num_workers=0, after_item=[Skips(3)])


class Numbers(Look):
    def after_loss(self): self.found += self.numbers(self.loop).tolist()


def test_what_is_no_clip_by_itself_is_refused():
    class Named(Numbers):
        def __init__(self): self.numbers, self.found = ClipNumbers('Look'), []
    for cbs in ([Named(), MixUp(.4)], [Named(), Swap()]):
        with pytest.raises(InputError, match='Look remembers each clip, and (MixUp|Swap) mixes those of a batch'):
            learner(cbs).fit(1)


class Swap(Callback):
    "A loss of its own"
    run_valid = False
    def before_train(self): self.old, self.learn.loss_func = self.learn.loss_func, self.lf
    def after_train(self): self.learn.loss_func = self.old
    def lf(self, pred, y): return F.cross_entropy(pred, y.flip(0))


def test_loaders_without_an_order_are_refused():
    rows = [(x, y) for x, y in data().train.dataset]
    torch_dls = DataLoaders(DataLoader(rows, batch_size=8), DataLoader(rows, batch_size=8), device='cpu')
    with pytest.raises(InputError, match="Look needs to know which clips .* take fastai's DataLoader"):
        learner(Numbers(), torch_dls).fit(1)


class Seeing(BaseStrategy):
    "A strategy that asks in a plain loop"
    def __init__(self): self.numbers = ClipNumbers('Seeing')


def test_other_loops_give_them():
    net, seen = model(), Seeing()
    with seen.attach(net, criterion=CrossEntropyLossFlat()):
        seen.start_epoch()
        net(torch.randn(4, 1, 6, 6))
        with pytest.raises(InputError, match=r'Seeing needs to know .* call loss\(targets, numbers\)'):
            seen.numbers(seen.loop)
        seen.loop.numbers = [3, 1, 0, 7]
        assert seen.numbers(seen.loop).tolist() == [3, 1, 0, 7]
        for wrong in ([1, 2, 3], [1., 2., 3., 4.], [-1, 0, 1, 2], [[1, 2], [3, 4]]):
            seen.loop.numbers = wrong
            with pytest.raises(InputError, match='number of each of the 4 clips of a batch, whole numbers of at least'):
                seen.numbers(seen.loop)


def test_processes_join_what_they_saw(monkeypatch):
    "Once for each clip, though a loader may repeat some to make the parts equal"
    theirs = torch.tensor([4, 0]), torch.tensor([[.4], [.9]])
    def gather(parts, mine): parts[:] = [mine, theirs]
    mine = torch.tensor([2, 0, 1]), torch.tensor([[.2], [.0], [.1]])
    assert module.gathered(*mine)[0] is mine[0]
    monkeypatch.setattr(module.dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(module.dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(module.dist, 'all_gather_object', gather)
    numbers, values = module.gathered(*mine)
    assert numbers.tolist() == [2, 0, 1, 4]
    torch.testing.assert_close(values, torch.tensor([[.2], [.0], [.1], [.4]]))


def test_a_model_that_returns_an_object():
    class Objects(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model()
        def forward(self, pixel_values): return dict(logits=self.net(pixel_values))
    net, seen = Objects(), Seeing()
    with seen.attach(net, encoder='net.0'):
        seen.start_epoch()
        net(pixel_values=torch.randn(2, 1, 6, 6))
        seen.loop.numbers = torch.tensor([5, 6])
        assert seen.numbers(seen.loop).tolist() == [5, 6]
