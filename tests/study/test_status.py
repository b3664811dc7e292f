"The status of a study is read from its folder alone."
import os
from dataclasses import replace

import pytest
from helpers import Log
from rich.console import Console

from sdfast.errors import InputError
from sdfast.runtime import store
from sdfast.study.execute import RunJob, execute
from sdfast.study.settings import recorded_command
from sdfast.study.status import show_status, snapshot, time_left

pytestmark = pytest.mark.usefixtures('fresh')


class Stop(Log):
    "Interrupts a run in its second epoch"
    def epoch(self, epoch, done):
        if epoch == 1: raise KeyboardInterrupt


@pytest.fixture
def runs(longer, tmp_path):
    "Runs that are finished, failed, stopped and waiting, of a study of six"
    runs, job = [replace(longer, seed=i) for i in range(4)], RunJob(str(tmp_path))
    execute(runs[0], tmp_path)
    job.fail(runs[1], 'call', 'lost <b>')
    with pytest.raises(KeyboardInterrupt): execute(runs[2], tmp_path, Stop())
    plan = dict(command='python x.py', total=6, folders=[f'runs/{r.key}' for r in runs])
    store.write_json(tmp_path/'plan.json', plan)
    return runs


def shown(out):
    console = Console(width=160, record=True, file=open(os.devnull, 'w'))
    console.print(show_status(out))
    return console.export_text()


def test_a_folder_without_a_study(tmp_path):
    with pytest.raises(InputError, match='has no study'): snapshot(tmp_path)


def test_states(runs, tmp_path):
    pieces = snapshot(tmp_path)['pieces']
    assert [p['state'] for p in pieces] == ['ok', 'failed', 'stopped', 'waiting']
    assert pieces[2]['epoch'] == 1


def test_a_running_study(runs, tmp_path):
    with store.claim(tmp_path/'runs'/runs[2].key):
        s, text = snapshot(tmp_path), shown(tmp_path)
    piece = s['pieces'][2]
    assert piece['state'] == 'running'
    assert str(os.getpid()) in piece['owner']
    # three epochs of it and three more runs, by the pace of the finished one
    seconds = s['pieces'][0]['result']['seconds']
    assert time_left(s['pieces'], s['total']) == pytest.approx((3 + 4*3)*seconds/4, rel=.01)
    for words in ('python x.py', '1 of 6 done, 1 running, 1 failed', 'left', 'best on valid so far', 'failed: lost <b>',
                  '1/4'): assert words in text, words


@pytest.mark.parametrize('data', [b'', b'{}', bytes(30), b'not what was here', b'[' * 100_000])
def test_a_damaged_plan_is_one_line(tmp_path, data):
    (tmp_path/'plan.json').write_bytes(data)
    with pytest.raises(InputError, match='plan.json is damaged: the command of the study writes it again') as e:
        snapshot(tmp_path)
    assert '\n' not in str(e.value)
    assert recorded_command(tmp_path) == ''
    (tmp_path/'study.yaml').write_bytes(data)
    assert recorded_command(tmp_path) == ''
