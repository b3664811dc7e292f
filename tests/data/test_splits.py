"Splits by group: no group on both sides, no class lost."
import numpy as np
import pandas as pd
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import ROWS, frame

from sdfast.data import splits as splits_module
from sdfast.data.splits import split_groups
from sdfast.errors import InputError


@pytest.mark.parametrize('seed', range(40))
def test_the_last_resort_takes_the_smallest_groups_that_can_be_spared(seed, monkeypatch):
    "As a loop over groups that looks at all rows each time"
    rng, n = np.random.default_rng(seed), 60
    df = pd.DataFrame(dict(label=rng.integers(0, 4, n).astype(str), group=rng.integers(0, 15, n).astype(str)))
    class None_(splits_module.StratifiedGroupKFold):
        def split(self, *args): return []
    monkeypatch.setattr(splits_module, 'StratifiedGroupKFold', None_)
    y, taken = df.label.values, np.zeros(n, bool)
    for group in df.group.sample(frac=1, random_state=seed).value_counts(sort=False).sort_values(kind='stable').index:
        more = taken | (df.group.values == group)
        if (not taken.any() or more.sum() <= .9*n) and set(y[~more]) == set(y): taken = more
    assert taken.any()
    assert split_groups(df, .9, seed, 'x').tolist() == np.flatnonzero(taken).tolist()


def test_rows_that_are_all_groups_of_their_own_are_stratified_exactly():
    labels = [f'c{i%3 if i < 900 else 0}' for i in range(1000)]
    df = pd.DataFrame(dict(label=labels, group=[f'g{i}' for i in range(1000)]))
    chosen = df.iloc[split_groups(df, .2, 0, 'x')]
    assert chosen.label.value_counts().to_dict() == dict(c0=80, c1=60, c2=60)


@given(ROWS, st.floats(.05, .5), st.integers(0, 5))
@settings(max_examples=120, deadline=None)
def test_groups_never_straddle(rows, frac, seed):
    df, possible = frame(rows)
    if not possible:
        with pytest.raises(InputError, match='at least two groups'): split_groups(df, frac, seed, 'x')
        return
    chosen = split_groups(df, frac, seed, 'x')
    rest = df.drop(index=df.index[chosen])
    assert 0 < len(chosen) == len(set(chosen)) < len(df)
    assert len(rest) + len(chosen) == len(df)
    assert set(rest.label) == set(df.label)
    assert not set(rest.group) & set(df.group.iloc[chosen])
    assert list(chosen) == list(split_groups(df, frac, seed, 'x'))


def test_where_every_balanced_fold_has_all_groups_of_a_class():
    rows = [('a', 0, 1), ('a', 3, 10), ('a', 4, 1), ('b', 0, 2), ('b', 2, 1), ('b', 3, 1), ('c', 2, 1), ('c', 3, 10),
            ('d', 0, 1), ('d', 1, 2)]
    df, _ = frame(rows)
    for seed in range(8):
        chosen = split_groups(df, .5, seed, 'x')
        rest = df.drop(index=chosen)
        assert 0 < len(chosen) <= 15
        assert set(rest.label) == set('abcd')
        assert not set(rest.group) & set(df.group[chosen])


@pytest.mark.skipif(tuple(map(int, sklearn.__version__.split('.')[:2])) < (1, 9),
                    reason='StratifiedGroupKFold of scikit-learn before 1.9 balances classes less')
@given(st.integers(1, 4), st.integers(3, 12), st.integers(1, 3), st.floats(.1, .5), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_equal_groups_give_every_class_and_the_part_asked_for(classes, groups, clips, frac, seed):
    "Each class in groups of its own: valid has every class, and as many groups of each as rounding allows"
    df, _ = frame([(label, 10*i + g, clips) for i, label in enumerate('abcd'[:classes]) for g in range(groups)])
    chosen = df.iloc[split_groups(df, frac, seed, 'x')]
    per_class = chosen.groupby('label').group.nunique()
    folds = min(max(2, round(1/frac)), groups*clips)
    assert set(chosen.label) == set(df.label) or folds > groups
    # scikit-learn fills folds greedily: one group more than an even split can fall into a fold
    assert len(per_class) == 0 or per_class.max() <= -(-groups//min(folds, groups)) + 1
