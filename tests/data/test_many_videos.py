"A task of very many videos needs little memory."
import os
import random
import resource
import struct

import numpy as np
import pandas as pd
import pytest
from processes import alone, linux

from sdfast.data.task import Task

SPLITS = ('train', 'train', 'train', 'valid', 'test')


def write_many(folder, write, n):
    "Videos of 8 frames of 64x64 in a hundred folders, equal but for a number at the end of each, and a csv of them"
    write(folder/'one.mp4', np.full((8, 64, 64), 100, np.uint8))
    data = (folder/'one.mp4').read_bytes()
    rows = []
    for i in range(n):
        name = f'{i % 100:02d}/{i:06d}.mp4'
        os.makedirs(folder/name[:2], exist_ok=True)
        (folder/name).write_bytes(data + struct.pack('>I4sI', 12, b'free', i))
        rows.append((name, f'class{i % 10}', SPLITS[i//10 % 5]))
    pd.DataFrame(rows, columns=['path', 'label', 'split']).to_csv(folder/'many.csv', index=False)


def memory_of_an_epoch(file):
    "Videos of an epoch, and MB above the start that making the task and reading all training clips took"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    task = Task.from_csv(file)
    random.seed(0)
    dls = task.dls(frames=4, size=32, bs=100)
    n = sum(len(y) for _, y in dls.train)
    return n, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)/2**10


@linux
@pytest.mark.nightly
def test_a_hundred_thousand_videos(write, tmp_path):
    write_many(tmp_path, write, 100_000)
    n, mb = alone(memory_of_an_epoch, str(tmp_path/'many.csv'), limit=1500)
    print(f'{mb:.0f} MB')
    assert n == 60_000
    assert mb < 300
