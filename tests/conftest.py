"Fixtures: tiny videos and the folder of shared test data. And the option that chooses nightly tests."
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tables import write_class_csv
from videos import BREAKS_OFF, BROKEN, TORTURE

from sdfast.data import datasets as datasets_module
from sdfast.data.digits import write_video
from sdfast.study import loaders as loaders_module
from sdfast.study import source as source_module

# Ctrl-C is ignored where tests run in the background, and processes that tests start would inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # the nets are tiny: threads cost more than they give
SHARED = Path(__file__).parents[2]/'shared'/'data'


def pytest_addoption(parser):
    parser.addoption('--nightly', default='', metavar='PART', help='also run tests marked nightly: all, or a part of '
                     'them, such as 2/7')


def pytest_collection_modifyitems(config, items):
    "Leave out the nightly tests that are not asked for"
    part = config.getoption('nightly')
    i, n = (1, 1) if part == 'all' else map(int, part.split('/')) if part else (0, 1)
    def is_nightly(item): return item.get_closest_marker('nightly') is not None
    # whole files, as their tests share fixtures that take long
    files = sorted({item.location[0] for item in items if is_nightly(item)})
    asked = [] if part == '' else files[i - 1::n]
    def chosen(item): return not is_nightly(item) or item.location[0] in asked
    left_out = [item for item in items if not chosen(item)]
    if not left_out: return
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if chosen(item)]


@pytest.fixture(scope='session', autouse=True)
def decoded(tmp_path_factory):
    "Decoded videos and indexes of tests stay out of the user's cache"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('SDFAST_DECODED', str(tmp_path_factory.getbasetemp()/'decoded'))
        m.setenv('SDFAST_INDEX', str(tmp_path_factory.getbasetemp()/'index'))
        yield


@pytest.fixture(scope='session')
def shared():
    if not SHARED.is_dir(): pytest.skip('no ../shared/data: its real and broken videos are not here')
    return SHARED


@pytest.fixture
def write():
    "Write grey frames `(T, H, W)` to an mp4"
    return write_video


@pytest.fixture(scope='session')
def clips(tmp_path_factory):
    "Class folders of 12-frame videos of two kinds of motion, 8 each: a bright square goes right or down"
    root = tmp_path_factory.mktemp('clips')
    for kind in ('right', 'down'):
        (root/kind).mkdir()
        for i in range(8):
            x = np.zeros((12, 48, 64), np.uint8)
            for t in range(12):
                r, c = (10 + i, 2 + 3*t) if kind == 'right' else (2 + 3*t, 10 + i)
                x[t, r:r + 8, c:c + 8] = 255
            write_video(root/kind/f'p{i//2}_{i}.mp4', x)
    return root


@pytest.fixture(scope='session')
def torture_folder(shared, tmp_path_factory):
    "The shared odd and broken videos in three class folders; the sound without a picture has a video's suffix"
    root = tmp_path_factory.mktemp('torture')
    for i, name in enumerate(sorted([*TORTURE, *BROKEN, BREAKS_OFF])):
        file = shared/'torture'/name
        folder = root/'abc'[i % 3]
        folder.mkdir(exist_ok=True)
        shutil.copy(file, folder/(f'{file.name}.mp4' if file.suffix == '.mp3' else file.name))
    return root


@pytest.fixture
def class_csv(clips, tmp_path):
    "A function from class names to a csv file of clips in `tmp_path/set`, see `write_class_csv`"
    return partial(write_class_csv, clips, tmp_path/'set')


@pytest.fixture
def fresh():
    "No model or data of another test"
    source_module._sources.clear()
    loaders_module.load_data.cache_clear()
    datasets_module.create_task.cache_clear()
