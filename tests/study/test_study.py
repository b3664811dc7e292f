"Keys of runs, and options written as text."
from dataclasses import asdict, replace

import pytest

from sdfast.errors import InputError
from sdfast.study.config import Run

# fields that do not decide the model before fine-tuning
TARGET_FIELDS = ('strategy', 'strategy_args', 'lam', 'seed', 'epochs', 'lr', 'schedule', 'wd', 'bs', 'valid_frac',
                 'select', 'patience', 'others', 'with_barrier', 'final', 'task')


def another(field, value):
    "Another valid value of a field"
    if field == 'select': return 'valid'
    if isinstance(value, bool): return not value
    return value + 1 if isinstance(value, (int, float)) else f'{value}x'


def test_a_key_is_of_all_fields(base):
    assert base.key == replace(base).key
    assert len(base.key) == 12
    for field, value in asdict(base).items():
        other = replace(base, **{field: another(field, value)})
        assert other.key != base.key, field
        # one source model for all strategies and seeds
        assert (other.source_key == base.source_key) == (field in TARGET_FIELDS), field


def test_options():
    with pytest.raises(InputError, match='name=value'): Run(model_args='x').options()
    options = Run(model_args='pad_type=same,width=8,flag=true').options()
    assert options == dict(pad_type='same', width=8, flag=True)
