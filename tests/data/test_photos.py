"`moving_photos`: photographs that move over others"
import numpy as np
import pytest
from PIL import Image

from sdfast.data import photos
from sdfast.data.datasets import create_task, moving_photos
from sdfast.data.digits import MOTIONS
from sdfast.data.video import VideoFile
from sdfast.errors import InputError
from sdfast.study.model_settings import default_size

FEW = dict(source=dict(train=36, valid=18, test=18), target=dict(train=12, valid=12, test=12))
CLASSES = 'ant', 'bee', 'cow', 'dog', 'eel'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Photographs of one colour each; a class has one shade of red"
    monkeypatch.setattr(photos, 'PHOTO_CLIPS', FEW)
    for split in ('train', 'test'):
        for i, name in enumerate(CLASSES):
            place = tmp_path/'photos'/split/name
            place.mkdir(parents=True)
            for k in range(20):
                Image.new('RGB', (32, 32), (50*i, 255, 12*k)).save(place/f'{k:02d}.png')
    return tmp_path/'photos'


def make(folder, part, home): return moving_photos(folder, part, folder.parent/home)


def test_source_and_target_have_other_photographs_and_all_motions(folder):
    source, target = make(folder, 'source', 'a'), make(folder, 'target', 'a')
    assert set(source.vocab) == {f'{c}_{m}' for c in CLASSES[:3] for m in MOTIONS}
    assert set(target.vocab) == {f'{c}_{m}' for c in CLASSES[3:] for m in MOTIONS}
    for task, part in ((source, 'source'), (target, 'target')):
        assert {s:task.count(s) for s in ('train', 'valid', 'test')} == FEW[part]
        groups = {s:set(task.df.group[task.df.split == s]) for s in ('train', 'valid')}
        assert not groups['train'] & groups['valid']
    assert source.name == 'moving_photos:source'


def test_valid_shows_the_last_photographs_of_train(folder):
    found = photos.find_photos(folder)
    assert [len(found[s]['bee']) for s in ('train', 'valid', 'test')] == [18, 2, 20]
    assert [f.name for f in found['valid']['bee']] == ['18.png', '19.png']


def test_the_photograph_moves_and_keeps_its_colours(folder):
    task = make(folder, 'target', 'a')
    row = task.df[task.df.label == 'eel_right'].iloc[0]
    frames = VideoFile(row.path).read(np.arange(8)).numpy()
    assert frames.shape == (8, 3, 48, 48)
    blue = 12*int(row.group.split('/')[1])
    lit = (np.abs(frames.astype(int) - np.array([200, 255, blue])[:, None, None]) < 40).all(1)
    columns = [np.flatnonzero(frame.any(0)).mean() for frame in lit]
    assert all(400 < frame.sum() < 750 for frame in lit)  # 24x24, but for its edge
    assert columns == sorted(columns) and columns[-1] - columns[0] > 5


def test_the_same_photographs_make_the_same_task_anywhere(folder, tmp_path):
    one, other = make(folder, 'source', 'a'), make(folder, 'source', 'b')
    assert one.fingerprint == other.fingerprint and one.df.path[0] != other.df.path[0]
    Image.new('RGB', (32, 32)).save(folder/'train'/'ant'/'00.png')
    assert make(folder, 'source', 'a').fingerprint != one.fingerprint  # never the videos of other photographs


def test_by_name(folder, monkeypatch):
    monkeypatch.setenv('SDFAST_HOME', str(folder.parent/'home'))
    source, target = create_task(f'moving_photos:{folder}', 'source'), create_task(f'moving_photos:{folder}')
    assert (len(source.vocab), len(target.vocab)) == (18, 12)
    assert create_task(f'moving_photos:{folder},part=source').fingerprint == source.fingerprint
    assert default_size(['moving_digits,part=motion']) == 40 and default_size([f'moving_photos:{folder}']) == 48
    assert default_size(['moving_digits', 'ucf101:x']) == 112


def test_other_folders_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match='has the parts source, target'): moving_photos(folder, 'motion')
    with pytest.raises(InputError, match='at least 4, not 0 and 0; sdfast get-data cifar10'): moving_photos(tmp_path)
    (folder/'train'/'bee').rename(folder/'train'/'wasp')
    with pytest.raises(InputError, match='for the same classes'): moving_photos(folder)
    (folder/'train'/'wasp').rename(folder/'train'/'bee')
    for k in range(1, 20): (folder/'train'/'bee'/f'{k:02d}.png').unlink()
    with pytest.raises(InputError, match='bee has one photograph'): moving_photos(folder)


def test_a_file_that_is_no_photograph_is_named(folder):
    for file in (folder/'train'/'dog').iterdir(): file.write_bytes(b'no photograph')
    with pytest.raises(InputError, match='dog/.*cannot be read'): make(folder, 'target', 'a')
    assert not list(folder.parent.glob('a/*/*/*.tmp'))
