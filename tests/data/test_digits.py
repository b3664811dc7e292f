"Moving digits show what their class says, and new ones change none of the old."
import numpy as np
import pandas as pd
import pytest
from tables import FEW_DIGITS

from sdfast.data import digits


@pytest.fixture
def few(monkeypatch): monkeypatch.setattr(digits, 'CLIPS', FEW_DIGITS)


def test_neither_frame_nor_motion_tells_the_class():
    for part in range(2):  # digits, motion
        for value in {str(v[part]) for v in digits.TARGET.values()}:
            assert sum(str(v[part]) == value for v in digits.TARGET.values()) == 2


def test_what_a_part_does_not_ask_for_varies(tmp_path, few, monkeypatch):
    "Digits of `motion` and motions of `digit`; all images of a class of `digit` are of that digit"
    from sklearn.datasets import load_digits
    drawn, draw, truth = [], digits._draw, load_digits().target
    def noted(rng, image, motion):
        drawn.append(str(motion))
        return draw(rng, image, motion)
    monkeypatch.setattr(digits, '_draw', noted)
    for part in digits.PARTS: digits.write_moving_digits(tmp_path/part, part)
    tables = [pd.read_csv(tmp_path/part/'manifest.csv').assign(part=part) for part in digits.PARTS]
    table = pd.concat(tables, ignore_index=True)
    table['motion'], table['digit'] = drawn, truth[table.group.str.removeprefix('image').astype(int)]
    motion, digit = table[table.part == 'motion'], table[table.part == 'digit']
    assert (motion.label == 'any_' + motion.motion).all()
    assert motion.digit.nunique() > 6
    assert (digit.label == digit.digit.astype(str) + '_any').all()
    assert set(digit.motion) == set(digits.MOTIONS)


def test_new_parts_and_splits_left_the_old_clips_as_they_were(tmp_path, few, monkeypatch):
    for part in ('source', 'target'): digits.write_moving_digits(tmp_path/'all'/part, part)
    monkeypatch.setattr(digits, 'PARTS', dict(source=digits.SOURCE, target=digits.TARGET))
    without_valid = dict(train=FEW_DIGITS['source']['train'], test=FEW_DIGITS['source']['test'])
    monkeypatch.setattr(digits, 'CLIPS', dict(source=without_valid, target=FEW_DIGITS['target']))
    for part in ('source', 'target'): digits.write_moving_digits(tmp_path/'old'/part, part)
    old = [p.relative_to(tmp_path/'old') for p in (tmp_path/'old').rglob('*.mp4')]
    assert len(old) == 220
    assert all((tmp_path/'all'/p).read_bytes() == (tmp_path/'old'/p).read_bytes() for p in old)


def test_drawn_motion_is_what_the_label_says():
    rng, image = np.random.default_rng(0), np.ones((16, 16), np.float32)
    def path(motion):
        x = digits._draw(rng, image, motion).astype(float) > 127
        return np.stack([np.argwhere(f).mean(0) for f in x])  # row, column of the digit's centre
    for motion, axis, sign in [('left', 1, -1), ('right', 1, 1), ('up', 0, -1), ('down', 0, 1)]:
        p = path(motion)
        assert sign*(p[-1] - p[0])[axis] > 5
        assert abs((p[-1] - p[0])[1 - axis]) < 1.5
    for motion, sign in [('clockwise', 1), ('anticlockwise', -1)]:
        step = np.diff(path(motion), axis=0)
        turn = step[:-1, 1]*step[1:, 0] - step[:-1, 0]*step[1:, 1]  # rows grow downwards: positive is clockwise
        assert sign*turn.sum() > 0
