"A small run, and the results of a small study that is done by one process."
import subprocess

import pandas as pd
import pytest
from helpers import small_run
from processes import ENV, compare_command


@pytest.fixture
def base(clips): return small_run(clips, epochs=4, source_epochs=3, model_args='width=4')


@pytest.fixture(scope='session')
def spec(clips): return f'folder:{clips},group=(p\\d)_'


@pytest.fixture(scope='session')
def alone(spec, tmp_path_factory):
    "Rows of the study of `compare_command`, done by one process"
    out = tmp_path_factory.mktemp('alone')
    p = subprocess.run(compare_command(out, spec), capture_output=True, text=True, env=ENV, timeout=500)
    assert p.returncode == 0, p.stderr
    return pd.read_csv(out/'runs.csv').drop(columns='seconds')
