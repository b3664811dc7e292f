"Several processes train as one does."
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from processes import ENV, compare_command

COLUMNS = ('valid_acc1', 'acc1', 'source_acc', 'source_probe')


@pytest.fixture
def squares(write, tmp_path):
    "Square videos of four frames: of all frames, no clip and no crop is drawn at random"
    for kind in ('right', 'down'):
        (tmp_path/'v'/kind).mkdir(parents=True)
        for i in range(12):
            x = np.zeros((4, 32, 32), np.uint8)
            for t in range(4):
                r, c = (8 + i, 2 + 6*t) if kind == 'right' else (2 + 6*t, 8 + i)
                x[t, r:r + 6, c:c + 6] = 255
            write(tmp_path/'v'/kind/f'p{i//2}_{i}.mp4', x)
    return f'folder:{tmp_path/"v"},group=(p\\d)_'


OPTIONS = dict(size=32, model='test_convnext', strategies='self_distill', lams=3, seeds=1, epochs=3, source_epochs=1,
               lr=.01, source_lr=.01)  # a net without batch norm


def run_study(out, spec, *launch):
    "Output, rows, and the epochs of each run"
    words = [w for k, v in OPTIONS.items() for w in (f'--{k.replace("_", "-")}', str(v))]
    _, *command = compare_command(out, spec, *words)
    p = subprocess.run([sys.executable, *launch, *command], capture_output=True, text=True, env=ENV, timeout=500)
    assert p.returncode == 0, p.stderr
    rows = pd.read_csv(out/'runs.csv')
    return p.stdout, rows, [pd.read_csv(f) for key in rows.key for f in out.glob(f'runs/{key}/epochs.csv')]


@pytest.mark.nightly
def test_torchrun_trains_as_one_process_does(squares, tmp_path):
    _, one, epochs1 = run_study(tmp_path/'one', squares)
    said, two, epochs2 = run_study(tmp_path/'two', squares, '-m', 'torch.distributed.run', '--nproc_per_node', '2')
    assert said.count('2/2 ') == 1  # one process writes
    assert set(two.status) == {'ok'}
    for c in COLUMNS: assert one[c].fillna(-1).tolist() == two[c].fillna(-1).tolist(), c
    np.testing.assert_allclose(one.weight_distance, two.weight_distance, rtol=1e-4)
    assert len(epochs1) == len(epochs2) == 2
    for a, b in zip(epochs1, epochs2): np.testing.assert_allclose(a.valid_loss, b.valid_loss, rtol=1e-5)
