"Damaged files of a study cost a report what is in them, and no more; a full disk leaves no half of a file."
import json
import resource
import shutil
import signal
import warnings

import pytest
from processes import alone

from sdfast.errors import InputError, StoreError
from sdfast.report import write as write_module
from sdfast.report.files import find_file
from sdfast.report.load import load_results
from sdfast.report.page import write_page
from sdfast.report.prose import missing_answers
from sdfast.report.summary import summary
from sdfast.report.write import write_report
from sdfast.runtime import store

DAMAGE = dict(cut=lambda data: data[:len(data)*2//3], empty=lambda data: b'', zeroed=lambda data: bytes(len(data)),
              text=lambda data: b'not what was here')
OF_RUNS = ['run.json', 'result.json', 'curve.csv', 'scores.csv', 'source_scores.csv']


@pytest.fixture
def folder(study, tmp_path):
    "A study whose runs are sealed"
    out = shutil.copytree(study, tmp_path/'study', ignore=shutil.ignore_patterns('report.html', 'figures'))
    for run in (out/'runs').iterdir():
        result = json.loads((run/'result.json').read_text())
        store.write_json(run/'result.json', result | dict(files=store.seal(run, ['result.json'])))
    return out


def read_all(folder):
    "Everything that the page reads; what it says of missing answers"
    r, = load_results(folder)
    r.run, r.versions, r.course, r.classes('source'), r.classes('target'), r.clips()
    summary(r.rows, folder=r.folders)
    return missing_answers(r)


@pytest.mark.parametrize('how', DAMAGE)
@pytest.mark.parametrize('name', OF_RUNS)
@pytest.mark.parametrize('sealed', [True, False])
def test_a_damaged_file_of_a_run_is_left_out_and_named(folder, name, how, sealed):
    r, = load_results(folder)
    file = folder/'runs'/r.tuned.key.iloc[0]/name
    if not sealed: (file.parent/'result.json').write_text('{}')
    file.write_bytes(DAMAGE[how](file.read_bytes()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        said = read_all(folder)
    if not sealed: return  # without digests it may not be seen, but it must not stop the report
    assert [str(w.message) for w in caught if f'{name} is damaged' in str(w.message)]
    assert not any('\n' in str(w.message) for w in caught)
    assert f'{file.parent.name}/{name}' in said[-1]


@pytest.mark.parametrize('how', DAMAGE)
def test_the_page_is_made_whatever_is_damaged(folder, how):
    for file in (folder/'runs').rglob('*'):
        if file.is_file(): file.write_bytes(DAMAGE[how](file.read_bytes()))
    for name in ('source/src/scores.csv', 'notes.json', 'study.yaml', 'plan.json'):
        (folder/name).write_bytes(DAMAGE[how](b'[1, 2, 3]'))
    with pytest.warns(UserWarning, match='notes.json is damaged'): page = write_page(folder, figures=False)
    text = page.read_text()
    assert 'Damaged files are left out' in text
    assert 'notes.json is damaged' in text


@pytest.mark.parametrize('how', ['cut', 'empty', 'zeroed', 'text'])
def test_damaged_rows_are_one_line(folder, how):
    file = folder/'runs.csv'
    file.write_bytes(DAMAGE[how](file.read_bytes()))
    with pytest.raises(InputError) as e: load_results(folder)
    assert '\n' not in str(e.value) and 'runs.csv' in str(e.value)


@pytest.mark.parametrize('notes', ['{}', '[1]', 'null', '"text"', '[' * 100_000, '\udcff'])
def test_notes_that_are_none(folder, notes):
    (folder/'notes.json').write_text(notes, errors='surrogateescape')
    with pytest.warns(UserWarning, match='notes.json is damaged'): r, = load_results(folder)
    assert any('notes.json is damaged' in n for n in r.notes)


def test_another_folder_may_have_the_file_undamaged(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path/'other')
    key = next((folder/'runs').iterdir()).name
    (folder/'runs'/key/'run.json').write_text('x')
    assert find_file([folder, other], 'runs', key, 'run.json') == other/'runs'/key/'run.json'


# ---- a full disk

@pytest.mark.parametrize('figures', [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_every_file_of_a_report_is_written_as_a_whole(folder, monkeypatch, tmp_path, figures):
    written, write = set(), store.write
    def noted(path, data):
        written.add(path)
        write(path, data)
    monkeypatch.setattr(store, 'write', noted)
    out = tmp_path/'report'
    out.mkdir()
    r, = load_results(folder)
    write_report(r.rows, out)
    write_page(folder, out/'report.html', figures=figures)
    assert written == {f for f in out.rglob('*') if f.is_file()}
    assert {f.suffix for f in written} == {'.csv', '.md', '.json', '.png', '.html', *['.pdf']*figures}


def _on_a_small_disk(folder, out):
    "Files may have 20 kB; whether the error is one line, and which files are there"
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    r, = load_results(folder)
    try: write_report(r.rows, out)
    except StoreError as e: return str(e), sorted(f.name for f in out.iterdir())


def test_a_full_disk_leaves_the_old_file_or_none(folder, tmp_path):
    out = tmp_path/'report'
    out.mkdir()
    (out/'figure.png').write_bytes(b'the old one')
    error, files = alone(_on_a_small_disk, folder, out)
    assert 'figure.png cannot be written: File too large' in error and '\n' not in error
    assert (out/'figure.png').read_bytes() == b'the old one'
    assert files == ['figure.png', 'notes.json', 'runs.csv', 'table.csv', 'table.md']


def test_nothing_else_writes_files():
    "Modules of reports write through the store"
    import re
    from pathlib import Path
    root = Path(write_module.__file__).parents[1]
    writes = re.compile(r'''\.write_text\(|\.write_bytes\(|\.to_csv\((?!index|float_format|\))|savefig\((?!data)|'''
                        r'''open\([^)]*['"][wa]''')
    modules = [*(root/'report').glob('*.py'), *(root/'study').glob('*.py'), root/'commands/compare.py',
               root/'commands/sequence.py', *(root.parent/'experiments').glob('*.py')]
    found = [f'{m.name}: {line.strip()}' for m in modules for line in m.read_text().splitlines()
             if writes.search(line) and 'store.write(' not in line]
    assert not found
