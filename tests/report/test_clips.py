"Every table and plot says how many clips its numbers are of, and what was selected on test."
import pandas as pd
import pytest
from made_study import make

from sdfast.errors import InputError
from sdfast.metrics.columns import CLIP_COLUMNS, COLUMNS
from sdfast.report.clips import chance_sentence, clip_counts, clips_of, clips_sentence, clips_text
from sdfast.report.load import load_results
from sdfast.report.panels import plots
from sdfast.report.prose import lead
from sdfast.report.summary import summary
from sdfast.report.tables import margins_table, strategy_table, trade_off_table
from sdfast.report.trade_off import trade_off

COUNTS = dict(valid_clips=20, test_clips=40, source_clips=30, source_chance=.25)


@pytest.fixture
def counted(path):
    "Rows of all strengths, with numbers of clips"
    return path.assign(**COUNTS)


def test_counts_of_runs(counted, path):
    assert clip_counts(counted) == dict(valid_clips=20, test_clips=40, source_clips=30)
    assert clip_counts(path) == {}
    assert clip_counts(pd.DataFrame(dict(strategy=['finetune']))) == {}
    assert set(CLIP_COLUMNS) < set(COLUMNS)


def test_runs_on_other_clips_are_not_compared(counted):
    counted.loc[0, 'source_clips'] = 29
    for make_table in (clip_counts, summary, lambda rows: trade_off(rows, 'source_acc')):
        with pytest.raises(InputError, match='source_clips is 29 and 30'): make_table(counted)


@pytest.mark.parametrize('columns,text', [
    (['test_clips'], '40 test clips of the target'),
    (['source_clips', 'test_clips'], '40 test clips of the target and 1 of the source'),
    (CLIP_COLUMNS, '40 test clips of the target, 1 of the source and 7 of the other tasks'), ([''], '')])
def test_text(columns, text): assert clips_text(dict(test_clips=40, source_clips=1, other_clips=7), columns) == text


def test_sentences(counted):
    assert clips_sentence(clip_counts(counted), ['source_acc']) == 'Measured on 30 test clips of the source.'
    assert 'was not recorded' in clips_sentence({}, ['source_acc'])
    assert clips_of(counted, 'acc1') == ' of 40 clips'
    assert clips_of(counted.drop(columns='test_clips'), 'acc1') == ''


def test_captions_of_tables(counted):
    measured = 'Measured on 40 test clips of the target and 30 of the source.'
    costs = trade_off(counted, 'source_acc')
    tables = [trade_off_table(costs, 'source_acc'), margins_table(counted, 'source_acc', 'l2sp')]
    for table in tables:
        assert measured in table.caption
        assert 'selected on test' in table.caption
        assert 'never on test' not in table.caption
    main = strategy_table(summary(counted))
    assert measured in main.caption
    assert 'The strengths in this table were chosen on valid parts, never on test.' in main.caption
    assert measured in main.to_markdown()
    assert measured in main.to_latex()


def test_a_measure_of_some_runs_only_is_named(rows):
    rows = rows.assign(final=rows.final.astype(bool))
    missing = rows.index[(rows.strategy == 'finetune') & rows.final][0]
    rows.loc[missing, 'cka_unbiased'] = None
    caption = strategy_table(summary(rows)).caption
    assert 'CKA was measured in some runs only: 3 of 4 of finetune.' in caption
    assert 'drift was' not in caption


def test_a_source_at_chance_is_said(counted):
    assert chance_sentence(counted) == ''  # .9 of 30 clips, chance .25
    untouched = counted.strategy == 'untouched'
    counted.loc[untouched, 'source_acc'] = .3
    said = 'before fine-tuning its head has 30.0 % of 30 clips, and always answering its most frequent class has 25.0 %'
    assert said in chance_sentence(counted)
    assert said in strategy_table(summary(counted)).caption
    assert chance_sentence(counted.drop(columns='source_chance')) == ''


@pytest.fixture
def folder(tmp_path):
    "A study's folder of today, with numbers of clips in rows and courses"
    folder = make(tmp_path/'out', [f'{i}.mp4' for i in range(8)])
    rows = pd.read_csv(folder/'runs.csv').assign(**COUNTS)
    rows.to_csv(folder/'runs.csv', index=False)
    for file in folder.glob('runs/*/curve.csv'): pd.read_csv(file).assign(clips=16).to_csv(file, index=False)
    return folder


def test_every_plot_says_it(folder):
    r, = load_results(folder)
    about = {plot.name: plot.about for plot in plots(r, summary(r.rows))}
    both = 'Measured on 40 test clips of the target and 30 of the source.'
    for name in ('paths', 'means', 'strengths'): assert both in about[name], name
    for name in ('course', 'drift'): assert "on 16 of the source's test clips" in about[name], name
    for name in ('classes_source', 'classes_target'): assert '8 test clips, 2 of each class' in about[name], name
    assert set(about) == {'paths', 'means', 'strengths', 'course', 'drift', 'classes_source', 'classes_target'}
    assert 'selects them by target accuracy on test' in lead(r, summary(r.rows))
    assert both in lead(r, summary(r.rows))


def test_trials_say_how_many_valid_clips(folder):
    rows = pd.read_csv(folder/'runs.csv')
    rows.loc[~rows.chosen.astype(bool), 'final'] = False
    rows.to_csv(folder/'runs.csv', index=False)
    r, = load_results(folder)
    about = next(p.about for p in plots(r, summary(r.rows)) if p.name == 'strengths')
    assert 'on 20 valid clips of the target' in about


def test_results_of_an_older_version_are_not_mixed_with_new_ones(folder):
    "`cka` is the biased estimate; it is not read, and a note says so"
    rows = pd.read_csv(folder/'runs.csv').rename(columns=dict(cka_unbiased='cka'))
    rows.to_csv(folder/'runs.csv', index=False)
    r, = load_results(folder)
    table = summary(r.rows)
    assert not [c for c in table if c.startswith('cka')]
    assert 'CKA' not in strategy_table(table).to_markdown()
    assert any('biased estimate' in note for note in r.notes)
