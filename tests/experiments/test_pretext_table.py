"The paper's table 1 with pre-training inside: end to end on few clips, and the shipped table from its runs."
import numpy as np
import pandas as pd
import pytest
from fastai.learner import Learner
from pages import prose
from scipy.stats import binomtest, t
from scripts import ROOT, load_script

from sdfast.crossed import crossed_difference
from sdfast.data.datasets import create_task
from sdfast.report.pretext import pretext_markdown, pretext_table, printed_results, read_results
from sdfast.study import pretrain_recipes
from sdfast.study import source as source_module

SMALL = dict(clips=2, pretext_epochs=1, epochs=1, trial_seeds=1)
RESULTS = ROOT/'experiments/results/pretext'


@pytest.fixture(scope='module')
def script(): return load_script('pretext_table')


@pytest.fixture(scope='module')
def out(script, tmp_path_factory):
    "Folder of a table with no pre-training and clip order"
    out = tmp_path_factory.mktemp('table')
    script.main(methods='none,order', seeds=2, out=str(out), **SMALL)
    return out


@pytest.fixture(scope='module')
def table(out): return pd.read_csv(out/'table.csv')


@pytest.fixture(scope='module')
def runs(out): return pd.read_csv(out/'runs.csv')


def chosen(runs, method, strategy):
    mine = runs[(runs.method == method) & (runs.strategy == strategy)]
    return mine[mine.final & mine.chosen].set_index('seed')


@pytest.mark.nightly
def test_a_row_for_each_method_and_strategy(table):
    expected = [(m, s) for m in ('none', 'order') for s in ('finetune', 'self_distill')]
    assert list(zip(table.method, table.strategy)) == expected
    assert (table.runs == 2).all()


@pytest.mark.nightly
def test_rows_are_means_of_chosen_runs(table, runs):
    for _, r in table.iterrows():
        mine = chosen(runs, r.method, r.strategy)
        assert r.acc1 == pytest.approx(100*mine.acc1.mean())
        assert r.acc5 == pytest.approx(100*mine.acc5.mean())
        assert r.source_probe == pytest.approx(mine.source_probe.mean())


@pytest.mark.nightly
def test_differences_are_paired(table, runs):
    none, order = chosen(runs, 'none', 'finetune'), chosen(runs, 'order', 'finetune')
    distilled = chosen(runs, 'order', 'self_distill')
    assert pd.isna(table.none_diff[0])
    assert table.none_diff[2] == pytest.approx(100*(order.acc1 - none.acc1).mean())
    assert pd.isna(table.plain_diff[2])
    assert table.plain_diff[3] == pytest.approx(100*(distilled.acc1 - order.acc1).mean())


@pytest.mark.nightly
def test_what_was_there_before_fine_tuning(table, runs):
    untouched = runs[runs.strategy == 'untouched'].set_index('method')
    assert untouched.anchor.nunique() == 2
    probe = untouched.source_probe['order']
    assert table.source_probe_before[2] == pytest.approx(probe)
    n = create_task('moving_digits', 'source').count('test')
    right = round(n*probe)
    assert right/n == pytest.approx(probe, abs=1e-6)
    low, high = binomtest(right, n).proportion_ci(method='wilson')
    assert table.source_probe_before_low[2] == pytest.approx(low, abs=1e-5)
    assert table.source_probe_before_high[2] == pytest.approx(high, abs=1e-5)


@pytest.mark.nightly
def test_the_text_has_the_scores_of_pretraining(out):
    text = (out/'table.md').read_text()
    assert 'VCOP' in text
    assert 'chance 16.7%' in text


@pytest.mark.nightly
def test_a_finished_table_trains_nothing(script, out, monkeypatch):
    source_module._sources.clear()
    before = (out/'table.csv').read_text()
    monkeypatch.setattr(Learner, 'fit', lambda *a, **k: pytest.fail('trained again'))
    script.main(methods='none,order', seeds=2, out=str(out), **SMALL)
    assert (out/'table.csv').read_text() == before


