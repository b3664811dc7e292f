"Csv files are read as they were meant, or refused with what was seen."
import os
import shutil

import pytest

from sdfast.data.task import Task
from sdfast.errors import InputError


@pytest.fixture(scope='module')
def twelve(clips, tmp_path_factory):
    "A folder of twelve different clips, 'clip 0.mp4' to 'clip 11.mp4'"
    root = tmp_path_factory.mktemp('twelve')
    for i, f in enumerate([*sorted((clips/'down').iterdir())[:6], *sorted((clips/'right').iterdir())[:6]]):
        shutil.copy(f, root/f'clip {i}.mp4')
    return root


@pytest.fixture
def read(twelve):
    "A function that writes a csv file and reads it"
    def read(text, **kwargs):
        content = text if isinstance(text, bytes) else text.encode()
        (twelve/'t.csv').write_bytes(content)
        return Task.from_csv(twelve/'t.csv', **kwargs)
    return read


def rows(line='clip {i}.mp4,{label},{split}', head='path,label,split', n=12):
    "A table of two classes, every third clip is for testing"
    def split(i): return 'test' if i % 3 == 2 else 'train'
    return '\n'.join([head, *(line.format(i=i, label='ab'[i % 2], split=split(i)) for i in range(n))])


def alternate(text, others='456789'):
    "Change the label in some lines, such as from 'a' to 'A'"
    return '\n'.join(text(line) if line.split('.')[0][-1] in others else line for line in rows().split('\n'))


READ = dict(
    plain=rows().encode(),
    bom=b'\xef\xbb\xbf' + rows().replace('\n', '\r\n').encode(),
    spaces=rows('clip {i}.mp4, {label}, {split}', 'path, label, split').encode(),
    blank_lines=rows().replace('\n', '\n\n').encode(),
    quotes=rows('"clip {i}.mp4","{label}",{split}').encode(),
    commas=rows('clip {i}.mp4,{label},{split},,', 'path,label,split,,').encode(),
    commas_in_rows=rows('clip {i}.mp4,{label},{split},').encode(),
    empty_rows=(rows() + '\n,,\n,,').encode(),
    capital_header=rows(head='Path,LABEL,Split').encode(),
    capital_splits=rows().replace('train', 'Train').replace('test', 'TEST').encode(),
    training=rows().replace('train', 'training').replace('test', 'testing').encode(),
    trailing_spaces=alternate(lambda line: line.replace(',train', ' ,train').replace(',test', '  ,test')).encode(),
    split_spaces=alternate(lambda line: line + ' ').encode())


@pytest.mark.parametrize('name', READ)
def test_tables_that_mean_the_same(read, name):
    task = read(READ[name])
    assert (task.vocab, task.count('train'), task.count('test')) == (['a', 'b'], 8, 4)
    assert not task.skipped


REFUSED = dict(
    semicolons=(rows().replace(',', ';'), "no column 'path'.*cells must be separated by commas"),
    tabs=(rows().replace(',', '\t'), 'cells must be separated by commas'),
    utf16=(rows().encode('utf-16'), 'not text in UTF-8'),
    latin=(rows('clip {i}.mp4,k\xf6ln {label},{split}').encode('latin-1'), 'not text in UTF-8'),
    comma_in_label=(rows('clip {i}.mp4,{label}, standing,{split}'), 'line 2 has 4 cells, the header 3'),
    short_row=(rows() + '\nclip 3.mp4,a', 'line 14 has 2 cells, the header 3'),
    open_quote=(rows() + '\n"clip 3.mp4,a,train', 'cannot be read as csv: line 14'),
    empty=('', 'is empty'),
    no_header=(rows(head='clip 0.mp4,a,train'), "no column 'path'"),
    two_labels=(rows(line='clip {i}.mp4,{label},x,{split}', head='path,label,label,split'), "2 columns 'label'"),
    no_suffix=(rows().replace('.mp4', ''), 'none of its 12 videos'),
    no_train=(rows().replace('train', 'fit'), 'no split whose name begins with train|no split .train.'),
    one_label=(rows().replace(',b,', ',a,'), 'only one class'))


@pytest.mark.parametrize('name', REFUSED)
def test_tables_that_are_refused(read, name):
    text, words = REFUSED[name]
    with pytest.raises(InputError, match=words) as e: read(text)
    assert '\n' not in str(e.value)


def test_names_of_splits(read):
    text = rows() + '\nclip 1.mp4,b,validation\nclip 3.mp4,b,Train\nclip 4.mp4,a,later\nclip 5.mp4,b,'
    task = read(text)
    assert (task.count('train'), task.count('valid')) == (9, 1)
    notes = task.notes
    assert 'train is train + Train' in notes
    assert 'valid is validation' in notes
    assert 'splits later are not used' in notes
    assert 'rows without a split are not used: 1' in notes
    assert not read(rows()).notes


def test_parts_of_videos_are_not_read_silently(read):
    task = read(rows('clip {i}.mp4,{label},{split},0,10', 'path,label,split,start_frame,end'))
    assert task.notes == ('columns start_frame, end are not used: clips are taken from whole files',)
    assert not read(rows('clip {i}.mp4,{label},{split},1', 'path,label,split,legend')).notes


def test_spaces_around_a_path(read, twelve):
    shutil.copy(twelve/'clip 0.mp4', twelve/' odd .mp4')
    os.remove(twelve/' odd .mp4') if os.name == 'nt' else None
    task = read(rows().replace('clip 0.mp4', ' odd .mp4').replace('clip 1.mp4', 'clip 1.mp4 '))
    assert os.path.basename(task.df.path[0]) == ' odd .mp4'
    assert os.path.basename(task.df.path[1]) == 'clip 1.mp4'


def test_dots_after_a_linked_folder_lead_where_the_link_leads(read, twelve, tmp_path):
    (tmp_path/'disk/videos').mkdir(parents=True)
    shutil.copy(twelve/'clip 0.mp4', tmp_path/'disk/clip 2.mp4')
    if not (twelve/'link').exists(): os.symlink(tmp_path/'disk/videos', twelve/'link')
    task = read(rows().replace('clip 0.mp4', 'link/../clip 2.mp4'))
    assert task.df.path[0] == str((tmp_path/'disk/clip 2.mp4').resolve())
    assert read(rows().replace('clip 0.mp4', 'x/../clip 0.mp4')).df.path[0] == str(twelve/'clip 0.mp4')
