"What `Retention` accepts: loaders that give the same clips again, labels that are class numbers, heads that fit them."
import copy
import itertools
from types import SimpleNamespace as NS

import pytest
import torch
from helpers import data, model
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sdfast.errors import InputError
from sdfast.metrics.features import probe_head
from sdfast.metrics.loaders import FixedLoaders
from sdfast.metrics.retention import Retention


class Augmented(Dataset):
    "Mirrors clips at random, as torchvision's transforms in a data set do; nothing in the loader tells"
    def __init__(self, batches): self.x, self.y = (torch.cat(part) for part in zip(*batches))
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i].flip(-1) if torch.rand(()) < .5 else self.x[i], self.y[i]


class Stream(IterableDataset):
    "Begins somewhere else each time it is read"
    def __init__(self, batches): self.whole, self.start = Augmented(batches), itertools.count()
    def __iter__(self):
        first = next(self.start)
        for i in range(len(self.whole)): yield self.whole.x[(i + first) % 30], self.whole.y[(i + first) % 30]


class Shuffled:
    "A loader of one's own that shuffles without saying so"
    def __init__(self, batches): self.x, self.y = (torch.cat(part) for part in zip(*batches))
    def __len__(self): return 2
    def __iter__(self):
        order = torch.randperm(len(self.x))
        for part in order.split(15): yield self.x[part], self.y[part]


LOADERS = dict(augmented=lambda b: DataLoader(Augmented(b), 15), stream=lambda b: DataLoader(Stream(b), 15),
               own=Shuffled)


@pytest.mark.parametrize('kind', LOADERS)
@pytest.mark.parametrize('where', ['train_dl', 'test_dl', 'valid_dl', 'clips', 'others'])
def test_loaders_that_change_are_refused_before_training(source, kind, where):
    net, train, test = source
    torch.manual_seed(0)
    bad = LOADERS[kind](test)
    loaders = dict(train_dl=train, test_dl=test) | {where: dict(o=(train, bad)) if where == 'others' else bad}
    with pytest.raises(InputError, match='other clips each time'): Retention(net, **loaders)


def test_loaders_that_change_later_are_refused_when_they_do(source):
    "Not only by the first batch: each reading is compared with the first one"
    net, train, test = source
    mine = [list(batch) for batch in test]
    r = Retention(net, train, mine)
    mine[1][0] = mine[1][0].flip(-1)
    with pytest.raises(InputError, match='test_dl gives other clips each time it is read .15 of 30'): r(net[0])
    mine.pop()
    with pytest.raises(InputError, match='test_dl gave 30 clips when it was first read and 15 now'): r(net[0])


def test_a_sample_of_other_clips_is_refused(source):
    net, train, test = source
    mine = [list(batch) for batch in test]
    r = Retention(net, train, mine)
    mine[1][0] = mine[1][0].flip(-1)
    with pytest.raises(InputError, match='clips gives other clips'): r.sample(16)


def test_labels_that_change_are_refused(source):
    net, train, test = source
    mine = [list(batch) for batch in test]
    r = Retention(net, train, mine)
    mine[1][1] = (mine[1][1] + 1) % 3
    with pytest.raises(InputError, match='the same clips other labels'): r(net[0])


def test_a_stream_that_starts_again_is_measured(source):
    "Without a length, in a fixed order"
    class Fixed(IterableDataset):
        def __iter__(self):
            for x, y in train: yield from zip(x, y)
    net, train, test = source
    streamed = Retention(net, DataLoader(Fixed(), 15), test)
    assert streamed.reference == Retention(net, train, test).reference


# ---- labels

@pytest.mark.parametrize('label', [lambda y: y[:, None], lambda y: y.float(), lambda y: y.to(torch.int32)],
                         ids=['column', 'float', 'int32'])
def test_labels_are_flattened_as_the_learners_loss_does(source, tuned, label):
    net, train, test = source
    want = Retention(net, train, test, valid_dl=test, others=dict(o=(test, train)))(tuned(net))
    train, test = ([(x, label(y)) for x, y in dl] for dl in (train, test))
    assert Retention(net, train, test, valid_dl=test, others=dict(o=(test, train)))(tuned(net)) == want


@pytest.mark.parametrize('label', [
    lambda y: torch.eye(3)[y], lambda y: y + .5, lambda y: y - 1, lambda y: [str(v) for v in y], lambda y: y[:-1]],
    ids=['one-hot', 'real', 'negative', 'names', 'too few'])
def test_other_targets_are_refused(source, label):
    net, train, test = source
    with pytest.raises(InputError, match='labels of test_dl'): Retention(net, train, [(x, label(y)) for x, y in test])


def test_labels_of_clips_are_not_read(source):
    net, train, test = source
    clips = [(x, torch.rand(len(x), 7)) for x, _ in test]
    assert Retention(net, clips=clips).change(net[0])['drift'] == 0.


def test_labelled_loaders_without_labels_are_refused(source):
    net, train, test = source
    with pytest.raises(InputError, match='test_dl has no labels'): Retention(net, train, [(x,) for x, _ in test])
    dicts = [dict(a=x, y=y) for x, y in test]
    with pytest.raises(InputError, match='a dict with a, y, none'): Retention(net, train, dicts)


