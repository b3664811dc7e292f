"CIFAR-10 as photographs in class folders, from its official archive (Krizhevsky 2009)."
import gzip
import shutil
import ssl
import tarfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from .console import say
from .download import Archive, disk_errors, download

__all__ = ['ARCHIVE', 'BASE', 'get_cifar10']

BASE = 'https://www.cs.toronto.edu/~kriz'
# The binary version: the archive for Python holds pickles, which can run code. The checksum is that of
# tensorflow/datasets' url_checksums/cifar10.txt
ARCHIVE = Archive('cifar-10-binary.tar.gz', 'cifar10', size=170_052_171, room=400_000_000,
                  sha256='c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd')
FILES = dict(train=[f'data_batch_{i}.bin' for i in range(1, 6)], test=['test_batch.bin'])
RECORD = 1 + 3*32*32  # bytes: the class, then red, green and blue by rows
MAX_BYTES = 2**26  # of a file in the archive


def get_cifar10(
    to:Path, # Folder in which to make the folder cifar10
    base:str=BASE, # URL of the host's folder
    archive:Archive=ARCHIVE, # What to download
    context:ssl.SSLContext|None=None, # `None` verifies the host's certificate
    keep:bool=False, # Do not delete the archive
)->tuple[int, int]: # Numbers of train and test photographs
    "Download CIFAR-10 and write its photographs to `train/CLASS` and `test/CLASS` as PNG. Raises `InputError`"
    folder = to/archive.folder
    if not folder.is_dir(): _unpack(download(archive, to, base, context), folder)
    if not keep: (to/archive.name).unlink(missing_ok=True)
    n_train, n_test = (sum(1 for _ in (folder/split).glob('*/*.png')) for split in FILES)
    return n_train, n_test


def _unpack(file, folder):
    "Write all photographs; the folder gets its name only when it is complete"
    say(f'writing the photographs of {file.name}')
    names, parts = _read(file)
    tmp = folder.with_name(f'{folder.name}.unpacking')
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        with disk_errors(tmp):
            for split, records in parts.items():
                for name in names: (tmp/split/name).mkdir(parents=True)
                for i, record in enumerate(records):
                    pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
                    Image.fromarray(np.ascontiguousarray(pixels)).save(tmp/split/names[record[0]]/f'{i:05d}.png')
            tmp.rename(folder)
    finally: shutil.rmtree(tmp, ignore_errors=True)


def _read(file):
    "Names of the classes, and the records of each split. Members are read by name and never written as such"
    try:
        with gzip.open(file) as stream, tarfile.open(fileobj=stream) as tar:
            names = _member(tar, 'batches.meta.txt').decode('ascii').split()
            parts = {split:b''.join(_member(tar, name) for name in files) for split, files in FILES.items()}
            while stream.read(2**20): pass  # to the end, where the stream's checksum is compared
    except (tarfile.TarError, EOFError, OSError, zlib.error, KeyError, UnicodeDecodeError) as e:  # OSError: bad gzip
        raise InputError(f'{file} is not the archive of CIFAR-10 for C: {" ".join(str(e).split())}') from None
    good = names and all(n.isalnum() for n in names) and not any(len(p) % RECORD or not p for p in parts.values())
    arrays = {split:np.frombuffer(p, np.uint8).reshape(-1, RECORD) for split, p in parts.items()} if good else {}
    if not good or any(a[:, 0].max() >= len(names) for a in arrays.values()):
        raise InputError(f'{file} is not the archive of CIFAR-10 for C: its files have no records of {RECORD:,} bytes')
    return names, arrays


def _member(tar, name):
    member = tar.getmember(f'cifar-10-batches-bin/{name}')
    opened = tar.extractfile(member) if member.isfile() and member.size <= MAX_BYTES else None
    if opened is None: raise KeyError(f'{name} is no file, or too large')
    return opened.read()
