"The scripts of pre-training: a stage that is killed goes on and ends with the same weights; the table from beginning to end."
import importlib.util
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
from scipy.stats import binomtest

from sdfast.data.datasets import create_task
from sdfast.data.digits import write_video
from sdfast.errors import InputError
from sdfast.models.encoders import create_encoder
from sdfast.models.weights import load_encoder
from sdfast.pretext import METHODS, RSPNet, read_checkpoint, read_rspnet
from sdfast.runtime.progress import Progress
from sdfast.study import source as source_module

ROOT = Path(__file__).parents[2]


def load(name):
    sys.path.insert(0, str(ROOT/'experiments'))
    try:
        spec = importlib.util.spec_from_file_location(name, ROOT/f'experiments/{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally: sys.path.pop(0)


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

@pytest.fixture(scope='module')
def table(tmp_path_factory):
    out, module = tmp_path_factory.mktemp('table'), load('pretext_table')
    module.work(out, task='moving_digits', source='moving_digits', models='tiny', methods='none,order', clips=2, pretext_epochs=1, epochs=1, size=None, seeds=2, trial_seeds=1, workers=0)
    return module, out


def test_the_table_from_beginning_to_end(table):
    module, out = table
    t, runs = pd.read_csv(out/'table.csv'), pd.read_csv(out/'runs.csv')
    assert list(zip(t.method, t.strategy)) == [(m, s) for m in ('none', 'order') for s in ('finetune', 'self_distill')] and (t.runs == 2).all()
    for _, r in t.iterrows():
        mine = runs[(runs.method == r.method) & (runs.strategy == r.strategy) & runs.final & runs.chosen]
        assert r.acc1 == pytest.approx(100*mine.acc1.mean()) and r.acc5 == pytest.approx(100*mine.acc5.mean()) and r.source_probe == pytest.approx(mine.source_probe.mean())
    none, order = (runs[(runs.method == m) & (runs.strategy == 'finetune') & runs.final & runs.chosen].set_index('seed').acc1 for m in ('none', 'order'))
    assert t.none_diff[2] == pytest.approx(100*(order - none).mean()) and pd.isna(t.none_diff[0])
    untouched = runs[runs.strategy == 'untouched'].set_index('method')
    assert untouched.anchor.nunique() == 2 and t.source_probe_before[2] == pytest.approx(untouched.source_probe['order'])
    seen = create_task('moving_digits', 'source').count('test')
    right = round(seen*untouched.source_probe['order'])
    low, high = binomtest(right, seen).proportion_ci(method='wilson')
    assert right/seen == pytest.approx(untouched.source_probe['order'], abs=1e-6) and (t.source_probe_before_low[2], t.source_probe_before_high[2]) == pytest.approx((low, high), abs=1e-5)
    assert 'VCOP' in (out/'table.md').read_text() and 'chance 16.7%' in (out/'table.md').read_text()


def test_the_finished_table_trains_nothing(table, monkeypatch):
    module, out = table
    from fastai.learner import Learner
    source_module._sources.clear()
    before = (out/'table.csv').read_text()
    monkeypatch.setattr(Learner, 'fit', lambda *a, **k: pytest.fail('trained again'))
    module.work(out, task='moving_digits', source='moving_digits', models='tiny', methods='none,order', clips=2, pretext_epochs=1, epochs=1, size=None, seeds=2, trial_seeds=1, workers=0)
    assert (out/'table.csv').read_text() == before


def test_the_readmes_show_the_shipped_table():
    module, folder, page, readme = load('pretext_table'), ROOT/'experiments/results/pretext', (ROOT/'experiments/README.md').read_text(), (ROOT/'README.md').read_text()
    t, runs, scores = pd.read_csv(folder/'table.csv').fillna(dict(pretext='', printed='')), pd.read_csv(folder/'runs.csv'), pd.read_csv(folder/'pretext.csv')
    stages = {(m, p):dict(scores=g.to_dict('records')) for (m, p), g in scores.groupby(['model', 'method'])}
    again = module.measure(runs, stages, None, create_task('moving_digits', 'source').count('test'))
    pd.testing.assert_frame_equal(again, t, check_dtype=False, rtol=1e-4)
    text = (folder/'table.md').read_text()
    assert module.markdown(again, {}, []).rstrip() in text and text.rstrip() in page
    # what is said of it
    plain, distilled = t[t.strategy == 'finetune'].set_index('method'), t[t.strategy == 'self_distill'].set_index('method')
    gain, rest = plain.none_diff.dropna(), plain.index.drop('none')
    assert (plain.none_diff_low[rest] > 0).all() and f'{gain.min():.1f} to {gain.max():.1f} points' in page and f'{gain.min():.1f} to {gain.max():.1f} points' in readme
    probe = 100*plain.source_probe_before
    assert f'{probe[rest].min():.1f} to {probe[rest].max():.1f} %' in page and f'{probe["none"]:.1f} % off the random one' in page and (plain.source_probe_before_low[rest] > plain.source_probe_before_high['none']).all()
    assert f'{distilled.plain_diff.min():+.1f} to {distilled.plain_diff.max():+.1f} points' in page and (distilled.plain_diff_low > 0).sum() == 2 and distilled.plain_diff_low.max() < .05
    closer = distilled.cka > plain.cka
    assert set(closer[~closer].index) == {'none', 'iic'} and (distilled.cka - plain.cka).idxmax() == 'mas'
    assert (scores.low > scores.chance).all() and all(f'{100*v:.1f} against' in page for v in scores.set_index('name').value[['puzzle_acc', 'rotation_acc', 'appearance_acc']])


def test_the_papers_numbers_stand_in_their_rows():
    printed = load('pretext_table').printed
    assert printed('pace', 'finetune', 'r2plus1d', None) == 'R(2+1)D 77.1 / 36.6' and printed('pace', 'finetune', 'c3d', None) == ''
    assert printed('rspnet', 'finetune', 'tiny', None) == 'C3D 76.7 / 44.6; R(2+1)D 81.1 / 44.6'
    assert printed('rspnet', 'self_distill', 'c3d', 'hmdb51') == 'C3D 45.8' and printed('order', 'finetune', 'tiny', None) == '' and printed('none', 'self_distill', 'c3d', None) == ''
    assert printed('puzzle', 'finetune', 'tiny', None) == 'C3D 60.6 / 28.3' and printed('mas', 'finetune', 'c3d', 'hmdb51') == 'C3D 33.4' and printed('cvrl', 'finetune', 'tiny', None) == printed('iic', 'finetune', 'tiny', None) == ''


def test_a_method_that_cannot_be_run_is_told_and_the_others_go_on(tmp_path):
    module = load('pretext_table')
    old = module.SHORT['pace']
    module.SHORT['pace'] = old | dict(frames=8)  # no room for the fast pace in eight frames
    try:
        with pytest.raises(InputError, match='no video could be used'):
            module.work(tmp_path, task='moving_digits', source='moving_digits', models='tiny', methods='pace', clips=2, pretext_epochs=1, epochs=1, size=None, seeds=1, trial_seeds=1, workers=0)
    finally: module.SHORT['pace'] = old
