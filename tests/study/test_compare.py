"A study chooses on valid, reads test once, skips what is done, and shares work with other processes."
import json
from dataclasses import replace

import pandas as pd
import pytest
from helpers import Log
from processes import exit_codes, fork

from sdfast.metrics.columns import COLUMNS
from sdfast.metrics.features import linear_probe
from sdfast.metrics.retention import Retention
from sdfast.models.features import extract
from sdfast.report.load import load_results
from sdfast.report.write import write_report
from sdfast.study import execute as execute_module
from sdfast.study.choose import strength_grid
from sdfast.study.compare import compare
from sdfast.study.execute import execute, train_run
from sdfast.study.loaders import source_data
from sdfast.study.source import load_source

pytestmark = pytest.mark.usefixtures('fresh')

CLASSIC = ['finetune', 'self_distill', 'fixed_teacher', 'ema_teacher', 'l2sp', 'ewc']
RUN_FILES = {'run.json', 'result.json', 'epochs.csv', 'scores.csv', 'source_scores.csv', 'log.txt', 'kept.json',
             'curve.csv'}


class Study:
    "A finished study of six strategies with two strengths and two seeds, and what happened in it"
    def __init__(self, base, out):
        self.base, self.out = base, out
        self.grids = {s:strength_grid(s, .05, None, 3)[:2] for s in CLASSIC}
        self.reads, self.kept = [], []  # how often test was read, and scores of `Retention`
        with pytest.MonkeyPatch.context() as m:
            self._spy(m)
            self.log = Log()
            self.rows = self.again(self.log)
        strategies = self.rows[self.rows.strategy != 'untouched']
        self.trial = strategies[~strategies.final.astype(bool)]
        self.final = strategies[strategies.final.astype(bool)]
        self.untouched = self.rows.iloc[-1]

    def _spy(self, m):
        predict, measure = execute_module._predict, Retention.__call__
        def read(learn, dl):
            self.reads.append(dl)
            return predict(learn, dl)
        def call(retention, encoder):
            self.kept.append(measure(retention, encoder))
            return self.kept[-1]
        m.setattr(execute_module, '_predict', read)
        m.setattr(Retention, '__call__', call)

    def again(self, log): return compare(self.base, self.grids, self.out, seeds=2, progress=log)
    def run_folder(self, key): return self.out/'runs'/key


@pytest.fixture
def study(base, tmp_path): return Study(base, tmp_path)


def right(scores): return scores[['down', 'right']].idxmax(axis=1) == scores.label


def check_rows(study):
    rows, trial, final = study.rows, study.trial, study.final
    assert list(rows.columns[:len(COLUMNS)]) == COLUMNS
    assert len(rows) == 6*(2 + 2) + 1
    assert study.log.planned == 24
    assert set(rows.status) == {'ok'}
    assert len(study.reads) == 12  # test is read by final runs alone, once each
    assert trial.acc1.isna().all()
    assert trial.source_acc.isna().all()
    assert rows.valid_acc1[:-1].between(0, 1).all()
    for c in ('acc1', 'acc5', 'source_acc', 'source_probe', 'source_knn'):
        assert final[c].astype(float).between(0, 1.0001).all(), c
    assert study.untouched.strategy == 'untouched'
    assert (study.untouched.drift, study.untouched.weight_distance) == (0, 0)
    check_numbers_of_clips(study)
    assert rows.anchor.nunique() == 1


def check_numbers_of_clips(study):
    "Each row says how many clips its numbers are of; four are too few for CKA"
    _, _, test = source_data(study.base)
    assert test.n == 4
    assert set(study.final.source_clips) == {study.untouched.source_clips} == {4}
    assert set(study.final.test_clips) == {4}
    assert set(study.rows.valid_clips[:-1]) == {4}
    assert study.untouched.source_chance == .5
    assert study.rows.cka_unbiased.isna().all()


def check_choice(study):
    "The strength of each strategy is the one with the best valid accuracy, the strongest of equals"
    for s, g in study.trial.groupby('strategy'):
        strength = 'lr' if s == 'finetune' else 'lam'
        g = g.sort_values(strength, ascending=s != 'finetune')  # from weak to strong
        best = g[g.valid_acc1 == g.valid_acc1.max()].iloc[-1]
        assert set(study.final[study.final.strategy == s][strength]) == {best[strength]}


