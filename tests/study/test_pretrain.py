"Pre-training: a stage that is killed resumes and ends with the same weights; recipes, schedules, errors."
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.torch_core import set_seed
from helpers import same, state
from pretraining import needs_opencv
from safetensors.torch import load_file

from sdfast.data.digits import write_video
from sdfast.errors import InputError
from sdfast.models.encoders import create_encoder
from sdfast.models.weights import load_encoder
from sdfast.pretext import METHODS, RSPNet, read_checkpoint, read_rspnet
from sdfast.runtime.progress import Progress
from sdfast.study.pretrain import OPTIMIZERS, Stage, make_method, make_stage, pretrain
from sdfast.study.pretrain_recipes import RECIPES, SHORT, stage_rates

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    "24 videos of 10 frames, in folders that are no classes, and one file that is broken"
    root = tmp_path_factory.mktemp('videos')
    for i in range(24):
        x = np.zeros((10, 32, 32), np.uint8)
        for t in range(10): x[t, 4 + i % 8:12 + i % 8, 2*t:2*t + 8] = 200
        (root/f'd{i % 3}').mkdir(exist_ok=True)
        write_video(root/f'd{i % 3}'/f'{i}.mp4', x)
    (root/'d0'/'broken.mp4').write_bytes(b'not a video')
    return root


# the command

OPTIONS = {'frames': 4, 'size': 24, 'bs': 4, 'epochs': 3, 'model-args': 'width=2', 'lr': .01}
ARGS = dict(pace='paces=[1,2],restart=false', rspnet='queue=8', order='gap=0')
ENV = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', COLUMNS='200')


def command(videos, out, method):
    options = OPTIONS | {'method': method, 'task': f'videos:{videos}', 'out': out, 'method-args': ARGS[method]}
    return [sys.executable, str(ROOT/'experiments/pretrain.py'), *(f'--{k}={v}' for k, v in options.items())]


def run(*args):
    p = subprocess.run(command(*args), capture_output=True, text=True, timeout=600, env=ENV)
    assert p.returncode == 0, p.stderr[-2000:]
    return p


def kill_after_an_epoch(*args):
    p = subprocess.Popen(command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV)
    for line in p.stdout:
        if line.startswith('epoch 1/3'): break
    os.kill(p.pid, signal.SIGKILL)
    p.wait()


def result(out): return json.loads(next(Path(out).glob('*/result.json')).read_text())


@pytest.mark.nightly
@pytest.mark.parametrize('method', ['pace', 'rspnet'])
def test_a_killed_process_resumes_and_ends_with_the_same_weights(videos, tmp_path, method):
    whole = run(videos, tmp_path/'a', method)
    assert 'broken' in whole.stderr + whole.stdout  # named, and skipped
    kill_after_an_epoch(videos, tmp_path/'b', method)
    assert not list((tmp_path/'b').glob('*/result.json'))
    assert list((tmp_path/'b').glob('*/epoch-*.pt'))
    rest = run(videos, tmp_path/'b', method)
    assert 'resumes after epoch' in rest.stdout

    a, b = result(tmp_path/'a'), result(tmp_path/'b')
    assert same(load_file(a['weights']), load_file(b['weights']))
    for found in (a, b):
        for name in ('weights', 'files', 'sha256'): del found[name]
    assert a == b
    logs = [pd.read_csv(next((tmp_path/d).glob('*/epochs.csv'))) for d in 'ab']
    pd.testing.assert_frame_equal(*logs)
    assert len(logs[0]) == 3
    assert not list(tmp_path.glob('*/*/epoch-*.pt'))

    again = run(videos, tmp_path/'b', method)
    assert 'epoch 1/3' not in again.stdout  # finished: not trained again


# stages

class CtrlC(Progress):
    "Ctrl-C in the middle of an epoch"
    def __init__(self, epoch): self.at = epoch
    def epoch(self, epoch, done):
        if epoch == self.at and done > .4: raise KeyboardInterrupt


