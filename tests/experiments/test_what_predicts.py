"What predicts forgetting: rank correlations by hand, and studies with known answers."
import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata
from scripts import load_script

from sdfast.errors import InputError

module = load_script('what_predicts')
ARMS = ('finetune', 'self_distill', 'finetune+soup')


@pytest.fixture
def file(tmp_path):
    """A study of three source models, in which the KL orders all runs by what they have lost, the drift only those of
    an arm, and the distance of weights none."""
    rng = np.random.default_rng(0)
    rows = []
    for net in range(3):
        start = dict(arm='untouched', rule='kept', source_seed=net, key=f'start{net}')
        rows.append(start | dict(source_acc=.95, source_probe=.97))
        for a, arm in enumerate(ARMS):
            for seed in range(6):
                lost = .01*(6*a + seed + 1)
                rows.append(dict(arm=arm, rule='kept', source_seed=net, key=f'{net}{arm}{seed}', source_acc=.95 - lost,
                                 source_probe=.97 - lost/2, kl=lost**2, drift=seed - 10*a, weight_distance=rng.random(),
                                 cka_unbiased=1 - lost, procrustes=lost, barrier=0., lr=.1*a))
        rows.append(rows[-1] | dict(rule='accuracy'))  # a run that both rules chose
        rows.append(rows[-1] | dict(status='failed', key=f'{net}failed', source_acc=0.))
    table = pd.DataFrame(rows).assign(final=True)
    table['status'] = table.status.fillna('ok')
    table.to_csv(tmp_path/'runs.csv', index=False)
    return tmp_path/'runs.csv'


def test_runs_are_counted_once_and_compared_with_their_own_start(file):
    runs = module.read_runs(file)
    assert len(runs) == 3*18
    assert runs.lost_source_acc.to_numpy() == pytest.approx(np.tile(.01*np.arange(1, 19), 3))
    assert runs.lost_source_probe.to_numpy() == pytest.approx(runs.lost_source_acc.to_numpy()/2)


def test_correlations_of_ranks():
    a, b = pd.Series([3., 1, 2, 9, 5]), pd.Series([2., 2, 7, 8, 1])
    assert module.rank_correlation(a, b) == pytest.approx(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
    assert np.isnan(module.rank_correlation(a, b*0)) and np.isnan(module.rank_correlation(a[:4], b[:4]))
    assert np.isnan(module.rank_correlation(a, b.where(b > 1)))


def test_across_and_within(file):
    found = module.predictors(module.read_runs(file)).set_index(['lost', 'way', 'predictor']).correlation
    for lost in module.LOSSES:
        assert found[lost, 'across', 'kl'] == found[lost, 'within', 'kl'] == pytest.approx(1)
        assert found[lost, 'within', 'drift'] == pytest.approx(1) and found[lost, 'across', 'drift'] < -.5
        assert abs(found[lost, 'across', 'weight_distance']) < .6
        assert np.isnan(found[lost, 'across', 'barrier']) and np.isnan(found[lost, 'within', 'lr'])


def test_the_interval_is_over_source_models():
    mean, low, high = module.bootstrap(np.array([.2, .4, .9, np.nan]))
    assert mean == pytest.approx(.5) and low == pytest.approx(.2) and high == pytest.approx(.9)
    assert module.bootstrap(np.array([.3]))[0] == .3 and np.isnan(module.bootstrap(np.array([.3]))[1])


def test_files(file, capsys):
    module.main(study=str(file.parent))
    text = (file.parent/'predictors.md').read_text()
    assert 'mean over 3 source models' in text and '54 final runs of 3 arms' in text
    assert text.index('KL to the untouched') < text.index('distance of weights') and 'constant or not measured' in text
    assert (file.parent/'predictors.png').stat().st_size > 5000
    assert len(pd.read_csv(file.parent/'predictors.csv')) == 2*2*len(module.PREDICTORS)
    with pytest.raises(InputError, match='run protocol.py'): module.read_runs(file.parent/'no.csv')
