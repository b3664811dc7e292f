"Kinetics and Something-Something v2 by their official lists."
import csv
import json
import shutil

import pytest

from sdfast.data.annotated import kinetics, ssv2
from sdfast.data.datasets import create_task
from sdfast.errors import InputError

HEADER = 'label', 'youtube_id', 'time_start', 'time_end', 'split'


def write_csv(file, rows, header=HEADER):
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, 'w', newline='') as f: csv.writer(f).writerows([header, *rows])


@pytest.fixture
def videos(clips): return sorted(clips.rglob('*.mp4'))


@pytest.fixture
def kinetics_folder(tmp_path, videos):
    "Three videos of each part and class, in the layouts of several copies; two more are missing"
    rows = dict(train=[], validate=[], test=[])
    files = iter(videos)
    names = dict(train='train/air_drumming/{id}_{a:06d}_{b:06d}.mp4', validate='val/{id}_{a:06d}_{b:06d}.mkv',
                 test='{id}.mp4')
    for part in rows:
        for label in ('air drumming', 'zumba'):
            for i in range(2):
                number = f'-{part[:2]}_{label[:2]}{i}ABCD'[:11]
                rows[part].append((label, number, 10*i, 10*i + 10, part))
                file = tmp_path/names[part].format(id=number, a=10*i, b=10*i + 10)
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(next(files), file)
    rows['train'].append(('zumba', 'gone_train1', 3, 13, 'train'))
    rows['validate'].append(('zumba', 'gone_valid1', 3, 13, 'val'))
    for part, some in rows.items(): write_csv(tmp_path/'annotations'/f'{part}.csv', some)
    return tmp_path


def counts(task): return [task.count(split) for split in ('train', 'valid', 'test')]


def test_kinetics(kinetics_folder):
    with pytest.warns(UserWarning, match='2 of 14 listed videos are missing: 1 of train, 1 of valid'):
        task = kinetics(kinetics_folder)
    assert counts(task) == [4, 4, 4]
    assert task.vocab == ['air drumming', 'zumba']
    assert any('2 of 14 listed videos are missing' in note for note in task.notes)
    assert 'test is the official test part' in task.notes
    assert set(task.df.group) == {path.split('/')[-1].split('.')[0][:11] for path in task.df.path}
    everything = task.items('train', 'valid', 'test')
    assert all((label == 'zumba') == ('zu' in path.split('/')[-1]) for path, label in everything)
    with pytest.warns(UserWarning): spec = create_task(f'kinetics:{kinetics_folder},test=val')
    assert counts(spec) == [4, 0, 4]
    assert 'test is the official validation part' in spec.notes
    assert counts(spec.hold_out(.5)) == [2, 2, 4]


def test_kinetics_without_classes_of_test(kinetics_folder):
    "As its authors released it first: youtube_id, time_start, time_end, split"
    file = kinetics_folder/'annotations'/'test.csv'
    rows = list(csv.reader(open(file)))[1:]
    write_csv(file, [row[1:] for row in rows], HEADER[1:])
    with pytest.warns(UserWarning): task = kinetics(kinetics_folder)
    assert counts(task) == [4, 0, 4]
    with pytest.raises(InputError, match='list of the test part has no classes'): kinetics(kinetics_folder, test='test')


def test_a_source_in_two_parts_is_left_out_of_train(kinetics_folder, videos):
    "Two segments of one video on YouTube"
    file = kinetics_folder/'annotations'/'train.csv'
    rows = [tuple(row) for row in csv.reader(open(file))][1:]
    number = next(csv.DictReader(open(kinetics_folder/'annotations'/'test.csv')))['youtube_id']
    write_csv(file, [*rows, ('air drumming', number, 50, 60, 'train')])
    shutil.copy(videos[-1], kinetics_folder/'train'/f'{number}_000050_000060.mp4')
    with pytest.warns(UserWarning, match='left out of train, as clips of the same source are in valid or test: 1'):
        task = kinetics(kinetics_folder)
    assert counts(task) == [4, 4, 4]
    assert not set(task.df.group[task.df.split == 'train']) & set(task.df.group[task.df.split != 'train'])


def test_parts_by_the_names_of_lists(kinetics_folder):
    "Without a column split; with a byte order mark; beside other lists"
    for part, name in dict(train='kinetics_train', validate='k400-val', test='k400-test').items():
        file = kinetics_folder/'annotations'/f'{part}.csv'
        rows = [row[:4] for row in csv.reader(open(file))]
        file.unlink()
        write_csv(kinetics_folder/f'{name}.csv', rows[1:], rows[0])
    (kinetics_folder/'k400-val.csv').write_text('\ufeff' + (kinetics_folder/'k400-val.csv').read_text())
    write_csv(kinetics_folder/'classes.csv', [('1', 'zumba')], ('id', 'name'))
    with pytest.warns(UserWarning): assert counts(kinetics(kinetics_folder)) == [4, 4, 4]


