"Pre-training with labels: it is the source stage of a study, its files are read as those of other methods."
import json

import pytest
from helpers import same, state
from safetensors.torch import load_file

from sdfast.errors import InputError
from sdfast.models.encoders import create_encoder
from sdfast.models.heads import read_head
from sdfast.models.weights import load_encoder
from sdfast.pretext import read_checkpoint
from sdfast.runtime.progress import Progress
from sdfast.study.config import Run
from sdfast.study.pretrain import make_stage, pretrain
from sdfast.study.source import source_weights

SMALL = dict(model_args='width=2', frames=4, size=24, bs=4, epochs=2, lr=.05, wd=0.)


@pytest.fixture
def stage(clips): return make_stage('supervised', f'folder:{clips}', **SMALL)[0]


class CtrlC(Progress):
    "Ctrl-C at the start of the second epoch"
    def epoch(self, epoch, done):
        if epoch == 1: raise KeyboardInterrupt


def test_it_is_the_source_stage(clips, stage, tmp_path):
    "The weights are those that a study trains on the same part of the source"
    found = pretrain(stage, tmp_path/'a')
    run = Run(task=stage.task, source=stage.task, source_epochs=2, source_lr=.05, source_bs=4, bs=4, source_valid=True,
              model_args='width=2', frames=4, size=24)
    model, _ = source_weights(run, tmp_path/'b')
    encoder = load_encoder(create_encoder('tiny', width=2), found['weights'])
    assert same(state(encoder), state(model[0]))
    head = read_head(found['weights'], encoder, found['config']['classes'])
    assert same(state(head), state(model[1]))
    score, = found['scores']
    assert score['name'] == 'accuracy'
    assert score['chance'] == 1/found['config']['classes']


def test_it_resumes_bit_for_bit(stage, tmp_path):
    whole = pretrain(stage, tmp_path/'a')
    with pytest.raises(KeyboardInterrupt): pretrain(stage, tmp_path/'b', CtrlC())
    again = pretrain(stage, tmp_path/'b')
    assert same(load_file(whole['weights']), load_file(again['weights']))
    assert whole['scores'] == again['scores']
    folder = tmp_path/'a'/stage.key
    assert json.loads((folder/'result.json').read_text())['method'] == 'supervised'
    assert {f.name for f in folder.iterdir()} - {'.lock'} == {'epochs.csv', 'result.json', 'weights.safetensors'}


def test_its_file_has_no_pretext_task(stage, tmp_path):
    found = pretrain(stage, tmp_path)
    with pytest.raises(InputError, match='trained with labels'):
        read_checkpoint(found['weights'], create_encoder('tiny', width=2))


@pytest.mark.parametrize('given,why', [
    (dict(method_args='x=1'), 'takes no --method-args'), (dict(opt='adam'), 'trains by SGD'),
    (dict(grad_clip=1.), 'trains by SGD'), (dict(mom=.5), 'trains by SGD'),
])
def test_other_settings_are_refused(clips, given, why):
    with pytest.raises(InputError, match=why): make_stage('supervised', f'folder:{clips}', **SMALL, **given)


def test_videos_without_labels_are_refused(clips):
    with pytest.raises(InputError, match='needs labels'): make_stage('supervised', f'videos:{clips}', **SMALL)
