"What is left, guessed from the drift of features on target clips."
import copy
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import data, learner, model
from trainers import sgd

from sdfast.errors import InputError
from sdfast.strategies import Budget, KeptByDrift, SelfDistill, drift_curve

ROOT = Path(__file__).parents[2]
CURVE = [(0., 1.), (1., .5)]


def test_drift_is_that_of_the_training_clips():
    net, dls = model(), data()
    start = copy.deepcopy(net[0]).eval()
    cb = SelfDistill(retain=Budget(.95, KeptByDrift(CURVE, 1000), every=100))
    learn = learner(cb, net=net, dls=dls)
    learn.fit(2)
    with torch.no_grad():
        x = torch.cat([x for x, _ in dls.train])
        old, new = start(x), copy.deepcopy(learn.model[0]).eval()(x)
    drift = ((new - old).norm()/old.norm()).item()
    assert cb.kept_history[-1]['kept'] == pytest.approx(max(0., 1 - drift/2), rel=1e-4)


def test_the_curve_is_interpolated_and_continued():
    kept = KeptByDrift([(0, 1), (.5, .9), (1, .5)])
    assert [kept.share(d) for d in (0, .25, .5, .75, 1, 1.25, 9)] == pytest.approx([1, .95, .9, .7, .5, .3, 0])


def test_a_curve_is_fitted_to_measured_runs():
    torch.manual_seed(0)
    drifts = torch.rand(200).tolist()
    kept = [1 - .4*d + .02*torch.randn(()).item() for d in drifts]
    curve = drift_curve(drifts, kept)
    assert curve[0] == (0., 1.)
    for d, k in curve: assert k == pytest.approx(1 - .4*d, abs=.03)
    KeptByDrift(curve)


def test_the_default_curve_is_that_of_the_committed_runs():
    rows = pd.read_csv(ROOT/'experiments/results/moving_digits_paths/runs.csv')
    untouched = rows[rows.strategy == 'untouched'].source_acc.iloc[0]
    runs = rows[(rows.strategy != 'untouched') & rows.final & (rows.status == 'ok')]
    assert len(runs) == 300
    curve = drift_curve(runs.drift, runs.source_acc/untouched)
    kept = KeptByDrift()
    assert list(zip(kept.drifts, kept.shares)) == [(round(d, 3), round(k, 3)) for d, k in curve]


def test_a_share_without_a_measure_warns_once_that_it_is_a_guess():
    with pytest.warns(UserWarning) as caught: learner(SelfDistill(retain=.9)).fit(1)
    said = [str(w.message) for w in caught if 'guess' in str(w.message)]
    assert len(said) == 1
    assert '\n' not in said[0]


def test_a_loop_without_its_data_is_told_what_to_do():
    net = model()
    cb = SelfDistill(retain=Budget(.9, KeptByDrift(CURVE)))
    cb.attach(net, sgd(net))
    with pytest.raises(InputError, match='attach.model, batches=LOADER'): cb.start_epoch()


@pytest.mark.parametrize('make,why', [
    (lambda: KeptByDrift([(0, 1)]), 'the curve of KeptByDrift needs pairs'),
    (lambda: KeptByDrift([(0, .5), (1, .9)]), 'whose share falls'),
    (lambda: KeptByDrift([(.1, 1), (1, .9)]), 'from (0, 1) on'),
    (lambda: KeptByDrift(clips=1), 'clips of KeptByDrift'),
])
def test_wrong_values_are_refused_in_one_line(make, why):
    with pytest.raises(InputError) as e: make()
    assert why in str(e.value)
    assert '\n' not in str(e.value)