def test_a_method_that_cannot_be_run_is_named(script, tmp_path, monkeypatch, capsys):
    too_long = pretrain_recipes.SHORT['pace'] | dict(frames=8)  # eight frames leave no room for the fast pace
    monkeypatch.setitem(pretrain_recipes.SHORT, 'pace', too_long)
    with pytest.raises(SystemExit) as e: script.main(methods='pace', seeds=1, out=str(tmp_path), **SMALL)
    assert e.value.code == 2
    assert 'no video could be used' in capsys.readouterr().err


BAD = [(dict(seeds=0), '--seeds must be at least 1'), (dict(draws=0), '--draws must be at least 1'),
       (dict(methods='x'), "unknown 'x'"),
       (dict(methods=''), '--methods must name')]


@pytest.mark.parametrize('options,text', BAD)
def test_bad_input_is_one_line(script, options, text, capsys):
    with pytest.raises(SystemExit) as e: script.main(**options)
    err = capsys.readouterr().err
    assert e.value.code == 2
    assert text in err
    assert err.count('\n') == 1


# ---- several draws

def drawn_rows(method, acc1, probe=.2):
    "Final runs of both strategies for each draw and seed, whose accuracies are `acc1[draw][seed]`"
    rows = []
    for draw, of_draw in enumerate(acc1):
        rows.append(dict(strategy='untouched', draw=draw, source_probe=probe + .1*draw, method=method))
        for seed, acc in enumerate(of_draw):
            for strategy in ('finetune', 'self_distill'):
                more = .01*draw + .02*seed if strategy == 'self_distill' else 0
                rows.append(dict(strategy=strategy, draw=draw, seed=seed, acc1=acc + more, acc5=1., final=True,
                                 chosen=True, status='ok', lr=.05, lam=3. + draw, source_probe=.3, method=method))
    return pd.DataFrame(rows).assign(model='tiny')


@pytest.fixture
def drawn():
    "A table of three draws and two seeds, and the accuracies of both methods"
    none, order = np.array([[.4, .42], [.5, .47], [.45, .46]]), np.array([[.6, .58], [.55, .61], [.7, .66]])
    rows = pd.concat([drawn_rows('none', none), drawn_rows('order', order)], ignore_index=True)
    score = dict(name='order_acc', low=.1, high=.9, n=600, chance=1/6)
    results = {('tiny', 'order'): [dict(scores=[score | dict(value=v)]) for v in (.5, .6, .7)]}
    return pretext_table(rows, results, None, 1200), none, order


def test_intervals_cover_draws_and_seeds(drawn):
    table, none, order = drawn
    row = table[(table.method == 'order') & (table.strategy == 'finetune')].iloc[0]
    expected = crossed_difference(100*order)
    assert (row.acc1, row.acc1_low, row.acc1_high) == pytest.approx((expected.mean, expected.low, expected.high))
    expected = crossed_difference(100*(order - none))
    assert (row.none_diff, row.none_diff_low) == pytest.approx((expected.mean, expected.low))
    distilled = table[(table.method == 'order') & (table.strategy == 'self_distill')].iloc[0]
    expected = crossed_difference([[0, 2], [1, 3], [2, 4]])
    assert (distilled.plain_diff, distilled.plain_diff_high) == pytest.approx((expected.mean, expected.high))
    assert distilled.runs == 6


def test_the_probe_before_has_an_interval_over_draws(drawn):
    row = drawn[0].iloc[0]
    half = t.ppf(.975, 2)*.1/3**.5
    found = row.source_probe_before, row.source_probe_before_low, row.source_probe_before_high
    assert found == pytest.approx((.3, .3 - half, .3 + half))


def test_the_text_has_all_draws(drawn):
    text = pretext_markdown(drawn[0])
    assert 'order_acc 50.0%, 60.0%, 70.0% of 600 videos, chance 16.7%' in text
    assert 'one value for each draw' in text
    assert 'λ chosen for each draw' in text
    assert 'plain, lr 0.05' in text