# ---- heads

class Named(list):
    "Batches with a vocabulary"
    vocab = ['a', 'b', 'c']


@pytest.mark.parametrize('width', [1, 2, 4, 400])
def test_heads_of_other_classes_are_refused(source, width):
    net, train, test = source
    wide = nn.Sequential(net[0], nn.Linear(6, width))
    with pytest.raises(InputError, match=f'head has {width} output'): Retention(wide, train, Named(test))
    assert Retention(wide, train, Named(test), encoder='0').reference.source_acc is None  # without the head


def test_a_head_that_is_wider_than_the_labels_is_doubtful(source):
    net, train, test = source
    wide = nn.Sequential(net[0], nn.Linear(6, 400))
    with pytest.warns(UserWarning, match='head has 400 outputs, but labels are 0 to 2'): Retention(wide, train, test)


def test_labels_from_1_do_not_fit_a_head_of_as_many_outputs(source):
    net, train, test = source
    from_1 = [[(x, y + 1) for x, y in dl] for dl in (train, test)]
    with pytest.raises(InputError, match='class number 3 .they start at 0'): Retention(net, *from_1)
    fits = nn.Sequential(net[0], nn.Linear(6, 4))
    assert Retention(fits, *from_1).reference.source_probe == Retention(net, train, test).reference.source_probe


def test_labels_with_gaps_are_those_of_the_head(source):
    net, train, test = source
    head = nn.Linear(6, 9)
    with torch.no_grad():
        head.weight.fill_(0)
        head.bias.copy_(torch.tensor([-9.]*9))
        for i in range(3):
            head.weight[4*i], head.bias[4*i] = net[1].weight[i], net[1].bias[i]
    spread = [[(x, 4*y) for x, y in dl] for dl in (train, test)]
    got, want = Retention(nn.Sequential(net[0], head), *spread), Retention(net, train, test)
    assert got.reference.source_acc == want.reference.source_acc
    assert got.reference.flat()['r1'] == want.reference.flat()['r1']


# ---- chance, and numbers of clips

def learned(source):
    "The model with a head that knows the three classes"
    net, train, test = source
    with torch.no_grad(): f = net[0].eval()(torch.cat([x for x, _ in train]))
    return nn.Sequential(copy.deepcopy(net[0]), probe_head(f, torch.cat([y for _, y in train]), 3)), train, test


def test_an_old_head_at_chance_is_warned_of(source, recwarn):
    Retention(*learned(source)).reference
    assert not [w for w in recwarn if 'chance' in str(w.message)]
    with pytest.warns(UserWarning, match=r'old head is at chance .* of 30 clips; .* 33.3 %.*: its accuracy says'):
        Retention(*source)


def test_an_encoder_without_knowledge_of_the_source_is_warned_of():
    batches = list(data(seed=5).valid)  # random labels
    with pytest.warns(UserWarning, match='old head is at chance'): Retention(model(), batches, batches[::-1])
    noise = [(torch.randn(16, 1, 6, 6), torch.arange(16) % 2) for _ in range(4)]
    with pytest.warns(UserWarning, match='new probe .* there is no knowledge'):
        Retention(nn.Sequential(model()[0], nn.Linear(6, 2)), noise[:2], noise[2:]).reference


def test_scores_say_how_many_clips_they_are_of(source):
    net, train, test = source
    r = Retention(net, train, test, valid_dl=train, clips=train, others=dict(a=(train, test), b=(test, train)))
    want = dict(source_clips=30, compared_clips=60, valid_source_clips=60, other_clips=90, source_chance=1/3)
    about = r.reference.about
    assert {k:about[k] for k in want} == pytest.approx(want)
    assert (about['others.a.clips'], about['others.b.clips']) == (30, 60)
    assert r(net[0]).recorded == r.reference.flat() | about
    assert Retention(net, clips=test).reference.about == dict(compared_clips=30)


def test_few_clips_have_no_cka(source):
    net, train, test = source
    few = [(x[:5], y[:5]) for x, y in test]
    with pytest.warns(UserWarning, match='CKA is left out: it needs at least 16 clips, and there are 10'):
        scores = Retention(net, train, few).reference
    assert scores.cka_unbiased is None
    assert scores.drift == 0
    assert all('cka_unbiased' not in found for found in scores.layers.values())


def test_loaders_by_themselves(source):
    net, _, test = source
    loaders = FixedLoaders(dict(mine=test))
    assert list(loaders) == ['mine']
    reading = loaders.read(net[0].eval(), 'mine')
    assert (len(reading), reading.n_batches) == (30, 2)
    with pytest.raises(InputError, match='it shuffles'): FixedLoaders(dict(it=NS(shuffle=True)))


def test_a_loader_with_random_sampler_of_one_batch(source):
    net, train, test = source
    clips = TensorDataset(*(torch.cat(t) for t in zip(*test)))
    with pytest.raises(InputError, match='valid_dl shuffles'):
        Retention(net, train, test, valid_dl=DataLoader(clips, 30, shuffle=True))
