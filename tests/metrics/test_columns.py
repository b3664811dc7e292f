"The table of measures, and that nothing is measured without a row in it."
import csv
from pathlib import Path

import pytest
import torch

from sdfast.metrics.columns import COLUMNS, MEASURES, REPORTED, RETENTION_COLUMNS, TABLE_COLUMNS, Measure, measure_title
from sdfast.metrics.extra import EXTRA
from sdfast.metrics.retention import Retention
from sdfast.metrics.scores import MEASURED, RetentionScores

ROOT = Path(__file__).parents[2]


def test_columns_are_those_of_the_committed_studies():
    "Results that exist are read by these names, in this order"
    with open(ROOT/'experiments/results/pretext/runs.csv', newline='') as f: header = next(csv.reader(f))
    assert [c for c in header if c in MEASURES] == [c for c in COLUMNS if c in MEASURES and c in header]
    assert len(set(COLUMNS)) == len(COLUMNS)


def test_parts_of_the_table():
    assert set(RETENTION_COLUMNS) == set(MEASURED) - {'pretext', 'kl'}
    assert set(REPORTED) == set(MEASURES) - {'pretext', 'kl', 'valid_source_acc', 'valid_source_probe'}
    assert TABLE_COLUMNS == ['acc1', 'source_acc', 'source_acc_bn', 'source_probe', 'source_knn', 'other_probe',
                             'cka_unbiased', 'drift', 'barrier']
    assert not {'pretext', 'kl'} & set(COLUMNS)


def test_what_a_measure_says():
    share, number = MEASURES['source_acc'], Measure('x', 'an x', 'a number')
    assert (share.scale, share.digits, share.unit) == (100, 1, '%')
    assert (number.scale, number.digits, number.unit) == (1, 3, '')
    assert all(m.column == c and m.title and m.about for c, m in MEASURES.items())
    less_is_better = {c for c, m in MEASURES.items() if not m.more_is_better}
    assert less_is_better == {'procrustes', 'drift', 'weight_distance', 'barrier', 'pretext', 'kl'}
    assert measure_title('cka_unbiased') == 'CKA'
    assert measure_title('seconds') == 'seconds'


def test_retention_measures_what_the_table_has_and_nothing_else(source, pretext):
    net, train, test = source
    loaders = dict(valid_dl=[(x + 1, y) for x, y in test], others=dict(a=(train, test)), pretext=pretext)
    assert set(Retention(net, train, test, **loaders).reference.values) == set(MEASURED) - set(EXTRA)
    extra = set(EXTRA) - {'source_attentive'}  # this encoder has no tokens
    scores = Retention(net, train, test, extra=extra, **loaders).reference
    assert set(scores.values) == set(MEASURED) - {'source_attentive'}
    with pytest.raises(ValueError, match='add its row to MEASURES'): RetentionScores(dict(source_f1=.5))
    with pytest.raises(ValueError, match='acc1'): RetentionScores(dict(acc1=.5))  # of the target task


def test_scores_are_attributes():
    scores = RetentionScores(dict(cka_unbiased=.9, source_acc=.8), others=dict(a=.7))
    assert scores.source_acc == .8
    assert scores.barrier is None
    assert scores.others == dict(a=.7)
    with pytest.raises(AttributeError, match="no measure 'f1'"): scores.f1
    with pytest.raises(AttributeError): scores.cka_unbiased = 1.


def test_scores_are_listed_in_the_order_of_the_table():
    layers = dict(conv=dict(cka_unbiased=1.))
    scores = RetentionScores(dict(cka_unbiased=.9, source_acc=.8), dict(a=.7), layers, dict(source_clips=30))
    flat = dict(source_acc=.8, cka_unbiased=.9) | {'others.a':.7, 'layers.conv.cka_unbiased':1.}
    assert list(scores.flat().items()) == list(flat.items())
    assert scores.recorded == flat | dict(source_clips=30)
    assert repr(scores).startswith('RetentionScores(source_acc=0.8, source_acc_bn=None, ')
    assert repr(scores).endswith("valid_source_probe=None, others={'a': 0.7}, layers={'conv': {'cka_unbiased': 1.0}})")


def test_equal_scores_whatever_the_answers():
    one, two = (RetentionScores(dict(cka_unbiased=.9), answers=torch.rand(2, 3)) for _ in range(2))
    assert one == two
    assert one != RetentionScores(dict(cka_unbiased=.8))
    assert RetentionScores().flat() == {}
