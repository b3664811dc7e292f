"Damage in a study's folder is named and repaired, and one run never overwrites another."
from dataclasses import replace

import pytest
from helpers import Log, timeless

from sdfast.errors import StoreError
from sdfast.runtime import store
from sdfast.study.config import Run
from sdfast.study.execute import execute

pytestmark = pytest.mark.usefixtures('fresh')

FILES = ['result.json', 'run.json', 'epochs.csv', 'scores.csv', 'source_scores.csv', 'kept.json', 'curve.csv',
         'log.txt']
DAMAGE = dict(cut=lambda data: data[:len(data)//2], flipped=lambda data: data[:5] + bytes([data[5] ^ 1]) + data[6:])


@pytest.mark.parametrize('name', FILES)
@pytest.mark.parametrize('how', ['cut', 'flipped', 'gone'])
def test_damage_is_named_and_done_again(longer, clips, name, how):
    run, out = replace(longer, final=True, epochs=1), clips.parent/'damage'  # one folder for all
    row = execute(run, out)
    file = out/'runs'/run.key/name
    if how == 'gone': file.unlink()
    else: file.write_bytes(DAMAGE[how](file.read_bytes()))
    again = execute(run, out, log := Log())
    assert timeless(again) == timeless(row)
    assert not log.rows[0][1]  # not skipped
    named = [l for l in log.lines if name in l and ('damaged' in l or 'missing' in l) and 'done again' in l]
    assert named or (name, how) == ('result.json', 'gone')
    assert execute(run, out, log := Log()) == again
    assert log.rows[0][1]
    assert not log.lines


def test_another_configuration_is_never_overwritten(longer, tmp_path, monkeypatch):
    execute(longer, tmp_path)
    def contents(): return {f:f.read_bytes() for f in (tmp_path/'runs').rglob('*') if f.is_file()}
    before = contents()
    monkeypatch.setattr(Run, 'key', longer.key)  # as if the keys of two runs were equal by chance
    with pytest.raises(StoreError, match='is of another run'): execute(replace(longer, epochs=1), tmp_path)
    assert contents() == before


def test_a_result_says_what_it_was_made_with(base, tmp_path):
    execute(base, tmp_path)
    result = store.read_json(tmp_path/'runs'/base.key/'result.json')
    assert result['versions'].keys() == {'sdfast', 'torch', 'fastai', 'av'}
    assert result['threads']
    assert result['python']