@pytest.mark.parametrize('method', METHODS)
def test_every_method_resumes_bit_for_bit(videos, tmp_path, method):
    "Queues, banks, momentum encoders, orders of videos and draws for clips are as without an interruption"
    args = ARGS | dict(puzzle='span=1,hidden=6', cvrl='hidden=6,dim=4,blur=[0,0],solarise=[0,0]', iic='negatives=5',
                       mas=f'folder={tmp_path}', memdpc='blocks=4,steps=2,slots=5', cycle='steps=3,ahead=1,dim=8',
                       dogo='hidden=6,dim=4,blur=0', hdc='dim=4,blur=0')
    if method == 'mas': needs_opencv()
    frames = dict(order=3, puzzle=2, memdpc=2, cycle=1).get(method, 4)
    stage, _ = make_stage(method, f'videos:{videos}', model_args='width=2', method_args=args[method], frames=frames,
                          stride=1, size=48 if method == 'cycle' else 24, bs=4, epochs=3, lr=.01)
    whole = pretrain(stage, tmp_path/'a')
    for epoch in (0, 1, 2):
        with pytest.raises(KeyboardInterrupt): pretrain(stage, tmp_path/'b', CtrlC(epoch))
    again = pretrain(stage, tmp_path/'b')
    assert same(load_file(whole['weights']), load_file(again['weights']))
    assert whole['scores'] == again['scores']
    assert whole['valid_loss'] == again['valid_loss']


def test_what_is_written_loads_and_says_what_it_is(videos, tmp_path):
    stage, message = make_stage('rspnet', f'videos:{videos}', model_args='width=2', frames=4, size=24, bs=4, epochs=1,
                                method_args='queue=10,jitter=[.4,0,0,0]')
    assert '24 videos to train on' in message
    assert '1 held out' in message
    assert stage.schedule == 'epoch_cosine'  # the reference's
    assert stage.wd == 1e-4
    found = pretrain(stage, tmp_path)
    assert found['config']['queue'] == 8
    assert found['config']['jitter'] == [.4, 0, 0, 0]
    score = found['scores'][0]
    assert [s['name'] for s in found['scores']] == ['rsp_acc', 'avid_acc']
    assert score['low'] <= score['value'] <= score['high']
    assert score['chance'] == .5

    ours, theirs = Path(found['weights']), Path(found['weights']).parent/'rspnet.pth.tar'
    a, b, c, d = (create_encoder('tiny', width=2) for _ in range(4))
    load_encoder(a, ours)
    method = read_checkpoint(ours, b)
    load_encoder(c, theirs)
    assert type(method) is RSPNet
    assert same(state(a), state(b))
    assert same(state(a), state(c))
    assert same(state(read_rspnet(theirs, d).pretext_net), state(method.pretext_net))


def test_other_settings_have_another_folder():
    def key(**given): return make_stage('pace', 'moving_digits', clips=2, **given)[0].key
    assert key() == key()
    assert key() != key(method_args='paces=[1,2],restart=false')


def test_keys_stay():
    "A finished stage is found again by its key"
    stage = Stage('pace', 'videos:x', **RECIPES['pace'], frames=16, stride=1, size=112, files='a')
    assert stage.key == 'de1b09160c92'
    others = [replace(stage, **given).key for given in (dict(opt='adam'), dict(mom=.5), dict(grad_clip=1.))]
    assert len({stage.key, *others}) == 4


def test_adam_is_that_of_torch():
    "With L2, and `mom` as its first decay"
    w, grad = torch.nn.Parameter(torch.ones(3)), torch.tensor([.3, -2., 1e-5])
    opt = OPTIMIZERS['adam']([w], lr=.1, mom=.5, wd=1e-3, decouple_wd=False)
    for _ in range(2):
        w.grad = grad.clone()
        opt.step()
    expected = torch.ones(3, requires_grad=True)
    theirs = torch.optim.Adam([expected], .1, (.5, .999), weight_decay=1e-3)
    for _ in range(2):
        expected.grad = grad.clone()
        theirs.step()
    torch.testing.assert_close(w.detach(), expected.detach(), rtol=1e-5, atol=1e-7)


