"Whatever file of a finished study is damaged: it is named, made again, and the rows are the same."
import re
import shutil

import pytest
from helpers import Log, forget, small_run, timeless

from sdfast.runtime import store
from sdfast.study.compare import compare
from sdfast.study.execute import RunJob
from sdfast.study.folder import finished

GRIDS = dict(finetune=[dict(lr=.05), dict(lr=.025)], ewc=[dict(lam=.1), dict(lam=1.)])
DAMAGE = dict(cut=lambda data: data[:len(data)//2], empty=lambda data: b'', zeroed=lambda data: bytes(len(data)),
              text=lambda data: b'not what was here')


def study(base, out, log=None):
    forget()
    rows = compare(base, GRIDS, out, seeds=1, progress=log or Log())
    return [timeless(row) for row in rows.to_dict('records')]


@pytest.fixture(scope='module')
def done(clips, tmp_path_factory):
    "A small run, its study's folder, and rows"
    base, out = small_run(clips, epochs=1, source_epochs=1), tmp_path_factory.mktemp('done')
    return base, out, study(base, out)


@pytest.fixture
def copy(done, tmp_path): return shutil.copytree(done[1], tmp_path/'copy')


def files_of(out): return sorted(f for f in out.rglob('*') if f.is_file() and not f.name.startswith('.'))


def kind(file, out): return re.sub('[0-9a-f]{8,}', '*', file.relative_to(out).as_posix())


def one_of_each_kind(out):
    "Files of each kind, as far as possible of different runs"
    kinds = {}
    for f in files_of(out): kinds.setdefault(kind(f, out), []).append(f)
    return [files[i % len(files)] for i, files in enumerate(kinds.values())]


def same(a, b): return repr(a) == repr(b)  # nan is nan


@pytest.mark.parametrize('how', [*DAMAGE, 'gone'])
def test_one_file_of_each_kind(done, copy, how):
    base, _, rows = done
    damaged = one_of_each_kind(copy)
    names = {'run.json', 'result.json', 'plan.json', 'kept.json', 'curve.csv', 'source.json'}
    assert names <= {f.name for f in damaged}
    for f in damaged:
        if how == 'gone': f.unlink()
        else: f.write_bytes(DAMAGE[how](f.read_bytes()))
    assert same(study(base, copy, log := Log()), rows)
    assert log.lines and not any('\n' in line for line in log.lines)
    assert same(study(base, copy, log := Log()), rows)
    assert all(skipped for _, skipped in log.rows)
    assert not any('damaged' in line or 'missing' in line for line in log.lines)


@pytest.mark.nightly
@pytest.mark.parametrize('how', [*DAMAGE, 'gone'])
def test_every_file(done, copy, how):
    base, out, rows = done
    for f in files_of(out):
        mine = copy/f.relative_to(out)
        if how == 'gone': mine.unlink(missing_ok=True)
        else: mine.write_bytes(DAMAGE[how](f.read_bytes()))
        assert same(study(base, copy), rows), f


@pytest.mark.parametrize('how', [*DAMAGE, 'gone'])
def test_the_settings_of_a_run_that_was_killed(done, copy, how):
    "They are in no list of digests, as nobody was left to make one"
    base, _, rows = done
    run, job = base, RunJob(str(copy))
    job.fail(run, 'call', 'killed')
    assert finished(run, copy, call='call')['status'] == 'failed'
    file = copy/'runs'/run.key/'run.json'
    data = file.read_bytes()
    file.unlink()
    if how != 'gone': file.write_bytes(DAMAGE[how](data))
    assert finished(run, copy, log := Log(), call='call') is None
    assert len(log.lines) == 1 and 'run.json' in log.lines[0] and log.lines[0].endswith('it is done again')
    assert same(study(base, copy), rows)


def test_a_sealed_file_that_lists_nothing_is_damaged(done, copy):
    base, _, rows = done
    for file in copy.glob('runs/*/result.json'): store.write_json(file, dict(status='ok', ended=9e9))
    assert same(study(base, copy, log := Log()), rows)
    assert any('it lists no files; it is done again' in line for line in log.lines)
