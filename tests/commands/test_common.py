"What commands and studies share: errors of one line, folders, lists of names and of strengths."
import pytest

from sdfast.commands.common import make_folder, one_line_errors, pick_names, pick_strengths, study_session
from sdfast.errors import InputError, StoreError


def leave_with(error, capsys, out=''):
    "`(status, what is written to standard error)` if the error is raised"
    with pytest.raises(SystemExit) as e, one_line_errors('study.py', out): raise error
    return e.value.code, capsys.readouterr().err


@pytest.mark.parametrize('error', [InputError('no such task'), StoreError('no such task')])
def test_wrong_input_is_one_line_and_status_2(error, capsys):
    assert leave_with(error, capsys) == (2, 'study.py: no such task\n')


def test_the_event_that_fastai_names_is_left_out(capsys):
    error = InputError('Exception occured in `SelfDistill` when calling event `before_fit`:\n\tno encoder')
    assert leave_with(error, capsys) == (2, 'study.py: no encoder\n')


def test_ctrl_c_has_status_130_and_says_where_runs_are(capsys):
    expected = 'study.py: stopped; finished runs are in runs/a, the same command resumes\n'
    assert leave_with(KeyboardInterrupt(), capsys, 'runs/a') == (130, expected)
    assert leave_with(KeyboardInterrupt(), capsys) == (130, 'study.py: stopped\n')


def test_other_errors_stay_as_they_are():
    with pytest.raises(ZeroDivisionError), one_line_errors('study.py'): 1/0


def test_make_folder(tmp_path):
    assert make_folder(str(tmp_path/'a'/'b')).is_dir()
    (tmp_path/'file').touch()
    with pytest.raises(InputError, match='--out .*file/x cannot be made'): make_folder(tmp_path/'file'/'x')


def test_a_session_opens_the_folder_and_the_launcher(tmp_path):
    with study_session('study.py', tmp_path/'a', jobs=2) as (progress, launcher):
        assert (tmp_path/'a').is_dir()
        assert launcher.jobs == 2
        assert progress.console


def test_a_session_refuses_bad_jobs(tmp_path, capsys):
    with pytest.raises(SystemExit), study_session('study.py', tmp_path/'a', jobs=0): pass
    assert capsys.readouterr().err == 'study.py: --jobs must be at least 1, not 0\n'
    assert not (tmp_path/'a').exists()


def test_pick_names():
    assert pick_names(' b,a, b', ['a', 'b', 'c'], '--names') == ['a', 'b']
    with pytest.raises(InputError, match="--to: unknown 'd'; known are a, b"): pick_names('a,d', ['a', 'b'], '--to')
    with pytest.raises(InputError, match='--to must name at least one of a, b'): pick_names(' , ', ['a', 'b'], '--to')


def test_pick_strengths():
    assert pick_strengths('10,.1,1e2,10', '--lams') == [.1, 10., 100.]
    with pytest.raises(InputError, match="--lams: '1,x' are not numbers"): pick_strengths('1,x', '--lams')
    for bad in ('0', '-1', 'inf', 'nan'):
        with pytest.raises(InputError, match='--lams: strengths must be finite'): pick_strengths(bad, '--lams')