@pytest.mark.nightly
def test_draws_and_three_times_as_long_from_start_to_end(script, tmp_path):
    "Two draws of two methods and both rows without; each draw starts from another random encoder"
    methods = 'none,none_long,order,supervised'
    script.main(methods=methods, draws=2, seeds=2, trial_seeds=1, quick=True, out=str(tmp_path))
    table, runs = pd.read_csv(tmp_path/'table.csv'), pd.read_csv(tmp_path/'runs.csv')
    assert table.method.tolist() == [m for m in ('none', 'none_long', 'order', 'supervised') for _ in range(2)]
    assert (table.runs == 4).all()
    untouched = runs[runs.strategy == 'untouched'].groupby('method').anchor.unique()
    assert {method:len(ids) for method, ids in untouched.items()} == dict(none=2, none_long=2, order=2, supervised=2)
    assert set(untouched['none']) == set(untouched['none_long'])
    assert runs[runs.method == 'none_long'].epochs.dropna().unique() == [3]
    assert set(pd.read_csv(tmp_path/'pretext.csv').draw) == {0, 1}
    assert 'crossed random-effects' in (tmp_path/'table.md').read_text()


PRINTED = [('pace', 'finetune', 'r2plus1d', None, 'R(2+1)D 77.1 / 36.6'), ('pace', 'finetune', 'c3d', None, ''),
           ('rspnet', 'finetune', 'tiny', None, 'C3D 76.7 / 44.6; R(2+1)D 81.1 / 44.6'),
           ('rspnet', 'self_distill', 'c3d', 'hmdb51', 'C3D 45.8'), ('order', 'finetune', 'tiny', None, ''),
           ('none', 'self_distill', 'c3d', None, ''), ('puzzle', 'finetune', 'tiny', None, 'C3D 60.6 / 28.3'),
           ('mas', 'finetune', 'c3d', 'hmdb51', 'C3D 33.4'), ('cvrl', 'finetune', 'tiny', None, ''),
           ('iic', 'finetune', 'tiny', None, '')]


@pytest.mark.parametrize('method,strategy,model,data,text', PRINTED)
def test_the_papers_numbers_stand_in_their_rows(method, strategy, model, data, text):
    assert printed_results(method, strategy, model, data) == text


# ---- the shipped table

@pytest.fixture(scope='module')
def shipped(): return pd.read_csv(RESULTS/'table.csv').fillna(dict(pretext='', printed=''))


@pytest.fixture(scope='module')
def scores(): return pd.read_csv(RESULTS/'pretext.csv')


@pytest.fixture(scope='module')
def page(): return prose(ROOT/'experiments/README.md')


def test_the_shipped_table_comes_from_its_runs(shipped, scores, page):
    results = read_results(scores)
    n_source = create_task('moving_digits', 'source').count('test')
    again = pretext_table(pd.read_csv(RESULTS/'runs.csv'), results, None, n_source)
    pd.testing.assert_frame_equal(again, shipped, check_dtype=False, rtol=1e-4)
    text = (RESULTS/'table.md').read_text().rstrip()
    assert pretext_markdown(again).rstrip() in text
    assert text in page


def test_the_readmes_say_what_pretraining_gives(shipped, page):
    plain = shipped[shipped.strategy == 'finetune'].set_index('method')
    gain = plain.none_diff.dropna()
    said = f'{gain.min():.1f} to {gain.max():.1f} points'
    assert said in page
    assert said in prose(ROOT/'README.md')
    assert (plain.none_diff_low[gain.index] > 0).all()
    trained = plain.index.drop('none')
    probe = 100*plain.source_probe_before
    assert f'{probe[trained].min():.1f} to {probe[trained].max():.1f} %' in page
    assert f'{probe["none"]:.1f} % on the random one' in page
    assert (plain.source_probe_before_low[trained] > plain.source_probe_before_high['none']).all()


def test_the_readme_says_what_self_distillation_adds(shipped, page):
    distilled = shipped[shipped.strategy == 'self_distill'].set_index('method')
    assert f'{distilled.plain_diff.min():+.1f} to {distilled.plain_diff.max():+.1f} points' in page
    assert (distilled.plain_diff_low > 0).sum() == 2
    assert distilled.plain_diff_low.max() < .05


def test_the_readme_says_what_was_learned_without_labels(scores, page):
    assert (scores.low > scores.chance).all()
    values = scores.set_index('name').value
    for name in ('puzzle_acc', 'rotation_acc', 'appearance_acc'): assert f'{100*values[name]:.1f} against' in page
