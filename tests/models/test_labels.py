"Labels become class numbers that a head's outputs stand for, or an error says why not."
from types import SimpleNamespace as NS

import pytest
import torch
from fastai.data.transforms import CategoryMap
from fastai.torch_core import TensorCategory

from sdfast.errors import InputError
from sdfast.models.labels import check_head, clip_labels, loader_vocab

NUMBERS = torch.tensor([0, 2, 1])


@pytest.mark.parametrize('y', [
    NUMBERS, NUMBERS[:, None], NUMBERS.to(torch.uint8), NUMBERS.float(), NUMBERS.double()[:, None],
    TensorCategory(NUMBERS)], ids=str)
def test_clip_labels(y):
    found = clip_labels(y, 'labels', 3)
    assert type(found) is torch.Tensor
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 2, 1]


def test_bools_are_two_classes(): assert clip_labels(torch.tensor([True, False])).tolist() == [1, 0]


@pytest.mark.parametrize('y,why', [
    (torch.eye(3), 'argmax'), (torch.full((3, 4), .3), 'argmax'), (torch.zeros(3, 1, 1), 'argmax'),
    (torch.tensor(1), 'argmax'), (torch.tensor([.5, 1, 2]), 'fractions'),
    (torch.tensor([float('nan'), 1, 2]), 'fractions'), (torch.tensor([0, -100, 1]), 'not -100'),
    (['run', 'walk'], 'not list'), (NUMBERS[:2], '2 labels belong to 3 clips'),
    (torch.zeros(3, dtype=torch.complex64), 'complex64')], ids=str)
def test_other_targets_are_refused(y, why):
    with pytest.raises(InputError, match=why) as e: clip_labels(y, 'labels of test_dl', 3)
    assert str(e.value).startswith('labels of test_dl')
    assert '\n' not in str(e.value)


def test_vocabularies_of_loaders():
    assert loader_vocab(NS(vocab=['a', 'b'])) == ['a', 'b']
    assert list(loader_vocab(NS(vocab=CategoryMap(['a', 'b'])))) == ['a', 'b']  # fastai's
    assert loader_vocab(NS(dataset=NS(classes=['a', 'b']))) == ['a', 'b']  # torchvision's data sets
    assert loader_vocab(NS(dataset=NS(dataset=NS(classes=('a', 'b'))))) == ('a', 'b')  # a Subset of one
    for other in ([], NS(), NS(vocab=None), NS(vocab='ab'), NS(dataset=[(1, 2)]), NS(vocab=[1, 2])):
        assert loader_vocab(other) is None


def test_heads_that_fit():
    check_head(3, NUMBERS)
    check_head(3, NUMBERS, ['a', 'b', 'c'])
    check_head(6, torch.tensor([0, 5]))  # classes without clips
    check_head(3, NUMBERS[:0])


@pytest.mark.parametrize('width,vocab,why', [
    (2, None, 'the head has 2 outputs, test_dl has class number 2'), (1, None, '1 output, not one for each class'),
    (400, ['a', 'b', 'c'], 'the head has 400 outputs, test_dl numbers 3 classes'),
    (3, ['a', 'b'], 'the head has 3 outputs, test_dl numbers 2 classes')])
def test_heads_that_do_not_fit(width, vocab, why):
    with pytest.raises(InputError, match=why): check_head(width, NUMBERS, vocab, 'test_dl')
