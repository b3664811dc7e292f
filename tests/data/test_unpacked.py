"Data sets of Hugging Face and webdataset shards: files, groups and parts."
import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from sdfast.data import unpacked
from sdfast.data.datasets import create_task
from sdfast.data.unpacked import hf_dataset, shards
from sdfast.errors import InputError

NEEDED = "pip install -e '.[shards]'"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('SDFAST_HOME', str(tmp_path/'home'))
    return tmp_path/'home'


@pytest.fixture
def rows(clips):
    "Video, class and person of each clip"
    return [(file, file.parent.name, file.name[:2]) for file in sorted(clips.rglob('*.mp4'))]


def counts(task): return [task.count(split) for split in ('train', 'valid', 'test')]
def persons(task, split): return set(task.df.group[task.df.split == split])


# ---- shards

@pytest.fixture
def write_shard(tmp_path):
    pytest.importorskip('webdataset', reason=NEEDED)
    pytest.importorskip('braceexpand', reason=NEEDED)
    def write(name, samples):
        file = tmp_path/'tars'/name
        file.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(file, 'w') as tar:
            for member, data in samples:
                info = tarfile.TarInfo(member)
                data = data if isinstance(data, bytes) else data.encode()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return file
    return write


def sample(key, row, meta=True):
    "Members of a sample"
    file, label, person = row
    facts = json.dumps(dict(label=label, group=person))
    return [(f'{key}.mp4', file.read_bytes()), (f'{key}.json', facts) if meta else (f'{key}.cls', label)]


def write_parts(write_shard, rows, meta=True):
    for part, who in {'train-000':('p0',), 'train-001':('p1',), 'val-000':('p2',), 'test-000':('p3',)}.items():
        chosen = [row for row in rows if row[2] in who]
        write_shard(f'{part}.tar', [m for i, row in enumerate(chosen) for m in sample(f'{part}/{i:03d}', row, meta)])


def test_shards(write_shard, rows, tmp_path, home):
    write_parts(write_shard, rows)
    task = create_task(f'shards:{tmp_path}/tars/{{train-{{000..001}},val-000,test-000}}.tar')
    assert counts(task) == [8, 4, 4]
    assert persons(task, 'train') == {'p0', 'p1'}
    assert persons(task, 'test') == {'p3'}
    content = {file.read_bytes():label for file, label, _ in rows}
    assert all(content[Path(path).read_bytes()] == label for path, label in task.items('train', 'valid', 'test'))
    assert all(Path(path).is_relative_to(home) for path in task.df.path)
    assert shards(tmp_path/'tars').fingerprint == task.fingerprint  # a folder of shards
    x, _ = next(iter(task.torch_dl('train', frames=4, size=24, bs=2)))
    assert x.shape == (2, 4, 3, 24, 24)


def test_files_are_unpacked_once_and_checked(write_shard, rows, tmp_path):
    write_parts(write_shard, rows)
    task = shards(tmp_path/'tars')
    files = [Path(path) for path in task.df.path]
    times = [file.stat().st_mtime_ns for file in files]
    shards(tmp_path/'tars')
    assert [file.stat().st_mtime_ns for file in files] == times
    data = files[0].read_bytes()
    files[0].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.warns(UserWarning, match='has changed since it was unpacked'): shards(tmp_path/'tars')
    assert files[0].read_bytes() == data


def test_shards_without_parts_are_split_by_group(write_shard, rows, tmp_path):
    write_shard('a.tar', [m for i, row in enumerate(rows) for m in sample(f'{i:03d}', row)])
    task = create_task(f'shards:{tmp_path}/tars/a.tar,test_frac=.25,seed=1')
    assert not persons(task, 'train') & persons(task, 'test')
    assert any('split off by group, seed 1' in note for note in task.notes)
    (tmp_path/'tars'/'a.tar').unlink()
    write_shard('b.tar', [m for i, row in enumerate(rows) for m in sample(f'{i:03d}', row, meta=False)])
    task = shards(tmp_path/'tars')
    assert task.vocab == ['down', 'right']
    assert any('at random' in note and 'group=NAME' in note for note in task.notes)
    write_shard('train.tar', sample('x', rows[0]))
    with pytest.raises(InputError, match='the name of b.tar tells no part'): shards(tmp_path/'tars')


