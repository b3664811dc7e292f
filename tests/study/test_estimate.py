"How long runs take, from the seconds of a clip."
import pytest

from sdfast.study.config import Run
from sdfast.study.estimate import StepSeconds, estimate_run, loading_processes

SECONDS = StepSeconds(plain=3., distilled=4., forward=1.)


def test_a_plain_run():
    "80 clips trained on, 20 valid clips looked at in each epoch; at the end 2 clips of each of 10 test videos, twice"
    run = Run(epochs=5, bs=16, clips=2, valid_frac=.2, select='valid')
    steps, hours = estimate_run(run, 100, 10, SECONDS)
    assert steps == 5*(80//16)
    assert hours*3600 == pytest.approx(5*80*3 + 5*20 + 2*2*10)


def test_a_distilled_run_that_looks_at_test_and_loads():
    run = Run(epochs=5, bs=16, clips=2, valid_frac=0., select='paper', strategy='self_distill', lam=1.)
    steps, hours = estimate_run(run, 100, 10, SECONDS, load=.5)
    trained, seen = 5*100, 5*10 + 2*2*10
    assert steps == 5*(100//16)
    assert hours*3600 == pytest.approx(trained*4 + seen + .5*(trained + seen))


def test_the_last_epoch_reads_test_once():
    run = Run(epochs=1, bs=16, clips=3, valid_frac=0., select='last')
    assert estimate_run(run, 100, 10, SECONDS)[1]*3600 == pytest.approx(100*3 + 3*10)


def test_loading_processes(monkeypatch):
    monkeypatch.setattr('os.cpu_count', lambda: 4)
    assert [loading_processes(Run(workers=w)) for w in (0, 1, 3, 8)] == [1, 1, 3, 4]
