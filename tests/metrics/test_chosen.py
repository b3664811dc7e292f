"Settings of probes, chosen on held-out clips: against scikit-learn, and without a look at what is measured."
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sdfast.metrics import choose_neighbours, choose_strength, knn, linear_probe
from sdfast.metrics.chosen import NEIGHBOURS, STRENGTHS


def parts(seed, n=60, m=40, width=20, noise=2.):
    "Features of three classes, many of which say nothing"
    g = torch.Generator().manual_seed(seed)
    def part(n):
        y = torch.randint(0, 3, (n,), generator=g)
        x = noise*torch.randn(n, width, generator=g)
        x[torch.arange(n), y] += 2
        return x, y
    return *part(n), *part(m), *part(m)


def search(estimator, grid, x, y, xv, yv):
    "scikit-learn's search, with one fold: it is fitted on the train part and scored on the held-out one"
    fold = PredefinedSplit([-1]*len(x) + [0]*len(xv))
    found = GridSearchCV(estimator, grid, cv=fold, refit=False).fit(torch.cat([x, xv]).numpy(), torch.cat([y, yv]))
    return found.cv_results_['mean_test_score']


@pytest.mark.parametrize('seed', range(6))
def test_the_strength_is_that_of_a_grid_search(seed):
    x, y, xv, yv, *_ = parts(seed)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    scores = search(probe, dict(logisticregression__C=STRENGTHS), x, y, xv, yv)
    assert len(set(scores)) > 1
    assert choose_strength(x, y, xv, yv) == STRENGTHS[int(np.argmax(scores))]


@pytest.mark.parametrize('seed', range(6))
def test_the_number_of_neighbours_is_that_of_a_grid_search(seed):
    x, y, xv, yv, *_ = parts(seed)
    scores = search(KNeighborsClassifier(metric='cosine'), dict(n_neighbors=NEIGHBOURS), x, y, xv, yv)
    assert len(set(scores)) > 1
    assert choose_neighbours(x, y, xv, yv) == NEIGHBOURS[int(np.argmax(scores))]


def test_different_data_choose_differently():
    assert len({choose_strength(*parts(seed)[:4]) for seed in range(6)}) > 1
    assert len({choose_neighbours(*parts(seed)[:4]) for seed in range(6)}) > 1


def test_of_equal_ones_the_most_regular_and_the_smallest():
    y = torch.arange(40) % 2
    x = torch.stack([y*2. - 1, torch.ones(40)], 1)  # every setting has all clips right
    assert choose_strength(x, y, x, y) == min(STRENGTHS) == choose_strength(x, y, x, y, STRENGTHS[::-1])
    assert choose_neighbours(x, y, x, y) == 1
    assert choose_strength(x, y, x, y, [1., .5]) == .5 and choose_neighbours(x, y, x, y, [9, 3]) == 3


def test_more_neighbours_than_clips_are_no_choice():
    x, y, xv, yv, *_ = parts(0, n=4)
    assert choose_neighbours(x, y, xv, yv, [100, 200]) == 4


def test_a_setting_is_passed_on():
    x, y, _, _, xt, yt = parts(0)
    for c in (1e-3, .1, 10.):
        want = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, C=c)).fit(x.numpy(), y.numpy())
        assert linear_probe(x, y, xt, yt, c) == want.score(xt.numpy(), yt.numpy())
    assert linear_probe(x, y, xt, yt) == linear_probe(x, y, xt, yt, .1)
    for k in (1, 5, 20):
        want = KNeighborsClassifier(k, metric='cosine').fit(x.numpy(), y.numpy()).score(xt.numpy(), yt.numpy())
        assert knn(x, y, xt, yt, k) == want
