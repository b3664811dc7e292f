"Why a run failed: lack of memory is not mistaken for another cause, and a failing loader says what to do."
import os
import signal

import numpy as np
import pytest
import torch
from helpers import small_run
from torch.utils.data import DataLoader

from sdfast.data.video import VideoError
from sdfast.errors import InputError, StoreError
from sdfast.study import execute as execute_module
from sdfast.study import source as source_module
from sdfast.study.execute import execute
from sdfast.study.failures import failure_reason, failure_status
from sdfast.study.source import load_source

pytestmark = pytest.mark.usefixtures('fresh')

NO_MEMORY = [
    MemoryError(), MemoryError('std::bad_alloc'), OSError(12, 'Cannot allocate memory'),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError('[enforce fail at alloc_cpu.cpp:75] DefaultCPUAllocator: not enough memory: you tried to allocate'),
    RuntimeError('CUDA out of memory. Tried to allocate 20 GiB'), RuntimeError('CUDA error: out of memory'),
    RuntimeError('cuDNN error: CUDNN_STATUS_ALLOC_FAILED'), RuntimeError('CUBLAS_STATUS_ALLOC_FAILED when calling x'),
    RuntimeError('std::bad_alloc'), RuntimeError('MPS backend out of memory (MPS allocated: 1 GB)'),
    RuntimeError('unable to mmap 8 bytes from file <x>: Cannot allocate memory (12)'),
    torch.OutOfMemoryError('x'), VideoError('a.mp4: Cannot allocate memory')]
OTHERS = [ValueError('out of memory'), InputError('not enough memory for the joke'), OSError(28, 'No space left'),
          RuntimeError('shapes differ'), KeyError('memory'),
          RuntimeError('DataLoader worker (pid 3) is killed by signal: Bus error. It is possible that dataloader\'s '
                       'workers are out of shared memory. Please try to raise your shared memory limit.')]


@pytest.mark.parametrize('error', NO_MEMORY, ids=repr)
def test_an_allocation_that_failed(error):
    assert failure_status(error) == 'out of memory'
    assert 'smaller batches' in failure_reason(error)
    wrapped = RuntimeError('the event failed')
    wrapped.__cause__ = error
    assert failure_status(wrapped) == 'out of memory'


@pytest.mark.parametrize('error', OTHERS, ids=repr)
def test_other_failures(error): assert failure_status(error) == 'failed'


def test_allocations_that_really_fail():
    for f in (lambda: torch.empty(2**60), lambda: np.zeros(2**58), lambda: bytearray(2**62)):
        with pytest.raises(Exception) as e: f()
        assert failure_status(e.value) == 'out of memory'


class Items:
    "A data set whose items are made by a function"
    def __init__(self, f): self.f = f
    def __len__(self): return 2
    def __getitem__(self, i): return self.f()


def killed(by):
    def kill(): os.kill(os.getpid(), by)
    return kill


def enomem(): raise OSError(12, 'Cannot allocate memory')
def missing(): open('/nowhere/x.mp4')


IN_LOADERS = {
    'array': (lambda: np.zeros(2**58), 'out of memory', 'smaller batches'),
    'python': (lambda: bytearray(2**62), 'out of memory', 'smaller batches'),
    'torch': (lambda: torch.empty(2**60), 'out of memory', 'smaller batches'),
    'system': (enomem, 'out of memory', 'smaller batches'),
    'killed': (killed(signal.SIGKILL), 'failed', '--workers 0, or enlarge /dev/shm'),
    'bus error': (killed(signal.SIGBUS), 'failed', '/dev/shm'),
    'missing': (missing, 'failed', "No such file or directory: '/nowhere/x.mp4'")}


@pytest.mark.parametrize('kind', IN_LOADERS)
def test_in_a_loading_process(kind):
    f, status, advice = IN_LOADERS[kind]
    with pytest.raises(Exception) as e: list(DataLoader(Items(f), num_workers=1, multiprocessing_context='fork'))
    assert failure_status(e.value) == status
    reason = failure_reason(e.value)
    assert advice in reason
    assert '\n' not in reason and 'Traceback' not in reason


SHM = RuntimeError('unable to write to file </torch_12_3_4>: No space left on device (28)')


def test_a_failing_loader_is_a_row_that_says_what_to_do(clips, tmp_path, monkeypatch):
    def fail(*a, **k): raise SHM
    monkeypatch.setattr(execute_module, 'train_run', fail)
    row = execute(small_run(clips), tmp_path)
    assert row['status'] == 'failed'
    assert '--workers 0, or enlarge /dev/shm' in row['error'] and '\n' not in row['error']


@pytest.mark.parametrize('error', [SHM, MemoryError(), OSError(2, 'No such file or directory')], ids=repr)
def test_a_failing_source_stage_is_one_line(clips, tmp_path, monkeypatch, error):
    def fail(*a, **k): raise error
    monkeypatch.setattr(source_module, '_train_source', fail)
    with pytest.raises(InputError, match='the source model cannot be made: ') as e:
        load_source(small_run(clips), tmp_path)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('error', [ZeroDivisionError('x'), StoreError('x'), KeyError('x')], ids=repr)
def test_other_errors_of_the_source_stage_stay_as_they_are(clips, tmp_path, monkeypatch, error):
    def fail(*a, **k): raise error
    monkeypatch.setattr(source_module, '_train_source', fail)
    with pytest.raises(type(error)) as e: load_source(small_run(clips), tmp_path)
    assert e.value is error
