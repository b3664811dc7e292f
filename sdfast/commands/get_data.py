"""Download UCF101 and HMDB51, videos and official lists, and the photographs of CIFAR-10, from their official hosts.

    sdfast get-data ucf101 --to data    # 6.9 GB, and 14 GB of disk until the archive is deleted
    sdfast get-data hmdb51 --to data    # 2.1 GB and 4.5 GB
    sdfast get-data cifar10 --to data    # 170 MB
    sdfast compare --task ucf101:data ...
    sdfast compare --source moving_photos:data/cifar10 --task moving_photos:data/cifar10

Kinetics and Something-Something v2 are read as kinetics:FOLDER and ssv2:FOLDER, and have to be got from their hosts.

Files that exist are not downloaded again: after an interruption the same command resumes. If you have an archive
already, put it into --to under its original name. Unpacking rar archives needs unrar, unar, 7z or bsdtar."""
import os
import shutil
import ssl
from dataclasses import dataclass, replace
from pathlib import Path

from fastcore.script import call_parse, store_true
from rich.filesize import decimal

from ..errors import InputError
from ..runtime.program import program
from .cifar10 import ARCHIVE, BASE, get_cifar10
from .console import say
from .download import RESUMES, Archive, disk_errors, download, size
from .one_line import check_path, one_line_errors
from .unpack import installed_unpackers, unpack

__all__ = ['main']


@dataclass(frozen=True)
class DataSet:
    "The two archives of a data set, and the counts to check"
    base:str # URL of the folder of both
    lists:Archive # The official lists
    videos:Archive # The videos
    counts:tuple # Numbers of classes, videos, and train and test videos of fold 1


# The checksums are those of torchvision's prototype datasets (pytorch/vision,
# torchvision/prototype/datasets/_builtin/ucf101.py and hmdb51.py); tensorflow/datasets' url_checksums/ucf101.txt has
# the same one for UCF101's lists. HMDB51's former host, serre-lab.clps.brown.edu, is gone (voxel51/fiftyone#6528); the
# lab's own site names this one.
DATASETS = dict(
    ucf101=DataSet(
        base='https://www.crcv.ucf.edu/data/UCF101',
        lists=Archive('UCF101TrainTestSplits-RecognitionTask.zip', 'ucfTrainTestlist', size=113_943, room=3_000_000,
                      sha256='5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27'),
        videos=Archive('UCF101.rar', 'UCF-101', size=6_932_971_618, room=7_100_000_000,
                       sha256='ca8dfadb4c891cb11316f94d52b6b0ac2a11994e67a0cae227180cd160bd8e55'),
        counts=(101, 13320, 9537, 3783)),
    hmdb51=DataSet(
        base='https://huggingface.co/datasets/Serrelab/hmdb51/resolve/main',
        lists=Archive('test_train_splits.rar', 'testTrainMulti_7030_splits', size=200_000, room=3_000_000,
                      sha256='229c94f845720d01eb3946d39f39292ea962d50a18136484aa47c1eba251d2b7'),
        videos=Archive('hmdb51_org.rar', 'hmdb51', size=2_130_000_000, room=2_300_000_000,
                       sha256='9e714a0d8b76104d76e932764a7ca636f929fff66279cda3f2e326fa912a328e'),
        counts=(51, 6766, 3570, 1530)))
# Data sets whose official files tasks read, and where to get them
ELSEWHERE = dict(
    kinetics='get a copy from github.com/cvdfoundation/kinetics-dataset, and use it as kinetics:FOLDER',
    ssv2='get Something-Something v2 from its authors, Qualcomm, and use it as ssv2:FOLDER')
# Suffixes of an archive's name: complete file, wrong checksum, incomplete file, and its length and version
LEFT = '', '.bad', '.part', '.part.stamp'


def get(
    data:DataSet, # What to get
    to:Path, # Folder for videos and lists
    base:str|None=None, # URL of another host's folder
    context:ssl.SSLContext|None=None, # `None` verifies the host's certificate
    keep:bool=False, # Do not delete the archives
)->tuple[int, int, int, int]: # Numbers of classes, videos, and train and test videos of fold 1
    "Download and unpack the archives whose folders do not exist, and check the counts. Raises `InputError`"
    todo = [archive for archive in (data.lists, data.videos) if not (to/archive.folder).is_dir()]
    if any(archive.name.endswith('.rar') for archive in todo): installed_unpackers()  # fail now, not after hours
    _check_room(todo, to)
    for archive in todo: unpack(download(archive, to, base or data.base, context), to/archive.folder)
    found = _check_counts(data, to)
    if not keep:
        for archive in (data.lists, data.videos):
            for suffix in LEFT: (to/f'{archive.name}{suffix}').unlink(missing_ok=True)
    return found