def check_folders(study):
    first = study.final.iloc[0]
    run = study.run_folder(first.key)
    assert {p.name for p in run.iterdir() if p.name[0] != '.'} == RUN_FILES
    log = pd.read_csv(run/'epochs.csv')
    assert len(log) == 2
    assert {'kept_acc', 'kept_drift', 'kept_weights'} <= set(log.columns)
    course = pd.read_csv(run/'curve.csv')
    assert course.drift.tolist() == pytest.approx(log.kept_drift.tolist())
    assert set(course.clips) == {4}
    kept = json.loads((run/'kept.json').read_text())
    assert kept['source_probe'] == first.source_probe
    assert any(k.startswith('layers.') for k in kept)
    assert kept['source_clips'] == 4
    assert right(pd.read_csv(run/'scores.csv')).mean() == pytest.approx(first.acc1)
    assert not (study.run_folder(study.trial.key.iloc[0])/'kept.json').exists()


def check_answers(study):
    "The old head's answers, before and after, give each accuracy again, with a row for each source test video"
    videos = list(source_data(study.base)[0].items('test'))
    before = study.out/'source'/study.untouched.key/'scores.csv'
    reference = load_source(study.base, study.out).retention.reference
    after = [study.run_folder(key)/'source_scores.csv' for key in study.final.key]
    checked = [(before, study.untouched.source_acc, reference)]
    checked += zip(after, study.final.source_acc, study.kept, strict=True)
    for file, accuracy, kept in checked:
        s = pd.read_csv(file)
        assert right(s).mean() == pytest.approx(accuracy)
        assert list(zip(s.path, s.label)) == videos
        assert s[['down', 'right']].to_numpy() == pytest.approx(kept.answers.numpy(), rel=1e-5)
    assert len({f.read_bytes() for f in (before, *after)}) == 13  # each has answers of its own


def check_again(study):
    "Nothing is done, nothing changes"
    def stamps(): return {p:p.stat().st_mtime_ns for p in study.out.rglob('result.json')}
    before = stamps()
    pd.testing.assert_frame_equal(study.again(log := Log()), study.rows)
    assert all(skipped for _, skipped in log.rows)
    assert stamps() == before


def check_report(study):
    table = write_report(study.rows, study.out)
    for n in ('runs.csv', 'table.csv', 'table.md', 'figure.png'): assert (study.out/n).stat().st_size, n
    assert table.strategy.tolist() == [*CLASSIC, 'untouched']
    written = pd.read_csv(study.out/'runs.csv')
    pd.testing.assert_series_equal(written.acc1, study.rows.acc1.astype(float), check_names=False)
    page, = load_results(study.out)
    by = page.source.groupby(['strategy', 'seed']).right.mean()
    for r in study.final[study.final.chosen.astype(bool)].itertuples():
        assert by[r.strategy, r.seed] == pytest.approx(r.source_acc)
    assert by['untouched', 0] == pytest.approx(study.untouched.source_acc)
    # the two classes have equally many test videos
    change = by.drop('untouched').groupby('strategy').mean() - study.untouched.source_acc
    assert (page.classes('source').mean() - change).abs().max() < 1e-9


def test_compare_end_to_end(study):
    check_rows(study)
    check_choice(study)
    check_folders(study)
    check_again(study)
    check_report(study)
    check_answers(study)


def test_trials_of_equal_learning_measure_what_was_kept_without_test(base, tmp_path):
    run = replace(base, strategy='l2sp', lam=.1, source_valid=True)
    source = load_source(run, tmp_path)
    row = execute(run, tmp_path)
    for c in ('acc1', 'source_acc', 'source_probe'): assert row[c] is None, c
    # by hand: the probe on what is left of train, scored on the groups held out of it
    learn, _ = train_run(run, source)
    task, dls, _ = source_data(run)
    groups = task.df.groupby('split').group.agg(set)
    assert task.count('valid')
    assert not groups['valid'] & (groups['train'] | groups['test'])
    train, (x, y) = (extract(learn.model[0], task.dl(dls, s)) for s in ('train', 'valid'))
    assert row['valid_source_probe'] == pytest.approx(linear_probe(*train, x, y))
    assert row['valid_source_acc'] == pytest.approx((source.model[1](x).argmax(1) == y).float().mean().item())


