"Plots show the numbers of the tables."
import pandas as pd
import pytest

from sdfast.report.load import load_results
from sdfast.report.panels import plots
from sdfast.report.summary import summary
from sdfast.report.svg import svg
from sdfast.report.trade_off import trade_off
from sdfast.stats import mean_interval


@pytest.fixture(scope='module')
def r(study): return load_results(study)[0]


@pytest.fixture(scope='module')
def table(r): return summary(r.rows).set_index('strategy')


@pytest.fixture(scope='module')
def shown(r, table): return {plot.name: plot for plot in plots(r, table.reset_index())}


@pytest.fixture(scope='module')
def numbers(shown):
    "(plot, panel) -> the numbers that it draws"
    return {(name, panel): svg(plot, panel, 'x', 'x')[1] for name, plot in shown.items() for panel in plot.panels}


def test_which_plots(shown):
    assert list(shown) == ['paths', 'means', 'strengths', 'course', 'classes_source', 'classes_target', 'drift']


def test_means(numbers, table):
    means = numbers['means', 'source, old head'].set_index('strategy')
    assert means.acc1['l2sp'] == table.acc1['l2sp']
    assert means.source_acc_low['self_distill'] == table.source_acc_low['self_distill']
    assert 'untouched' not in means.index


def test_paths(numbers, r):
    paths = numbers['paths', 'source, new probe']
    costs = trade_off(r.rows, 'source_probe').set_index('strategy')
    # a path begins with plain fine-tuning, which is no setting of its own in the table
    own = paths[paths.front & (paths.setting != 'λ0')]
    front = {strategy: ' '.join(own.setting[own.strategy == strategy]) for strategy in paths.strategy.unique()}
    chosen = paths[paths.chosen].set_index('strategy').setting
    assert front == costs.front.to_dict()
    assert chosen.to_dict() == dict(finetune='lr0.05', self_distill='λ10', l2sp='λ0.1')


def test_strengths(numbers, r):
    curve = numbers['strengths', 'source, old head']
    got = curve[(curve.strategy == 'self_distill') & (curve['λ'] == 1)].iloc[0]
    runs = r.rows[(r.rows.strategy == 'self_distill') & (r.rows.lam == 1)]
    want = mean_interval(runs.source_acc.astype(float))
    assert (got.source_acc, got.low, got.high) == pytest.approx((want.mean, want.low, want.high))


def test_drift(numbers, shown):
    drift = numbers['drift', 'finetune'].set_index('layer')
    assert list(drift.index) == ['<b>0</b>', '<b>1</b>']
    assert drift['epoch 3']['<b>1</b>'] == pytest.approx(.1*2*3 + .01)
    assert shown['drift'].heat == pytest.approx(.61)


def test_course(numbers):
    course = numbers['course', 'CKA with the untouched encoder']
    assert isinstance(course, pd.DataFrame)
    assert course.groupby('strategy').cka_unbiased.last()['l2sp'] == pytest.approx(.8)
