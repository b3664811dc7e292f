"The paper's table 1 with pre-training inside: end to end on few clips, and the shipped table from its runs."
import pandas as pd
import pytest
from fastai.learner import Learner
from pages import prose
from scipy.stats import binomtest
from scripts import ROOT, load_script

from sdfast.data.datasets import create_task
from sdfast.report.pretext import pretext_markdown, pretext_table, printed_results
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


BAD = [(dict(seeds=0), '--seeds must be at least 1'), (dict(methods='x'), "unknown 'x'"),
       (dict(methods=''), '--methods must name')]


@pytest.mark.parametrize('options,text', BAD)
def test_bad_input_is_one_line(script, options, text, capsys):
    with pytest.raises(SystemExit) as e: script.main(**options)
    err = capsys.readouterr().err
    assert e.value.code == 2
    assert text in err
    assert err.count('\n') == 1


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
    results = {key:dict(scores=g.to_dict('records')) for key, g in scores.groupby(['model', 'method'])}
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