@pytest.mark.parametrize('meta', [True, False])
def test_what_is_in_two_parts_is_left_out_of_train(write_shard, rows, tmp_path, meta):
    "The same person, or the same bytes under another name"
    write_parts(write_shard, rows, meta)
    leak = next(row for row in rows if row[2] == 'p3')
    write_shard('train-002.tar', sample('again', leak, meta))
    with pytest.warns(UserWarning, match='left out of train, as clips of the same source are in valid or test: 1'):
        task = shards(tmp_path/'tars')
    assert counts(task) == [8, 4, 4]
    assert not set(task.df.path[task.df.split == 'train']) & set(task.df.path[task.df.split == 'test'])


def test_copies_with_two_groups_are_of_one_source(write_shard, rows, tmp_path):
    write_parts(write_shard, rows)
    file, label, _ = rows[0]
    assert rows[0][2] == 'p0'  # in train
    write_shard('test-001.tar', sample('copy', (file, label, 'p9')))
    with pytest.warns(UserWarning, match='left out of train, as clips of the same source are in valid or test: 4'):
        task = shards(tmp_path/'tars')
    assert persons(task, 'train') == {'p1'}


def test_validation_stands_in_for_test(write_shard, rows, tmp_path):
    write_parts(write_shard, rows)
    (tmp_path/'tars'/'test-000.tar').unlink()
    task = shards(tmp_path/'tars')
    assert counts(task) == [8, 0, 4]
    assert any('test is the validation part' in note for note in task.notes)


@pytest.mark.parametrize('name', ['../../evil', '/evil', 'a/../../evil'])
def test_names_that_lead_out_of_an_archive_are_refused(write_shard, rows, tmp_path, name):
    write_shard('a.tar', sample(name, rows[0]))
    before = {file for file in tmp_path.rglob('*')}
    with pytest.raises(InputError, match='leads out of the archive'): shards(tmp_path/'tars')
    assert {file for file in tmp_path.rglob('*')} == before


@pytest.mark.parametrize('members,match', [
    ([('a.cls', '1')], 'sample a has 0 videos, not one; its files are cls'),
    ([('a.mp4', b'x'), ('a.avi', b'x'), ('a.cls', '1')], 'sample a has 2 videos'),
    ([('a.mp4', b'x')], "sample a has no class: neither .cls nor .txt nor 'label' in .json"),
    ([('a.mp4', b'x'), ('a.json', '[1]')], 'a.json is not an object of JSON')])
def test_incomplete_samples_are_named(write_shard, tmp_path, members, match):
    write_shard('a.tar', members)
    with pytest.raises(InputError, match=match) as e: shards(tmp_path/'tars')
    assert '\n' not in str(e.value)
    assert not (tmp_path/'home').exists() or 'videos' not in match


def test_what_is_no_shard_is_refused(write_shard, tmp_path, rows):
    for bad in ('pipe:cat x.tar', 'https://a.b/x.tar', str(tmp_path/'none-*.tar')):
        with pytest.raises(InputError, match='there are no such files; shards must be local tar files'): shards(bad)
    file = write_shard('a.tar', sample('a', rows[0]))
    file.write_bytes(b'no archive at all'*99)
    with pytest.raises(InputError, match='a.tar cannot be read as a shard') as e: shards(file)
    assert '\n' not in str(e.value)


def test_missing_libraries_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(unpacked, 'find_spec', lambda name: None)
    for make, package in ((shards, 'webdataset'), (hf_dataset, 'datasets')):
        with pytest.raises(InputError, match=rf"needs the package {package}: pip install 'sdfast\[shards\]'"):
            make(tmp_path)


# ---- Hugging Face

@pytest.fixture
def datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip('datasets', reason=NEEDED)
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path/'cache')
    datasets.disable_progress_bars()
    return datasets


