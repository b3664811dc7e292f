"The script of pre-training: a stage that is killed resumes and ends with the same weights."
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from helpers import same, state
from safetensors.torch import load_file

from sdfast.data.digits import write_video
from sdfast.errors import InputError
from sdfast.models.encoders import create_encoder
from sdfast.models.weights import load_encoder
from sdfast.pretext import METHODS, RSPNet, read_checkpoint, read_rspnet
from sdfast.runtime.progress import Progress

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def script():
    from sdfast.study import pretrain
    return pretrain


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    "Twelve videos of 10 frames, in folders that are no classes, and one file that is broken"
    import numpy as np
    root = tmp_path_factory.mktemp('videos')
    for i in range(24):
        x = np.zeros((10, 32, 32), np.uint8)
        for t in range(10): x[t, 4 + i % 8:12 + i % 8, 2*t:2*t + 8] = 200
        (root/f'd{i % 3}').mkdir(exist_ok=True)
        write_video(root/f'd{i % 3}'/f'{i}.mp4', x)
    (root/'d0'/'broken.mp4').write_bytes(b'not a video')
    return root


SMALL = {'frames': 4, 'size': 24, 'bs': 4, 'epochs': 3, 'model-args': 'width=2', 'lr': .01}
ARGS = dict(pace='paces=[1,2],restart=false', rspnet='queue=8', order='gap=0')


def command(videos, out, method='pace', **more):
    options = {'method': method, 'task': f'videos:{videos}', 'out': out, 'method-args': ARGS[method], **SMALL, **({'frames': 3} if method == 'order' else {}), **more}
    return [sys.executable, str(ROOT/'experiments/pretrain.py'), *(f'--{k}={v}' for k, v in options.items())]


ENV = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', COLUMNS='200')


def run(*args, **kwargs): return subprocess.run(command(*args, **kwargs), capture_output=True, text=True, timeout=600, env=ENV)


def result(out): return json.loads(next(Path(out).glob('*/result.json')).read_text())


@pytest.mark.parametrize('method', ['pace', 'rspnet'])
def test_a_killed_process_goes_on_and_ends_with_the_same_weights(videos, tmp_path, method):
    whole = run(videos, tmp_path/'a', method)
    assert whole.returncode == 0, whole.stderr[-2000:]
    p = subprocess.Popen(command(videos, tmp_path/'b', method), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV)
    for line in p.stdout:
        if line.startswith('epoch 1/3'): break
    os.kill(p.pid, signal.SIGKILL)
    p.wait()
    assert not list((tmp_path/'b').glob('*/result.json')) and list((tmp_path/'b').glob('*/epoch-*.pt'))
    rest = run(videos, tmp_path/'b', method)
    assert rest.returncode == 0 and 'goes on behind epoch' in rest.stdout, rest.stderr[-2000:]
    a, b, where = result(tmp_path/'a'), result(tmp_path/'b'), ('weights', 'files', 'sha256')
    assert same(load_file(a['weights']), load_file(b['weights'])) and {k:v for k, v in a.items() if k not in where} == {k:v for k, v in b.items() if k not in where}
    read = [pd.read_csv(next((tmp_path/d).glob('*/epochs.csv'))) for d in 'ab']
    pd.testing.assert_frame_equal(*read)
    assert not list(tmp_path.glob('*/*/epoch-*.pt')) and len(read[0]) == 3
    assert 'broken' in whole.stderr + whole.stdout  # told, and left out
    again = run(videos, tmp_path/'b', method)
    assert again.returncode == 0 and 'epoch 1/3' not in again.stdout  # finished: not done again


class Dead(Progress):
    "Ctrl-C in the middle of an epoch"
    def __init__(self, epoch): self.at = epoch
    def epoch(self, epoch, done):
        if epoch == self.at and done > .4: raise KeyboardInterrupt


@pytest.mark.parametrize('method', METHODS)
def test_every_method_goes_on_to_the_bit(script, videos, tmp_path, method):
    "Queues, banks, momentum encoders, orders of videos and what is drawn for a clip are as if nothing had happened"
    args = ARGS | dict(puzzle='span=1,hidden=6', cvrl='hidden=6,dim=4,blur=[0,0],solarise=[0,0]', iic='negatives=5', mas=f'folder={tmp_path}')
    if method == 'mas': pytest.importorskip('cv2', reason="optical flow needs OpenCV: pip install -e '.[pretext]'")
    stage, _ = script.make_stage(method, f'videos:{videos}', model_args='width=2', method_args=args[method], frames=dict(order=3, puzzle=2).get(method, 4), size=24, bs=4, epochs=3, lr=.01)
    whole = script.pretrain(stage, tmp_path/'a')
    for epoch in (0, 1, 2):
        with pytest.raises(KeyboardInterrupt): script.pretrain(stage, tmp_path/'b', Dead(epoch))
    again = script.pretrain(stage, tmp_path/'b')
    assert same(load_file(whole['weights']), load_file(again['weights'])) and whole['scores'] == again['scores'] and whole['valid_loss'] == again['valid_loss']


