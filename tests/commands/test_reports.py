"What a study says of results that it did not make, of an earlier report, and of a report that cannot be written."
import json
import shutil

import pytest
from helpers import forget

from sdfast.commands import compare as compare_module
from sdfast.commands import sequence as sequence_module
from sdfast.commands.common import make_folder, report_errors
from sdfast.commands.one_line import check_path, one_line_errors
from sdfast.errors import InputError, StoreError
from sdfast.runtime import store

pytestmark = pytest.mark.usefixtures('fresh')


@pytest.fixture
def call(clips, capsys):
    "A small study by one of the commands: exit status, output and error text"
    spec = f'folder:{clips},group=(p\\d)_'
    def call(module, out, **more):
        forget()
        chain = module is sequence_module
        options = dict(source=spec, frames=4, size=24, bs=4, source_epochs=1, epochs=1, strategies='l2sp', lams=1,
                       seeds=2)
        options |= dict(tasks=spec) if chain else dict(task=spec)
        line = [f'--{k.replace("_", "-")}={v}' for k, v in (options | more | dict(out=out)).items() if v is not True]
        line += [f'--{k}' for k, v in more.items() if v is True]
        try: status = module.main(line)
        except SystemExit as e: status = e.code
        return status, *capsys.readouterr()
    return call


@pytest.mark.parametrize('module', [compare_module, sequence_module], ids=['compare', 'sequence'])
def test_versions_earlier_reports_and_fresh(call, tmp_path, module):
    folder = tmp_path/('stages' if module is sequence_module else 'runs')
    status, said, _ = call(module, tmp_path)
    assert status == 0 and 'made earlier' not in said
    result = next(f for f in folder.glob('*/result.json') if 'versions' in json.loads(f.read_text()))
    d = store.read_json(result)
    store.write_json(result, d | dict(versions=d['versions'] | dict(torch='1.0')))
    first = (tmp_path/'table.csv').read_bytes()

    status, said, _ = call(module, tmp_path)
    assert status == 0 and '1 of 5 results, the source model included, were made earlier' in said
    assert 'torch 1.0' in said
    assert 'torch 1.0' in (tmp_path/'table.md').read_text()
    if module is compare_module: assert 'torch 1.0' in (tmp_path/'notes.json').read_text()
    assert not (tmp_path/'earlier-1').exists()

    status, said, _ = call(module, tmp_path, fresh=True)
    assert status == 0 and '--fresh: 5 results' in said.replace('6 results', '5 results') and 'made earlier' not in said
    assert 'torch 1.0' not in (tmp_path/'table.md').read_text()
    assert 'fresh' not in (tmp_path/'study.yaml').read_text()
    assert (tmp_path/'runs.csv').exists() and not (tmp_path/'earlier-1').exists()

    status, said, _ = call(module, tmp_path, lams=2)
    assert status == 0 and f'it is kept in {tmp_path}/earlier-1' in said.replace('\n', '')
    def columns(data): return [line.split(b',')[:6] for line in data.splitlines()]
    assert columns((tmp_path/'earlier-1'/'table.csv').read_bytes()) == columns(first)
    assert 'lams: \'1\'' in (tmp_path/'earlier-1'/'study.yaml').read_text()
    assert 'lams: \'2\'' in (tmp_path/'study.yaml').read_text()


def test_a_report_that_cannot_be_written(call, tmp_path, monkeypatch):
    write = store.write
    def full(path, data):
        if path.name == 'table.csv': raise StoreError(f'{path} cannot be written: No space left on device')
        write(path, data)
    monkeypatch.setattr(store, 'write', full)
    status, _, err = call(compare_module, tmp_path)
    assert status == 2 and err.count('\n') == 1
    for words in ('all runs are finished', 'table.csv cannot be written: No space left on device',
                  f'python experiments/make_report.py {tmp_path}'): assert words in err
    assert not (tmp_path/'table.csv').exists() and not list(tmp_path.glob('.*.tmp'))
    status, _, err = call(sequence_module, tmp_path/'chain')
    assert status == 2 and err.count('\n') == 1 and 'all runs are finished' in err
    monkeypatch.undo()
    shutil.rmtree(tmp_path/'source')
    status, said, _ = call(compare_module, tmp_path)
    assert status == 0 and said.count('finished before') == 4


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), MemoryError()], ids=repr)
def test_whatever_the_report_meets(error):
    with pytest.raises(StoreError, match='all runs are finished and kept in a') as e, report_errors('a'): raise error
    assert '\n' not in str(e.value)


BAD = ['runs/\udcff', 'a\0b', 'a\nb', 'a\x1b[2J', 'caf\udce9']


@pytest.mark.parametrize('out', BAD, ids=ascii)
def test_a_folder_whose_name_is_not_text(call, capsys, out):
    with pytest.raises(InputError, match='--to must be a name in UTF-8'): check_path(out, '--to')
    with pytest.raises(InputError): make_folder(out)
    with pytest.raises(SystemExit) as e, one_line_errors('a.py', out): raise AssertionError
    assert e.value.code == 2 and capsys.readouterr().err.count('\n') == 1
    for module in (compare_module, sequence_module):
        status, _, err = call(module, out)
        assert status == 2 and err.count('\n') == 1 and 'UTF-8' in err
