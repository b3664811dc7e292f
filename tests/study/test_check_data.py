"A process that sees other videos than a run was made with refuses to work."
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import forget, small_run

from sdfast.data.datasets import create_task
from sdfast.errors import InputError
from sdfast.runtime.launch import run_all
from sdfast.runtime.launcher import Launcher
from sdfast.study.check_data import check_data
from sdfast.study.compare_chains import ChainJob
from sdfast.study.execute import RunJob, execute
from sdfast.study.pretrain import make_stage, pretrain
from sdfast.study.source import load_source

pytestmark = pytest.mark.usefixtures('fresh')


@pytest.fixture
def videos(clips, tmp_path): return Path(shutil.copytree(clips, tmp_path/'videos'))


@pytest.fixture
def run(videos):
    "A run that knows its videos"
    small = small_run(videos, epochs=1, source_epochs=1)
    fingerprint = create_task(small.task).fingerprint
    return replace(small, data=f'{fingerprint}-{fingerprint}')


def start_again():
    "As a new process, which looks at the files"
    forget()
    create_task.cache_clear()


def hide(videos, n):
    "Hide the first videos of each class"
    hidden = [f for folder in sorted(videos.iterdir()) for f in sorted(folder.glob('*.mp4'))[:n]]
    for f in hidden: f.unlink()
    return [f.name for f in hidden]


def test_workers_that_see_fewer_videos_refuse(run, videos, tmp_path):
    load_source(run, out := tmp_path/'out')
    names = hide(videos, 1)
    with pytest.raises(InputError, match=f'{len(names)} of .* are missing') as e:
        run_all([run, replace(run, seed=1)], RunJob(str(out)), out, launcher=Launcher(1, 'local'))
    assert all(name in str(e.value) for name in names)
    assert '\n' not in str(e.value)
    assert not list(out.glob('runs/*/result.json'))


def test_the_same_videos_elsewhere_are_the_same(run, videos, tmp_path):
    load_source(run, out := tmp_path/'out')
    shutil.copytree(videos, tmp_path/'copy')
    start_again()
    spec = run.task.replace(str(videos), str(tmp_path/'copy'))
    check_data(replace(run, task=spec, source=spec), out)
    assert execute(run, out)['status'] == 'ok'


@pytest.mark.parametrize('change', ['missing', 'longer', 'new', 'another label'])
def test_every_difference_is_refused_and_named(run, videos, tmp_path, change):
    check_data(run, out := tmp_path/'out')
    first, second = (sorted(folder.glob('*.mp4')) for folder in sorted(videos.iterdir())[:2])
    if change == 'missing': first[0].unlink()
    if change == 'longer': first[0].write_bytes(first[0].read_bytes() + b'0')
    if change == 'new': shutil.copy(first[0], first[0].with_name('p9_new.mp4'))
    if change == 'another label': first[0].rename(second[0].parent/'p0_moved.mp4')
    start_again()
    texts = {'missing': '1 of .* are missing',
             'another label': '1 of .* are missing .*; 1 are new',
             'new': r'1 are new \(.*/p9_new.mp4\)'}
    with pytest.raises(InputError, match=texts.get(change, '1 differ in size, label')) as e: execute(run, out)
    assert change == 'new' or first[0].name in str(e.value)
    assert not (out/'runs'/run.key/'result.json').exists()


def test_without_the_list_the_refusal_is_less_exact(run, videos, tmp_path):
    hide(videos, 1)
    start_again()
    with pytest.raises(InputError, match='other videos than the study was made with; make all of them visible'):
        execute(run, tmp_path/'out')


def test_other_tasks_are_checked_too(run, videos, tmp_path):
    other = Path(shutil.copytree(videos, tmp_path/'other'))
    spec = f'folder:{other},group=(p\\d)_'
    hide(other, 1)
    run = replace(run, others=spec, data=f'{run.data}-{create_task(spec).fingerprint}')
    check_data(run, out := tmp_path/'out')
    hide(other, 1)
    start_again()
    with pytest.raises(InputError, match='missing'): check_data(run, out)


def test_a_reduced_task_is_known(run, videos, tmp_path):
    "quick studies use a part of each task"
    check_data(replace(run, quick=True), out := tmp_path/'out')
    names = hide(videos, 1)
    start_again()
    with pytest.raises(InputError, match=names[0]): check_data(replace(run, quick=True), out)


def test_runs_without_fingerprints_are_not_checked(run, tmp_path):
    check_data(replace(run, data='x'), tmp_path)
    assert not (tmp_path/'data').exists()


def test_chains_are_checked(run, videos, tmp_path):
    check_data(run, out := tmp_path/'out')
    hide(videos, 1)
    start_again()
    with pytest.raises(InputError, match='missing'): ChainJob(str(out), (run,)).do([run], 'call')


def test_a_stage_of_pretraining_is_checked(videos, tmp_path):
    stage, _ = make_stage('pace', f'videos:{videos}', epochs=1, frames=2, size=16)
    hide(videos, 1)
    with pytest.raises(InputError, match='other videos than the stage'): pretrain(stage, tmp_path/'out')
