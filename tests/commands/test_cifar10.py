"CIFAR-10 from its archive: photographs in class folders, whole or not at all"
import io
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sdfast.commands.cifar10 import ARCHIVE, FILES, RECORD, get_cifar10
from sdfast.commands.download import Archive, sha256
from sdfast.errors import InputError

NAMES = 'airplane', 'bird', 'cat', 'dog'
FOLDER = 'cifar-10-batches-bin'


def pixels(label, i):
    "A photograph as `(3, 32, 32)`: each colour, row and column has its own value"
    channel, row, column = np.indices((3, 32, 32))
    return (50*channel + 3*row + column + 7*label + i).astype(np.uint8)


def contents(n=3):
    "File name -> content of a miniature archive"
    files = {'batches.meta.txt': '\n'.join(NAMES).encode() + b'\n\n'}
    for name in FILES['train'] + FILES['test']:
        records = [bytes([k]) + pixels(k, i).tobytes() for i in range(n) for k in range(len(NAMES))]
        files[name] = b''.join(records)
    return files


def make(folder, files, inside=FOLDER):
    file = folder/ARCHIVE.name
    with tarfile.open(file, 'w:gz') as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f'{inside}/{name}')
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Archive(ARCHIVE.name, 'cifar10', 1, 1, sha256(file))


def test_photographs_in_class_folders(tmp_path):
    archive = make(tmp_path, contents())
    assert get_cifar10(tmp_path, archive=archive) == (5*3*4, 3*4)
    made = tmp_path/'cifar10'
    assert sorted(f.name for f in (made/'train').iterdir()) == sorted(NAMES)
    photo = np.asarray(Image.open(made/'test'/'cat'/'00006.png'))  # the second of the third class
    assert np.array_equal(photo, pixels(2, 1).transpose(1, 2, 0))
    assert sorted(f.name for f in tmp_path.iterdir()) == ['cifar10']  # the archive is deleted
    assert get_cifar10(tmp_path, 'http://127.0.0.1:1') == (60, 12)  # nothing is downloaded again


def test_damaged_and_other_archives_are_one_line(tmp_path):
    whole = contents()
    cases = {
        'test_batch.bin': {k:v for k, v in whole.items() if k != 'test_batch.bin'},
        'no records of 3,073': whole | {'data_batch_2.bin': bytes(RECORD + 1)},
        'its files have no records': whole | {'data_batch_3.bin': bytes([9]) + bytes(RECORD - 1)},
        'batches have no': whole | {'batches.meta.txt': b'../up\n' + whole['batches.meta.txt']},
    }
    for message, files in cases.items():
        archive = make(tmp_path, files)
        with pytest.raises(InputError, match='not the archive of CIFAR-10') as e: get_cifar10(tmp_path, archive=archive)
        assert '\n' not in str(e.value) and (message in str(e.value) or 'batches' in message)
        assert not (tmp_path/'cifar10').exists() and not list(tmp_path.glob('*.unpacking'))
    archive = make(tmp_path, whole)
    file = tmp_path/ARCHIVE.name
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError, match='is not the published file'): get_cifar10(tmp_path, archive=archive)


@pytest.mark.parametrize('at', [30, -6, 'half'])
def test_an_archive_that_is_not_checked_and_damaged_is_one_line(tmp_path, at):
    archive, file = replace(make(tmp_path, contents()), sha256=None), tmp_path/ARCHIVE.name
    data = bytearray(file.read_bytes())
    if at == 'half': del data[len(data)//2:]
    else: data[at] ^= 255  # a byte of the stream, or of the checksum at its end
    file.write_bytes(data)
    with pytest.raises(InputError, match='not the archive of CIFAR-10') as e: get_cifar10(tmp_path, archive=archive)
    assert '\n' not in str(e.value) and not (tmp_path/'cifar10').exists()


def test_no_file_is_written_outside(tmp_path):
    archive = make(tmp_path, contents() | {'../../outside.bin': b'x', 'more.bin': b'x'})
    get_cifar10(tmp_path, archive=archive, keep=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == [ARCHIVE.name, 'cifar10']
    assert not list(tmp_path.parent.glob('outside*'))
