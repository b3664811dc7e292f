"Settings that no run can have are refused when they are given, in Python as on the command line."
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from sdfast.data.block import VideoBlock
from sdfast.data.clips import SampleClips
from sdfast.errors import InputError
from sdfast.study.choose import strength_grid
from sdfast.study.compare import compare
from sdfast.study.config import Run, Study
from sdfast.study.paired import run_settings
from sdfast.study.pretrain import make_stage
from sdfast.study.settings import make_settings, parse_command_line
from sdfast.study.setup import parse_lams, parse_strategy_args

NAN, INF = float('nan'), float('inf')
BAD = [
    dict(lr=-.1), dict(lr=0), dict(lr=NAN), dict(lr=INF), dict(lr='.1'), dict(lr=None), dict(lr=10**400),
    dict(epochs=0), dict(epochs='3'), dict(epochs=2.5), dict(epochs=NAN), dict(epochs=True), dict(epochs=10**9),
    dict(frames=0), dict(frames=100_000), dict(size=1_000_000), dict(size=3), dict(size='40'), dict(stride=-1),
    dict(bs=0), dict(bs=-4), dict(bs=10**9), dict(wd=-1e-4), dict(wd=NAN), dict(seed=-1), dict(seed=.5),
    dict(lam=-1), dict(lam=NAN), dict(lam='1'), dict(clips=0), dict(valid_frac=1), dict(valid_frac=-.1),
    dict(area=1.5), dict(workers=-1), dict(source_epochs=-1), dict(source_lr=0), dict(source_bs=0), dict(patience=-1),
    dict(processes=0), dict(schedule='linear'), dict(flip=1), dict(flip='yes'), dict(task=None), dict(task=3),
    dict(task='folder:\udcff'), dict(model='a\0b'), dict(init=3), dict(bs=np.float32(2.5)), dict(select='test')]


@pytest.mark.parametrize('given', BAD, ids=str)
def test_a_run_is_refused_when_it_is_made(given):
    (name, value), = given.items()
    with pytest.raises(InputError, match=name) as e: Run(**given)
    assert '\n' not in str(e.value)
    with pytest.raises(InputError): replace(Run(), **given)
    # whatever `Run` refuses, the command line does, too
    option = next(f for f in fields(Run) if f.name == name).metadata['setting']
    if not option.group or value is None or name in ('task', 'init') and value == 3: return  # a file may be called 3
    text = str(value) if not isinstance(value, bool) else value
    if isinstance(value, str) and value not in ('test', 'linear') and name not in ('task', 'model'): return
    if name == 'flip': return
    with pytest.raises(InputError): make_settings('compare', **{name:text})


def test_what_can_be_meant_is_taken_as_python_has_it():
    run = Run(lr=1, epochs=3., seed=np.int64(2), lam=np.float32(.5), flip=np.bool_(True), init=Path('a.pth'))
    assert (run.lr, run.epochs, run.seed, run.lam, run.flip, run.init) == (1, 3, 2, .5, True, 'a.pth')
    assert {type(v) for v in (run.epochs, run.seed)} == {int}
    assert run.key == Run(lr=1., epochs=3, seed=2, lam=.5, flip=True, init='a.pth').key


def test_keys_are_as_they_were():
    assert Run().key == '44136fa355b3'  # of an empty dictionary
    assert [f.name for f in fields(Run) if f.metadata['setting'].recorded is False] == []
    assert [f.name for f in fields(Study) if not f.metadata['setting'].recorded] == ['fresh']


@pytest.mark.parametrize('given', [
    dict(frames=100_000), dict(size=1_000_000), dict(frames=0), dict(frames=2.5), dict(stride=10**6), dict(k=10**6),
    dict(size='64'), dict(k=True)], ids=str)
def test_clips_are_refused_when_they_are_made(given):
    for make in (SampleClips, VideoBlock):
        with pytest.raises(InputError, match='must be'): make(**given)


def test_loaders_are_refused(clips):
    from sdfast.data.task import Task
    task = Task.from_folder(clips).hold_out()
    for given in (dict(frames=100_000), dict(size=1_000_000)):
        with pytest.raises(InputError, match='at most'): task.dls(**given)


@pytest.mark.parametrize('given', [dict(seeds=100_000_000), dict(trial_seeds=10**6), dict(seeds=0), dict(seeds='3'),
                                   dict(seeds=1.5)], ids=str)
def test_numbers_of_runs_are_refused(tmp_path, given):
    with pytest.raises(InputError, match='must be'): compare(Run(), dict(finetune=[dict(lr=.1)]), tmp_path, **given)
    with pytest.raises(InputError, match='must be'): make_settings('compare', **given | dict(jobs=0))
    if 'seeds' in given:
        with pytest.raises(InputError, match='seeds must be'): run_settings([Run()], given['seeds'], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_stage_of_pre_training_is_refused():
    for given in (dict(frames=100_000), dict(size=10**6), dict(lr=NAN), dict(bs=2.5), dict(epochs=0), dict(seed=-1)):
        with pytest.raises(InputError, match=next(iter(given))): make_stage('pace', 'moving_digits', **given)


NAMES = ['finetune', 'l2sp', 'ewc']


@pytest.mark.parametrize('lams', ['1,1,1', '1,1.0', 'l2sp=1,1', 'l2sp=.1,1;ewc=2,2e0', 'l2sp=1;l2sp=2', 'nan', 'inf'])
def test_strengths_are_given_once(lams):
    with pytest.raises(InputError, match='twice|finite'): parse_lams(lams, NAMES)


@pytest.mark.parametrize('lams', [dict(l2sp=[1, 1.]), [.1, .1], dict(ewc='1,1')])
def test_in_study_files_too(tmp_path, lams):
    import yaml
    file = tmp_path/'study.yaml'
    file.write_text(yaml.safe_dump(dict(command='compare', lams=lams)))
    settings = parse_command_line('compare', ['--config', str(file)])
    with pytest.raises(InputError, match='twice'): parse_lams(settings.lams, NAMES)


def test_in_the_library_too(tmp_path):
    for lams in ([1, 1.], [-1.], [NAN]):
        with pytest.raises(InputError, match='strength'): strength_grid('l2sp', .05, lams)
    with pytest.raises(InputError, match='l2sp tries lam 1 twice'):
        compare(Run(), dict(finetune=[dict(lr=.1), dict(lr=.2)], l2sp=[dict(lam=1.), dict(lam=1.)]), tmp_path)
    with pytest.raises(InputError, match='ewc twice'):
        parse_strategy_args('ewc:implicit=true;ewc:implicit=false', NAMES)
