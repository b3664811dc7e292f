"Modes of modules."
import pytest

from sdfast.models.encoders import create_model
from sdfast.models.features import eval_mode


def test_eval_mode_restores_each_module():
    model = create_model('tiny', 2)
    model[0].body[0].eval()
    modes = [m.training for m in model.modules()]
    with pytest.raises(ZeroDivisionError), eval_mode(model):
        assert not any(m.training for m in model.modules())
        1/0
    assert [m.training for m in model.modules()] == modes
