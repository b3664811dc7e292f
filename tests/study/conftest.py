"Small runs for tests of studies."
from dataclasses import replace

import pytest
from helpers import small_run


@pytest.fixture
def base(clips):
    "Two epochs"
    return small_run(clips)


@pytest.fixture
def longer(clips):
    "Four epochs of a narrow net, for tests that interrupt a run"
    return small_run(clips, epochs=4, source_epochs=3, model_args='width=4')


@pytest.fixture
def bases(clips):
    "A chain of two tasks after the source, which differ in their batch size"
    base = small_run(clips, source_valid=True)
    return [base, replace(base, bs=2)]