TRIALS = dict(valid_acc1=[.9, .895, .8], valid_source_probe=[.5, .6, .9], valid_source_acc=[.7, .6, .9],
              acc1=[.1, .2, .99])


@pytest.mark.parametrize('all_strengths', [False, True])
@pytest.mark.parametrize('rule, kept, want', [('accuracy', 'source_probe', 1.), ('equal_learning', 'source_probe', 2.),
                                              ('equal_learning', 'source_acc', 1.)])
def test_the_choice_follows_what_trials_measured(base, tmp_path, monkeypatch, rule, kept, want, all_strengths):
    grids = dict(l2sp=strength_grid('l2sp', .05, [1, 2, 3]), finetune=strength_grid('finetune', .05))
    def trial(run, *a, **kw):
        settings = [(g['lam'], g['lr']) for g in grids[run.strategy]]
        measured = {c:values[settings.index((run.lam, run.lr))] for c, values in TRIALS.items()}
        fields = dict(strategy=run.strategy, lam=run.lam, lr=run.lr, seed=run.seed, final=run.final, status='ok')
        return {c:None for c in COLUMNS} | fields | measured
    monkeypatch.setattr(execute_module, 'execute', trial)
    rows = compare(base, grids, tmp_path, seeds=2, rule=rule, kept=kept, all_strengths=all_strengths)
    assert len(rows) == 1 + (12 if all_strengths else 6 + 4)
    chosen = rows[(rows.strategy == 'l2sp') & rows.chosen.astype(bool)]
    assert set(chosen.lam) == {want}
    assert len(chosen) == 2
    assert chosen.final.all()


def test_all_strengths_run_with_every_seed(base, tmp_path):
    grids = {s:strength_grid(s, .05, None, 2)[:2] for s in ('finetune', 'l2sp')}
    rows = compare(base, grids, tmp_path, seeds=2, all_strengths=True, progress=(log := Log()))
    assert len(rows) == 2*2*2 + 1
    assert log.planned == 8
    assert rows.final.all()
    assert rows.acc1[:-1].notna().all()
    assert rows.chosen.sum() == 2*2 + 1
    for s, g in rows[rows.strategy != 'untouched'].groupby('strategy'):
        setting, chosen = 'lam' if s == 'l2sp' else 'lr', g[g.chosen.astype(bool)]
        valid = g.astype(dict(valid_acc1=float)).groupby(setting).valid_acc1.mean()
        assert chosen[setting].nunique() == 1
        assert valid[chosen[setting].iloc[0]] == valid.max()
    write_report(rows, tmp_path)
    for n in ('paths.png', 'trade_off_source_acc.csv', 'trade_off_source_probe.md'):
        assert (tmp_path/n).stat().st_size, n


@pytest.mark.nightly
def test_two_invocations_share_the_work(longer, tmp_path):
    load_source(longer, tmp_path)
    grids = dict(finetune=[dict(lr=.05)], ema_teacher=[dict(lam=1.)])
    files = tmp_path/'a', tmp_path/'b'
    pids = [fork(lambda f=f: compare(longer, grids, tmp_path, seeds=3, progress=Log(f))) for f in files]
    assert exit_codes(pids) == [0, 0]
    done = [[l.split()[0] for l in f.read_text().splitlines() if l.endswith('False')] for f in files]  # not skipped
    runs = sorted(f.parent.name for f in tmp_path.glob('runs/*/result.json'))
    assert len(runs) == 6
    assert sorted(done[0] + done[1]) == runs
    assert all(done)
    both, alone = (compare(longer, grids, out, seeds=3).drop(columns='seconds') for out in (tmp_path, tmp_path/'alone'))
    pd.testing.assert_frame_equal(both, alone)
