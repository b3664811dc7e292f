"Launchers that cannot work are refused before anything starts."
import shutil

import pytest

from sdfast.errors import InputError
from sdfast.runtime.launcher import Launcher

BAD = [(dict(jobs=0), '--jobs must be at least 1'), (dict(cluster='pbs'), 'local or slurm'),
       (dict(options='partition=p'), 'is for --launcher slurm')]


@pytest.mark.parametrize('options, words', BAD)
def test_launchers_that_cannot_work(options, words):
    with pytest.raises(InputError, match=words): Launcher(**options)


@pytest.fixture
def slurm(monkeypatch): monkeypatch.setattr(shutil, 'which', lambda c: '/bin/true')


@pytest.mark.parametrize('options', ['colour=red', 'partition', 'time=soon'])
def test_bad_options_of_slurm(slurm, options):
    with pytest.raises(InputError, match='--slurm'): Launcher(4, 'slurm', options)


def test_options_of_slurm(slurm):
    options = Launcher(4, 'slurm', 'partition=p, time=30,mem=1.5').options
    assert options == dict(slurm_partition='p', timeout_min=30, mem_gb=1.5)


def test_slurm_needs_sbatch(monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda c: None)
    with pytest.raises(InputError, match='no sbatch'): Launcher(4, 'slurm')


def test_where_work_is_done():
    assert Launcher().inside
    assert Launcher(2).cluster == 'local'
    assert not Launcher(1, 'local').inside
