"Results of other versions are counted and named; a fresh study makes its own again, once."
import shutil

import pytest
from helpers import Log, forget, small_run, timeless

from sdfast.runtime import store
from sdfast.runtime.launcher import Launcher
from sdfast.study import reuse
from sdfast.study.compare import compare
from sdfast.study.compare_chains import compare_sequences
from sdfast.study.execute import execute
from sdfast.study.reuse import version_notes
from sdfast.study.source_files import source_folder

pytestmark = pytest.mark.usefixtures('fresh')

GRIDS = dict(finetune=[dict(lr=.05), dict(lr=.025)], l2sp=[dict(lam=.1), dict(lam=1.)])


def study(base, out, log=None, **more):
    forget()
    return compare(base, GRIDS, out, seeds=2, progress=log or Log(), **more)


def made_earlier(file, **changes):
    "Make a sealed file that of other versions, or of another number of threads"
    d = store.read_json(file)
    versions = d['versions'] | {k:v for k, v in changes.items() if k in d['versions']}
    store.write_json(file, d | dict(versions=versions, threads=changes.get('threads', d['threads'])))


@pytest.fixture(scope='module')
def base(clips): return small_run(clips, epochs=1, source_epochs=1)


@pytest.fixture(scope='module')
def done(base, tmp_path_factory):
    "A study's folder and rows"
    out = tmp_path_factory.mktemp('done')
    return out, study(base, out)


@pytest.fixture
def copy(done, tmp_path): return shutil.copytree(done[0], tmp_path/'copy')


@pytest.fixture
def folders(base, done, copy):
    "Of the study's runs, and of its source model"
    return [*(copy/'runs'/key for key in done[1].key[:-1]), source_folder(base, copy)]


def test_results_of_these_versions_need_no_note(folders): assert version_notes(folders) == []


@pytest.mark.parametrize('changes,words', [
    (dict(torch='1.0'), 'torch 1.0'), (dict(sdfast='0.0.1'), 'sdfast 0.0.1'), (dict(fastai='1.0'), 'fastai 1.0'),
    (dict(av='9.0'), 'av 9.0'), (dict(threads=7), '7 threads')], ids=str)
def test_others_are_counted_and_named(folders, changes, words):
    for folder in folders[:3]: made_earlier(folder/'result.json', **changes)
    note, = version_notes(folders)
    assert note.startswith('3 of 9 results, the source model included, were made earlier: 3 of ')
    assert words in note and '--fresh' in note and '\n' not in note
    made_earlier(folders[-1]/'source.json', **changes)
    assert version_notes(folders)[0].startswith('4 of 9 ')


def test_workers_share_threads(folders, monkeypatch):
    monkeypatch.setattr('torch.get_num_threads', lambda: 8)
    for folder in folders[:-1]: made_earlier(folder/'result.json', threads=2)
    made_earlier(folders[-1]/'source.json', threads=8)
    assert version_notes(folders, Launcher(4)) == []
    assert version_notes(folders)[0].startswith('8 of 9 ')


class Killed(Log):
    "Ends a study like Ctrl-C after some runs"
    def __init__(self, after):
        super().__init__()
        self.after = after

    def done(self, row, skipped=False):
        super().done(row, skipped)
        if len(self.rows) == self.after: raise KeyboardInterrupt


def records(rows): return repr([timeless(row) for row in rows.to_dict('records')])


def stamps(out): return {f:f.stat().st_mtime_ns for f in out.rglob('*.json') if f.name != 'plan.json'}


def test_a_fresh_study_is_made_again_once(base, done, copy):
    rows, tmp_path = done[1], copy
    other = execute(small_run(base.task[7:].split(',')[0], epochs=2, source_epochs=1), tmp_path)  # of another study
    before = stamps(tmp_path)
    again = study(base, tmp_path, log := Log(), fresh=True)
    assert records(again) == records(rows)
    assert not any(skipped for _, skipped in log.rows)
    assert '--fresh: 9 results of this study' in log.lines[0]
    kept = {f.parent.name for f, t in stamps(tmp_path).items() if before[f] == t}
    assert kept == {other['key']}
    assert not (tmp_path/reuse.MARK).exists()
    assert records(study(base, tmp_path, log := Log())) == records(rows)
    assert all(skipped for _, skipped in log.rows)


def test_a_fresh_study_that_was_stopped_continues(base, done, copy, monkeypatch):
    rows, tmp_path = done[1], copy
    with pytest.raises(KeyboardInterrupt): study(base, tmp_path, Killed(3), fresh=True)
    with pytest.raises(KeyboardInterrupt): study(base, tmp_path, log := Killed(5), fresh=True)
    assert [skipped for _, skipped in log.rows] == [True]*3 + [False]*2
    assert 'continues the study that was stopped' in log.lines[0]
    monkeypatch.setattr(reuse, 'versions', lambda: dict(versions=dict(torch='9.9')))
    with pytest.raises(KeyboardInterrupt): study(base, tmp_path, log := Killed(1), fresh=True)
    assert [skipped for _, skipped in log.rows] == [False], 'what was done is of other versions'
    assert records(study(base, tmp_path)) == records(rows)  # without --fresh it ends, too
    assert not (tmp_path/reuse.MARK).exists()


def test_a_fresh_chain(clips, tmp_path):
    bases = [small_run(clips, source_valid=True, epochs=1, source_epochs=1, bs=bs) for bs in (4, 2)]
    def chains(log, **more):
        forget()
        grids = dict(finetune=[dict(lr=.05)])
        return compare_sequences(bases, grids, tmp_path, seeds=1, progress=log, **more)
    rows = chains(Log())
    before = stamps(tmp_path)
    assert records(chains(log := Log(), fresh=True)) == records(rows)
    assert '--fresh: 4 results' in log.lines[0]
    assert not any(before[f] == t for f, t in stamps(tmp_path).items())
