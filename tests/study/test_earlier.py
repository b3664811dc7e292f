"The report of an earlier study with other settings is kept under another name."
import pytest
from helpers import Log

from sdfast.study.earlier import begin_report
from sdfast.study.settings import make_settings, read_study_file

FILES = ('runs.csv', 'table.csv', 'table.md', 'notes.json', 'figure.png', 'report.html', 'trade_off_source_acc.csv',
         'figures/means.pdf')


def write_files(out, text):
    (out/'figures').mkdir(exist_ok=True)
    for name in FILES: (out/name).write_text(text)


def begin(out, command='compare', **settings):
    begin_report(make_settings(command, **settings | dict(out=str(out))), out, log := Log())
    return log.lines


def test_other_settings(tmp_path):
    assert begin(tmp_path, epochs=3) == []
    write_files(tmp_path, 'first')
    (tmp_path/'mine.txt').write_text('mine')
    said, = begin(tmp_path, epochs=4)
    assert f'it is kept in {tmp_path}/earlier-1' in said
    assert {(tmp_path/'earlier-1'/name).read_text() for name in FILES} == {'first'}
    assert read_study_file(tmp_path/'earlier-1'/'study.yaml').epochs == 3
    assert read_study_file(tmp_path/'study.yaml').epochs == 4
    assert {f.name for f in tmp_path.iterdir()} == {'study.yaml', 'earlier-1', 'mine.txt'}
    assert begin(tmp_path, epochs=5) == [], 'the second study wrote no report'
    write_files(tmp_path, 'third')
    assert 'earlier-2' in begin(tmp_path, epochs=3)[0]
    assert (tmp_path/'earlier-2'/'table.md').read_text() == 'third'


@pytest.mark.parametrize('changes', [dict(jobs=3), dict(jobs=2, launcher=''), dict(log='tensorboard'),
                                     dict(fresh=True)], ids=str)
def test_settings_of_execution_make_no_other_study(tmp_path, changes):
    begin(tmp_path, epochs=3)
    write_files(tmp_path, 'first')
    assert begin(tmp_path, epochs=3, **changes) == []
    assert (tmp_path/'table.md').read_text() == 'first'


@pytest.mark.parametrize('text', ['', '\0\0\0', 'command: [', 'nonsense: 3', None])
def test_a_report_whose_settings_are_not_known_is_kept(tmp_path, text):
    write_files(tmp_path, 'first')
    if text is not None: (tmp_path/'study.yaml').write_text(text)
    assert len(begin(tmp_path, epochs=3)) == 1
    write_files(tmp_path, 'second')
    assert 'earlier-2' in begin(tmp_path, epochs=4)[0]
    assert (tmp_path/'earlier-1'/'table.md').read_text() == 'first'


def test_chains_and_comparisons(tmp_path):
    begin(tmp_path, 'sequence')
    write_files(tmp_path, 'chains')
    assert 'earlier-1' in begin(tmp_path)[0]


def test_a_move_that_was_cut_off_is_finished(tmp_path):
    begin(tmp_path, epochs=3)
    write_files(tmp_path, 'first')
    (tmp_path/'earlier-1').mkdir()
    (tmp_path/'table.md').rename(tmp_path/'earlier-1'/'table.md')
    begin(tmp_path, epochs=4)
    assert {(tmp_path/'earlier-1'/name).read_text() for name in FILES} == {'first'}