def test_what_is_written_loads_and_says_what_it_is(script, videos, tmp_path):
    stage, say = script.make_stage('rspnet', f'videos:{videos}', model_args='width=2', method_args='queue=10,jitter=[.4,0,0,0]', frames=4, size=24, bs=4, epochs=1)
    assert '24 videos to train on' in say and '1 held out' in say and stage.schedule == 'epoch_cosine' and stage.wd == 1e-4  # the reference's
    found = script.pretrain(stage, tmp_path)
    assert found['config']['queue'] == 8 and found['config']['jitter'] == [.4, 0, 0, 0] and [s['name'] for s in found['scores']] == ['rsp_acc', 'avid_acc']
    a, b, c = (create_encoder('tiny', width=2) for _ in range(3))
    load_encoder(a, found['weights'])
    m = read_checkpoint(found['weights'], b)
    load_encoder(c, Path(found['weights']).parent/'rspnet.pth.tar')
    assert same(state(a), state(b)) and same(state(a), state(c)) and type(m) is RSPNet
    d = create_encoder('tiny', width=2)
    assert same(state(read_rspnet(Path(found['weights']).parent/'rspnet.pth.tar', d).pretext_net), state(m.pretext_net))
    low, value, high = (found['scores'][0][k] for k in ('low', 'value', 'high'))
    assert low <= value <= high and found['scores'][0]['chance'] == .5


def test_every_method_has_a_recipe_and_fits_the_digits(script):
    assert set(script.RECIPES) == set(script.SHORT) == set(METHODS)
    for name in METHODS:
        stage, _ = script.make_stage(name, 'moving_digits', clips=2)
        method = script.make_method(stage)
        assert set(method.chances) == set(method.score_names)


def test_schedules_of_the_references(script):
    stage, _ = script.make_stage('pace', 'moving_digits', clips=2, schedule='thirds', lr=1., epochs=18)
    assert [round(script.stage_rates(stage)(e/18), 6) for e in (0, 5, 6, 11, 12, 17)] == [1, 1, .1, .1, .01, .01]
    assert script.RECIPES['pace'] == dict(epochs=18, bs=30, lr=1e-3, wd=5e-3, schedule='thirds') and script.RECIPES['order'] == dict(epochs=300, bs=8, lr=1e-3, wd=5e-4, schedule='constant')
    stage, _ = script.make_stage('iic', 'moving_digits', clips=2, schedule='fifths', lr=1., epochs=240)
    assert [round(script.stage_rates(stage)(e/240), 6) for e in (0, 44, 45, 89, 90, 124, 125, 159, 160, 239)] == [1, 1, .2, .2, .04, .04, .008, .008, .0016, .0016]
    stage, _ = script.make_stage('cvrl', 'moving_digits', clips=2, schedule='warm_cosine', lr=1.)
    rate = script.stage_rates(stage)
    assert rate(0) == 0 and rate(1787/71488/2) == pytest.approx(.5, abs=1e-3) and rate(.5) == pytest.approx(.5) and rate(1) == pytest.approx(0)
    assert {k:script.RECIPES[k] for k in ('cvrl', 'iic', 'mas')} == dict(cvrl=dict(epochs=200, bs=1024, lr=.32, wd=1e-6, schedule='warm_cosine', stride=2, size=224),
        iic=dict(epochs=240, bs=16, lr=.01, wd=1e-4, schedule='fifths'), mas=dict(epochs=18, bs=30, lr=5e-4, wd=5e-3, schedule='thirds'))


@pytest.mark.parametrize('given,why', [(dict(method='nope'), 'unknown method'), (dict(task='videos:/nowhere'), 'does not exist'), (dict(method_args='speed'), 'name=value'),
                                       (dict(method_args='speedy=2'), 'speedy'), (dict(lr=0.), 'positive'), (dict(bs=0), 'at least 1'), (dict(schedule='x'), 'unknown schedule'), (dict(model='nope'), 'unknown model')])
def test_what_cannot_work_is_told(script, given, why):
    with pytest.raises(InputError, match=why): script.make_stage(**dict(method='rspnet', task='moving_digits', clips=2) | given)


def test_another_setting_is_another_folder(script):
    one, _ = script.make_stage('pace', 'moving_digits', clips=2)
    two, _ = script.make_stage('pace', 'moving_digits', clips=2, method_args='paces=[1,2],restart=false')
    assert one.key == script.make_stage('pace', 'moving_digits', clips=2)[0].key != two.key


# the table
