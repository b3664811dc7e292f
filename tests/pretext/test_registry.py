"Every method trains, and its checkpoints load exactly and measure the same."
import numpy as np
import pytest
import torch
from helpers import same, state
from pretraining import needs_opencv, quiet, tiny

from sdfast.errors import InputError
from sdfast.models.encoders import create_encoder
from sdfast.models.weights import load_encoder
from sdfast.pretext.pace import Pace
from sdfast.pretext.registry import METHODS, read_checkpoint

SMALL = dict(rspnet=dict(queue=8, dim=6), pace=dict(paces=(1, 2)), order=dict(gap=2, hidden=4),
             puzzle=dict(span=1, hidden=6), cvrl=dict(hidden=6, dim=4), iic=dict(negatives=5), mas={},
             memdpc=dict(blocks=4, steps=2, slots=5), cycle=dict(steps=2, ahead=1, dim=8), hdc=dict(dim=4),
             dogo=dict(hidden=6, dim=4))


@pytest.fixture(params=METHODS)
def trained(request, dls, tmp_path):
    "An encoder after two epochs, what it was before, and its learner and method"
    options = dict(SMALL[request.param])
    if request.param == 'mas':
        needs_opencv()
        options['folder'] = str(tmp_path)
    learn = quiet(dls, tiny(), method := METHODS[request.param](**options), lr=.01)
    before = state(learn.model)
    learn.fit(2)
    return before, learn, method


def test_it_trains(trained):
    before, learn, method = trained
    assert all(not torch.equal(before[k], v) for k, v in learn.model.named_parameters())
    columns = [f'{part}{name}' for part in ('train_', '') for name in method.score_names]
    assert learn.recorder.metric_names[3:-1] == columns
    assert np.isfinite(learn.recorder.values[-1]).all()
    assert set(method.chances) == set(method.score_names)


def test_its_checkpoints_load_exactly_and_measure_the_same(trained, dls, tmp_path):
    _, learn, method = trained
    method.save(tmp_path/'x.safetensors')
    assert same(state(load_encoder(tiny(7), tmp_path/'x.safetensors')), state(learn.model))
    encoder = tiny(8)
    read = read_checkpoint(tmp_path/'x.safetensors', encoder)
    assert type(read) is type(method)
    assert read.config.keys() == method.config.keys()
    assert same(state(read.pretext_net), state(method.pretext_net))
    loss = method.held_out(dls.valid)(learn.model)
    assert read.held_out(dls.valid)(encoder) == loss
    assert learn.validate()[0] == pytest.approx(loss, rel=1e-5)


@pytest.fixture
def checkpoint(tmp_path):
    method = Pace(paces=(1, 2, 3), restart=False)
    method.build(tiny())
    method.save(tmp_path/'p.safetensors')
    return tmp_path/'p.safetensors'


def test_a_checkpoint_is_one_file_with_the_arguments(checkpoint):
    assert [f.name for f in checkpoint.parent.iterdir()] == ['p.safetensors']
    method = read_checkpoint(checkpoint, tiny(4))
    assert list(method.paces) == [1, 2, 3]
    assert method.restart is False


def test_other_files_and_encoders_are_refused(checkpoint, tmp_path):
    wider = create_encoder('tiny', width=3)
    with pytest.raises(InputError, match='not of this encoder'): read_checkpoint(checkpoint, wider)
    (tmp_path/'bad').write_text('x')
    with pytest.raises(InputError, match='cannot be read'): read_checkpoint(tmp_path/'bad', tiny())