def test_gradients_are_clipped(videos, tmp_path):
    "With SGD without momentum a step moves the weights by at most lr times the norm"
    stage, _ = make_stage('pace', f'videos:{videos}', model_args='width=2', method_args=ARGS['pace'], frames=4, size=24,
                          bs=22, epochs=1, lr=1., wd=0., mom=0., opt='sgd', grad_clip=1e-3, schedule='constant')
    set_seed(stage.seed)
    before = create_encoder('tiny', width=2)
    after = load_encoder(create_encoder('tiny', width=2), pretrain(stage, tmp_path)['weights'])
    moved = sum((a - b).square().sum() for a, b in zip(before.parameters(), after.parameters()))**.5
    steps = 24//stage.bs
    assert 0 < moved <= 1.01e-3*steps


@pytest.mark.parametrize('given,why', [
    (dict(method='nope'), 'unknown method'), (dict(task='videos:/nowhere'), 'does not exist'),
    (dict(method_args='speed'), 'name=value'), (dict(method_args='speedy=2'), 'speedy'), (dict(lr=0.), 'positive'),
    (dict(bs=0), 'at least 1'), (dict(opt='x'), '--opt must be sgd or adam'), (dict(mom=1.), '--mom must be'),
    (dict(grad_clip=-1.), '--grad-clip at least 0'), (dict(method='hdc', method_args='depths=0'), 'depths and dim'),
    (dict(schedule='x'), 'unknown schedule'), (dict(model='nope'), 'unknown model'),
])
def test_what_cannot_work_is_refused(given, why):
    settings = dict(method='rspnet', task='moving_digits', clips=2) | given
    with pytest.raises(InputError, match=why): make_stage(**settings)


# recipes

@pytest.mark.parametrize('method', METHODS)
def test_every_method_has_a_recipe_and_fits_the_digits(method):
    assert method in RECIPES
    assert method in SHORT
    stage, _ = make_stage(method, 'moving_digits', clips=2)
    made = make_method(stage)
    assert set(made.chances) == set(made.score_names)


def test_recipes_of_the_references():
    assert RECIPES['pace'] == dict(epochs=18, bs=30, lr=1e-3, wd=5e-3, schedule='thirds')
    assert RECIPES['order'] == dict(epochs=300, bs=8, lr=1e-3, wd=5e-4, schedule='constant')
    assert RECIPES['cvrl'] == dict(epochs=200, bs=1024, lr=.32, wd=1e-6, schedule='warm_cosine', stride=2, size=224)
    assert RECIPES['iic'] == dict(epochs=240, bs=16, lr=.01, wd=1e-4, schedule='fifths')
    assert RECIPES['memdpc'] == dict(epochs=500, bs=16, lr=1e-3, wd=1e-5, schedule='late_tenth', frames=5, stride=3,
                                     size=128, opt='adam')
    assert RECIPES['cycle'] == dict(epochs=30, bs=36, lr=2e-4, wd=0., schedule='constant', frames=1, stride=2, size=240,
                                    opt='adam', mom=.5, grad_clip=10.)
    assert RECIPES['dogo'] == dict(epochs=200, bs=256, lr=3e-4, wd=1e-6, schedule='constant', opt='adam')
    assert RECIPES['mas'] == dict(epochs=18, bs=30, lr=5e-4, wd=5e-3, schedule='thirds')


def rates(schedule, epochs, of):
    "Rates at the start of some epochs"
    rate = stage_rates(schedule, 1., epochs)
    return [round(rate(epoch/epochs), 6) for epoch in of]


def test_a_tenth_at_each_third():
    assert rates('thirds', 18, (0, 5, 6, 11, 12, 17)) == [1, 1, .1, .1, .01, .01]


def test_a_tenth_from_three_fifths_on():
    assert rates('late_tenth', 500, (0, 299, 300, 499)) == [1, 1, .1, .1]


def test_a_fifth_at_the_epochs_of_iic():
    found = rates('fifths', 240, (0, 44, 45, 89, 90, 124, 125, 159, 160, 239))
    assert found == [1, 1, .2, .2, .04, .04, .008, .008, .0016, .0016]


def test_the_warm_cosine_of_cvrl():
    rate = stage_rates('warm_cosine', 1., 10)
    assert rate(0) == 0
    assert rate(1787/71488/2) == pytest.approx(.5, abs=1e-3)
    assert rate(.5) == pytest.approx(.5)
    assert rate(1) == pytest.approx(0)