def made(datasets, rows, embed=True):
    "A data set of videos, in the table or as paths"
    names = ['right', 'down']  # not in alphabetical order
    features = datasets.Features(video=datasets.Video(decode=False), label=datasets.ClassLabel(names=names),
                                 person=datasets.Value('string'))
    videos = [dict(bytes=file.read_bytes(), path=None) if embed else dict(bytes=None, path=str(file))
              for file, _, _ in rows]
    return datasets.Dataset.from_dict(dict(
        video=videos, label=[names.index(label) for _, label, _ in rows], person=[person for _, _, person in rows]),
        features=features)


def in_parts(datasets, rows, **kwargs):
    who = dict(train=('p0', 'p1'), validation=('p2',), test=('p3',))
    return datasets.DatasetDict({part:made(datasets, [row for row in rows if row[2] in persons], **kwargs)
                                 for part, persons in who.items()})


@pytest.mark.parametrize('embed', [True, False])
def test_a_saved_data_set(datasets, rows, tmp_path, home, embed):
    in_parts(datasets, rows, embed=embed).save_to_disk(tmp_path/'saved')
    task = create_task(f'hf_dataset:{tmp_path}/saved,group=person')
    assert counts(task) == [8, 4, 4]
    assert task.vocab == ['right', 'down']
    assert persons(task, 'valid') == {'p2'}
    content = {file.read_bytes():label for file, label, _ in rows}
    assert all(content[Path(path).read_bytes()] == label for path, label in task.items('train', 'valid', 'test'))


def test_parquet(datasets, rows, tmp_path):
    for part, data in in_parts(datasets, rows).items(): data.to_parquet(tmp_path/'p'/f'{part}-00000.parquet')
    task = hf_dataset(tmp_path/'p')
    assert counts(task) == [8, 4, 4]
    assert any('groups are not known' in note for note in task.notes)


def test_a_folder_of_class_folders(datasets, clips, tmp_path):
    shutil.copytree(clips, tmp_path/'f')
    task = hf_dataset(tmp_path/'f')
    assert task.vocab == ['down', 'right']
    assert sum(counts(task)) == 16
    assert any('at random' in note for note in task.notes)


def test_one_part_is_split_by_group(datasets, rows, tmp_path):
    made(datasets, rows).save_to_disk(tmp_path/'saved')
    task = hf_dataset(tmp_path/'saved', group='person', test_frac='.25')
    assert not persons(task, 'train') & persons(task, 'test')
    assert counts(task)[2] == 4


def test_the_same_content_in_two_parts(datasets, rows, tmp_path):
    data = in_parts(datasets, rows)
    leak = next(row for row in rows if row[2] == 'p3')
    data['train'] = datasets.concatenate_datasets([data['train'], made(datasets, [leak])])
    data.save_to_disk(tmp_path/'saved')
    for group in (None, 'person'):
        with pytest.warns(UserWarning, match='left out of train'): task = hf_dataset(tmp_path/'saved', group=group)
        assert counts(task) == [8, 4, 4]


def test_unlabelled_test_parts(datasets, rows, tmp_path):
    data = in_parts(datasets, rows)
    data['test'] = data['test'].map(lambda row: row | dict(label=-1))
    data.save_to_disk(tmp_path/'saved')
    task = hf_dataset(tmp_path/'saved')
    assert counts(task) == [8, 0, 4]
    assert 'videos without a class are not used: 4' in task.notes


def test_data_sets_that_do_not_fit(datasets, rows, tmp_path):
    in_parts(datasets, rows).save_to_disk(tmp_path/'saved')
    with pytest.raises(InputError, match="has no column 'class'; it has video, label, person"):
        hf_dataset(tmp_path/'saved', label='class')
    with pytest.raises(InputError, match="has no column 'clip'"): hf_dataset(tmp_path/'saved', video='clip')
    texts = datasets.Dataset.from_dict(dict(path=['a', 'b'], label=[0, 1]))
    texts.save_to_disk(tmp_path/'texts')
    with pytest.raises(InputError, match='has 0 columns of videos; say which with video=NAME. It has path, label'):
        hf_dataset(tmp_path/'texts')
    with pytest.raises(InputError, match="'a' is not a local file"): hf_dataset(tmp_path/'texts', video='path')
    (tmp_path/'empty').mkdir()
    with pytest.raises(InputError, match='hf_dataset:.*empty cannot be loaded') as e: hf_dataset(tmp_path/'empty')
    assert '\n' not in str(e.value)
