"The command for chains: what it writes, and one clear line for what cannot work."
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from sdfast.commands import sequence as sequence_module
from sdfast.study import stage as stage_module
from sdfast.study.execute import train_run

pytestmark = pytest.mark.usefixtures('fresh')

ROOT = Path(__file__).parents[2]
HEAD = ('| strategy | strength | average accuracy | when learned | BWT | forgetting source | forgetting clips0 '
        '| average, new probes | FWT, new probes |\n')


@pytest.fixture
def spec(clips): return f'folder:{clips},group=(p\\d)_'


@pytest.fixture
def call(capsys):
    "The command in this process: exit status, output and error text"
    def call(options):
        try: status = sequence_module.main(words(options))
        except SystemExit as e: status = e.code
        return status, *capsys.readouterr()
    return call


def words(options):
    "A command line of options and their values"
    found = []
    for k, v in options.items():
        found.append(f'--{k.replace("_", "-")}')
        if v is not True: found.append(str(v))
    return found


@pytest.mark.nightly
def test_end_to_end(call, spec, tmp_path, monkeypatch):
    options = dict(source=spec, tasks=f'{spec};{spec}', frames=4, size=24, bs=4, source_epochs=2,
                   strategies='l2sp,linear_probe', lams='.1,1', quick=True, out=str(tmp_path))
    env = os.environ | dict(COLUMNS='200')
    command = [sys.executable, str(ROOT/'experiments/sequence.py'), *words(options)]
    p = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert p.returncode == 0, p.stderr
    said = ('source task: 2 epochs', '12/12', 'takes', 'average accuracy', 'linear_probe', 'FWT', 'matrix.csv')
    for text in said: assert text in p.stdout, text
    rows, table, matrix = (pd.read_csv(tmp_path/f'{n}.csv') for n in ('runs', 'table', 'matrix'))
    assert len(rows) == 12*2 + 2
    assert set(rows.status) == {'ok'}
    assert rows[~rows.final]['head.source'].isna().all()
    assert table.strategy.tolist() == ['finetune', 'l2sp', 'linear_probe']
    table = table.set_index('strategy')
    assert table['forgetting.source']['linear_probe'] == 0
    assert (tmp_path/'table.md').read_text().startswith(HEAD)
    last = matrix[(matrix.strategy == 'l2sp') & (matrix.kind == 'head') & (matrix.after == 'clips0-2')]
    assert last.accuracy.mean() == pytest.approx(table.average['l2sp'])
    assert set(last.task) == {'source', 'clips0', 'clips0-2'}
    # the same command again
    monkeypatch.setenv('COLUMNS', '80')
    status, out, err = call(options)
    assert (status, err) == (0, '')
    assert out.count('finished before') == 12
    assert '…' not in out
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/'runs.csv'), rows)


DIVERGES = dict(lr=1e30, epochs=1, seeds=1, source_epochs=1, strategies='', quick=True)
BAD = [
    (dict(tasks=' ; '), '--tasks names no task'),
    (dict(tasks='folder:nowhere'), 'folder nowhere does not exist'),
    (dict(tasks='SPEC;ucf'), "unknown task 'ucf'"),
    (dict(source='csv:no.csv'), 'csv file no.csv does not exist'),
    (dict(strategies='l2sp,magic'), "unknown strategy 'magic'"),
    (dict(lams='l2sp=1'), 'same number of trials'),
    (dict(seeds=0), '--seeds must be at least 1'),
    (dict(lr=0.), '--lr must be positive'),
    (dict(out='FILE/x'), 'cannot be made'),
    (DIVERGES, 'no chain reached its end')]


@pytest.mark.parametrize('options, message', BAD, ids=lambda a: str(a)[:40])
def test_bad_input_is_one_line_and_status_2(call, spec, tmp_path, options, message):
    (tmp_path/'file').write_text('')
    def fill(v): return v.replace('SPEC', spec).replace('FILE', str(tmp_path/'file')) if isinstance(v, str) else v
    given = dict(tasks=spec, source=spec, frames=4, size=24, bs=4, out=str(tmp_path/'out'))
    given |= {k:fill(v) for k, v in options.items()}
    status, _, err = call(given)
    assert status == 2
    assert message in err
    assert err.count('\n') == 1
    assert 'Traceback' not in err


def test_ctrl_c_and_resuming(call, spec, tmp_path, monkeypatch):
    options = dict(tasks=spec, source=spec, frames=4, size=24, bs=4, epochs=1, source_epochs=1, seeds=2,
                   strategies='', lams='1', out=str(tmp_path))
    def stop(run, *a):
        if run.seed == 1 and run.final: raise KeyboardInterrupt
        return train_run(run, *a)
    with monkeypatch.context() as m:
        m.setattr(stage_module, 'train_run', stop)
        status, _, err = call(options)
    assert status == 130
    assert 'the same command resumes' in err
    assert len(list(tmp_path.glob('stages/*/result.json'))) == 4
    status, out, err = call(options)
    assert (status, err) == (0, '')
    assert out.count('finished before') == 4