@pytest.mark.parametrize('change,match', [
    (lambda root: shutil.rmtree(root/'annotations'), 'no csv file with columns youtube_id'),
    (lambda root: [shutil.rmtree(root/part) for part in ('train', 'val')] + [f.unlink() for f in root.glob('*.mp4')],
     'none of the .* listed videos is in'),
    (lambda root: write_csv(root/'more.csv', [('a', 'b', 'x', 3, 'train')]), "time_start of b is no number: 'x'"),
    (lambda root: write_csv(root/'more.csv', [('a', 'b', 1, 3, 'part')]), "'part' is not train, validate or test")])
def test_kinetics_that_is_not_there(kinetics_folder, change, match):
    change(kinetics_folder)
    with pytest.raises(InputError, match=match) as e: kinetics(kinetics_folder)
    assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='kinetics: test must be val or test'): kinetics(kinetics_folder, test='valid')
    with pytest.raises(InputError, match='folder .* does not exist'): kinetics(kinetics_folder/'none')


# ---- Something-Something

TEMPLATES = 'Putting [something] on a surface', 'Dropping [something, somewhere]'
CLASSES = 'Putting something on a surface', 'Dropping something, somewhere'


@pytest.fixture(params=['', 'something-something-v2-'])
def ssv2_folder(request, tmp_path, videos):
    files = iter(videos)
    lists = dict(train=[], validation=[], test=[])
    for part, n in dict(train=3, validation=2, test=2).items():
        for c, template in enumerate(TEMPLATES):
            for i in range(n):
                number = str(1000*len(part) + 10*c + i)
                row = dict(id=number) if part == 'test' else dict(
                    id=number, label='x', template=template, placeholders=['a cup'])
                lists[part].append((row, template))
                file = tmp_path/'20bn-something-something-v2'/f'{number}.webm'
                file.parent.mkdir(exist_ok=True)
                shutil.copy(next(files), file)
    lists['train'].append((dict(id='77', template=TEMPLATES[0]), TEMPLATES[0]))
    (tmp_path/'labels').mkdir()
    def write(name, text): (tmp_path/'labels'/f'{request.param}{name}').write_text(text)
    write('labels.json', json.dumps({name:str(i) for i, name in enumerate(CLASSES)}))
    for part, rows in lists.items(): write(f'{part}.json', json.dumps([row for row, _ in rows]))
    write('test-answers.csv', '\n'.join(f'{row["id"]};{template.replace("[", "").replace("]", "")}'
                                        for row, template in lists['test']))
    return tmp_path


def test_ssv2(ssv2_folder):
    with pytest.warns(UserWarning, match='1 of 11 listed videos are missing: 1 of train'): task = ssv2(ssv2_folder)
    assert counts(task) == [6, 0, 4]
    assert task.vocab == list(CLASSES)  # in official order
    assert task.df.group.nunique() == 10
    assert any('the lists name no persons' in note for note in task.notes)
    assert 'test is the official validation part' in task.notes
    with pytest.warns(UserWarning): task = create_task(f'ssv2:{ssv2_folder},test=test')
    assert counts(task) == [6, 4, 4]
    assert all((label == CLASSES[0]) == (path[-7] == '0') for path, label in task.items('train', 'valid', 'test'))


def test_ssv2_that_is_not_as_it_should_be(ssv2_folder):
    labels = next((ssv2_folder/'labels').glob('*labels.json'))
    text = labels.read_text()
    labels.write_text(json.dumps({CLASSES[0]:'0'}))
    with pytest.raises(InputError, match="'Dropping something, somewhere' is not in labels.json"): ssv2(ssv2_folder)
    for bad, match in (('[1]', 'does not give a number to each class'), ('{', 'cannot be read as json')):
        labels.write_text(bad)
        with pytest.raises(InputError, match=match): ssv2(ssv2_folder)
    labels.write_text(text)
    train = next((ssv2_folder/'labels').glob('*train.json'))
    train.write_text('["a"]')
    with pytest.raises(InputError, match='is not a list of videos with id and template: a'): ssv2(ssv2_folder)
    train.unlink()
    with pytest.raises(InputError, match='no train.json in'): ssv2(ssv2_folder)
    with pytest.raises(InputError, match='test must be val or test'): ssv2(ssv2_folder, test='valid')
