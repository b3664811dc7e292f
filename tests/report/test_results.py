"What is read from a study's folder, by hand."
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_study import CLASSES

from sdfast.report.load import load_results


@pytest.fixture
def r(study): return load_results(study)[0]


def test_runs(r):
    assert len(r.rows) == 19
    assert len(r.failed) == 1
    assert set(r.tuned.groupby('strategy').size()) == {3}
    assert r.run['source'] == 'source & co'
    assert r.versions == [dict(sdfast='0.1.0', torch='2.9', python='3.11', threads=1, runs=18)]


def test_classes_of_the_source(r):
    change = r.classes('source')
    assert list(change) == ['finetune', 'self_distill', 'l2sp']
    assert change.index[0] == CLASSES[0], 'most forgotten first'
    assert change.finetune[CLASSES[0]] == -1
    assert change.finetune[CLASSES[1]] == pytest.approx(-(1/2)/3)
    assert (change[['self_distill', 'l2sp']] == 0).all(axis=None)


def test_classes_of_the_target(r):
    change = r.classes('target')
    assert list(change) == ['self_distill', 'l2sp']
    assert change.l2sp[CLASSES[3]] == -1
    assert change.l2sp.sum() == -1
    assert (change.self_distill == 0).all()


def test_clips(r):
    most, least = r.clips(3)
    assert [Path(p).name[-5] for p in most.path] == ['0', '4', '1']
    assert most.before[0] == pytest.approx(.9)
    assert most.after[0] == pytest.approx(.4/3)
    assert most.answer[0] == CLASSES[1]
    # the third is right in two of three seeds
    assert most.after[2] == pytest.approx((.4/3 + .6 + .6)/3)
    assert most.answer[2] == most.label[2] == CLASSES[1]
    assert most['right.finetune'].tolist() == [0, 0, 2]
    assert most['right.l2sp'].tolist() == [3, 3, 3]
    assert least.after.iloc[0] == pytest.approx(.6)


def test_flips(r):
    "Finetune forgets the first class in all seeds, and one video of the second in the first seed"
    table = r.flips()
    assert list(table) == ['strategy', 'path', 'label', 'before', 'runs', 'forgotten', 'learned']
    assert table.before.all() and not table.learned.any()
    for strategy, mine in table.groupby('strategy', sort=False):
        tuned = r.source[r.source.strategy == strategy]
        for row in mine.itertuples():
            right = tuned[tuned.path == row.path].right
            assert (row.forgotten, row.runs) == ((~right.astype(bool)).sum(), len(right))
    mine = table[table.strategy == 'finetune']
    assert mine.forgotten.is_monotonic_decreasing and mine.forgotten.tolist()[:3] == [3, 3, 1]
    assert [Path(p).name[-5] for p in mine.path[:3]] == ['0', '4', '1']
    assert not table[table.strategy != 'finetune'].forgotten.any()


def test_a_clip_that_was_wrong_before_can_only_be_learned(r):
    wrong = (r.source.strategy == 'untouched') & (r.source.label == CLASSES[2])
    r.source = r.source.assign(right=r.source.right.astype(bool) & ~wrong)
    table = r.flips()
    assert (table.before == (table.label != CLASSES[2])).all()
    assert (table.learned == table.runs.where(table.label == CLASSES[2], 0)).all()


def test_flips_without_answers(r):
    r.source = r.source[:0]
    assert list(r.flips()) == ['strategy', 'path', 'label', 'before', 'runs', 'forgotten', 'learned']


def test_course(r):
    assert len(r.course) == 27
    last = r.course[(r.course.strategy == 'finetune') & (r.course.epoch == 2)]
    assert last.source_acc.mean() == pytest.approx(.4 + .01 - .2)


def test_the_most_frequent_answer(r):
    "Of equally frequent ones the first by name, as pandas' mode has it, separately for each video"
    rng, n = np.random.default_rng(0), 40

    def answers(strategy, seed, given):
        is_right = np.array(given) == CLASSES[0]
        return pd.DataFrame(dict(strategy=strategy, seed=seed, path=[f'v{i}' for i in range(n)], label=CLASSES[0],
                                 answer=given, right=is_right, p=rng.uniform(size=n)))

    tuned = [answers('finetune', seed, rng.choice(CLASSES, n)) for seed in range(4)]
    r.source = pd.concat([answers('untouched', 0, [CLASSES[0]]*n), *tuned], ignore_index=True)
    got = pd.concat(r.clips(n//2)).set_index('path').answer
    want = pd.concat(tuned).groupby('path').answer.agg(lambda s: s.mode().iloc[0])
    assert len(got) == n
    assert got.to_dict() == want.to_dict()