def _check_room(archives, to):
    "Raise `InputError` if the disk has not enough room for archives and videos"
    needed = sum(archive.room for archive in archives)
    for archive in archives:
        if not (to/archive.name).exists(): needed += max(0, archive.size - size(to/f'{archive.name}.part'))
    free = shutil.disk_usage(to).free
    if needed > free: raise InputError(f'{to} has {decimal(free)} free, {decimal(needed)} are needed')


def _check_counts(data, to):
    "Count the contents of the folders, and compare the counts with those of the data set"
    videos, lists = to/data.videos.folder, to/data.lists.folder
    found = *count_videos(videos), *count_lists(lists)
    for folder, text, part in ((videos, '{:,} classes and {:,} videos', slice(2)),
                               (lists, '{:,} train and {:,} test videos in fold 1', slice(2, 4))):
        has, due = text.format(*found[part]), text.format(*data.counts[part])
        if has != due:
            raise InputError(f'{folder} has {has}, not {due}: delete it, and the same command unpacks or downloads '
                             'it again')
    return found


def count_videos(folder:Path)->tuple[int, int]: # Classes and videos
    "Count avi files in class folders"
    sizes = [sum(f.name.endswith('.avi') for f in os.scandir(c)) for c in os.scandir(folder) if c.is_dir()]
    return sum(n > 0 for n in sizes), sum(sizes)


def count_lists(folder:Path)->tuple[int, int]: # Train and test videos of fold 1
    "Count the train and test videos in the official lists of either data set"
    def lines(file): return [line.split() for line in file.read_text(errors='replace').splitlines() if line.strip()]
    if (folder/'trainlist01.txt').exists():
        return len(lines(folder/'trainlist01.txt')), len(lines(folder/'testlist01.txt'))
    tags = [words[-1] for file in folder.glob('*_test_split1.txt') for words in lines(file)]
    return tags.count('1'), tags.count('2')


def _data_set(name, to, url_base, no_checksum):
    "Check the arguments, and return the data set that they ask for"
    if name in ELSEWHERE: raise InputError(f'{name} is not downloaded by sdfast: {ELSEWHERE[name]}')
    if name not in (*DATASETS, 'cifar10'):
        raise InputError(f'unknown dataset {name!r}; known are {", ".join(DATASETS)} and cifar10')
    if not to: raise InputError(f'--to: the folder for {name} is missing')
    check_path(to, '--to')
    if url_base and not url_base.startswith(('http://', 'https://')):
        raise InputError(f'--url-base must begin with http:// or https://, not {url_base!r}')
    if name == 'cifar10': return None
    data = DATASETS[name]
    if not no_checksum: return data
    return replace(data, lists=replace(data.lists, sha256=None), videos=replace(data.videos, sha256=None))


@call_parse  # it runs this when the module is the script, so it must come last
def main(
    name:str, # ucf101, hmdb51 or cifar10
    to:str=None, # Folder for the data, made if needed; must be given
    keep_archives:store_true=False, # Do not delete the archives at the end
    url_base:str=None, # URL of another host's folder with the same files
    insecure:store_true=False, # Do not verify the host's certificate; published checksums are still verified
    no_checksum:store_true=False, # Do not verify the published checksums
)->None:
    "Download UCF101 (6.9 GB), HMDB51 (2.1 GB; both need unrar, unar, 7z or bsdtar) or CIFAR-10 (170 MB)"
    with one_line_errors(program('get-data'), then=RESUMES):
        data = _data_set(name, to, url_base, no_checksum)
        if insecure and no_checksum: say('warning: without certificate and checksum, nothing checks what arrives')
        assert to is not None  # `_data_set` refuses it
        folder = Path(to)
        with disk_errors(folder): folder.mkdir(parents=True, exist_ok=True)
        context = ssl._create_unverified_context() if insecure else None
        base = url_base and url_base.rstrip('/')
        if data is None:
            archive = replace(ARCHIVE, sha256=None) if no_checksum else ARCHIVE
            if not (folder/archive.folder).is_dir(): _check_room([archive], folder)
            train, test = get_cifar10(folder, base or BASE, archive, context, keep_archives)
            say(f'cifar10: {train:,} train and {test:,} test photographs; use it as moving_photos:{folder/"cifar10"}')
            return
        found = get(data, folder, base, context, keep_archives)
        classes, videos, train, test = found
        counts = f'{classes:,} classes, {videos:,} videos, {train:,} train and {test:,} test in fold 1'
        say(f'{name}: {counts}; use it as {name}:{to}')
