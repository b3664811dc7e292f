"The page and tables of an audit: what is shown of names and numbers, hostile text, files that are gone."
import re

import pytest
from helpers import numbered
from made_audit import make_audit
from made_study import CLASSES, EVIL

from sdfast.data.digits import write_video
from sdfast.report.audit_page import write_audit_page
from sdfast.report.audit_summary import class_table, findings, measure_table, short_names, summary_table
from sdfast.report.audit_tables import audit_rows


@pytest.fixture
def made(tmp_path):
    videos = [tmp_path/f'{i}.mp4' for i in range(5)]
    for file in videos: write_video(file, numbered(8))
    return tmp_path/'audit', make_audit(tmp_path/'audit', videos)


def test_hostile_names_are_text(made):
    folder, _ = made
    page = write_audit_page(folder).read_text()
    assert EVIL not in page and CLASSES[0] not in page
    assert '&lt;script&gt;' in page and 'example.invalid' in page
    assert '<script' not in page
    assert len(re.findall(r'<img src="data:image/jpeg;base64', page)) == 2*5 + 5  # flips of two, clips without labels


def test_what_is_gone_is_left_out(made):
    folder, content = made
    (folder/'clips.csv').unlink()
    for r in content['results']:
        for flip in r['flips']['lost']: (folder.parent/flip['path']).unlink(missing_ok=True)
    page = write_audit_page(folder).read_text()
    assert page.count('<img') == 2*2
    assert page.count('<figure class="strip">') == 2*5


def test_the_summary(made):
    table = summary_table(made[1])
    assert [c.title for c in table.columns] == ['checkpoint', 'task', 'old head %', 'new probe %', 'drift', 'KL']
    first, second, _ = table.rows
    assert str(first[2]) == '80.0 -10.0 [-14.0, -6.0] worse'
    assert str(second[2]) == '90.0 +0.0 [-4.0, +4.0] not distinguishable'
    assert str(first[4]) == '0.300 [0.200, 0.400]'
    assert str(first[5]) == '–'
    assert first[1] == 'folder:clips' and second[0] == 'tuned.pth'
    one_task = summary_table(made[1] | dict(results=made[1]['results'][:2]))
    assert [c.title for c in one_task.columns][:2] == ['checkpoint', 'old head %']
    assert one_task.title == 'What was forgotten since base.pth on folder:clips'


def test_names_are_as_short_as_they_can_be():
    def names(before, *afters, task='csv:/data/a.csv,fold=2'):
        results = [dict(after=a, task=task) for a in afters]
        return list(short_names(dict(before=dict(name=before), results=results)).values())
    assert names('/x/base.pth', '/x/tuned.pth') == ['base.pth', 'tuned.pth', 'csv:a.csv,fold=2']
    assert names('a/w.pth', 'b/w.pth')[:2] == ['a/w.pth', 'b/w.pth']
    assert names('hf:me/base', 'hf:me/tuned', task='moving_digits,part=motion') == [
        'hf:base', 'hf:tuned', 'moving_digits,part=motion']


def test_classes_that_lost_most_come_first(made):
    content = made[1]
    table = class_table(content['results'][0], content['measures'])
    assert table.rows[0][0] == 'class 19' and table.rows[-1][0] == CLASSES[0]
    found = {f['what']:f['text'] for f in findings(content['results'][0], content['measures'])}
    assert found['classes that lost most'].startswith('class 19 (-230.0)')
    assert found['old head'] == '90.0 % before, 80.0 % after: -10.0 [-14.0, -6.0] points'
    assert found['clips that flipped'] == '3 clips of 12 went from right to wrong, 2 from wrong to right (old head)'


def test_what_is_said_without_labels(made):
    content = made[1]
    del content['results'][2]['measures']['source_acc'], content['results'][2]['measures']['source_probe']
    found = findings(content['results'][2], content['measures'])
    assert [f['what'] for f in found] == ['drift', 'KL', 'layers that moved most']
    assert found[0]['text'].startswith('0.300 [0.200, 0.400], ')
    del content['measures']['source_acc'], content['measures']['source_probe']
    table = summary_table(content | dict(results=content['results'][2:]))
    assert table.caption == ('CKA, drift, KL and neighbours kept compare the features before and after, with 95 % '
                             'intervals by bootstrap over clips.')


def test_all_measures(made):
    content = made[1]
    rows = {str(row[0]):row for row in measure_table(content['results'][0], content['measures']).rows}
    assert list(rows) == ['old head %', 'new probe %', 'drift', 'KL']
    assert str(rows['drift'][1]) == '0.000' and str(rows['drift'][3]) == '–'
    assert rows['old head %'][4] == 'worse' and rows['drift'][4] == ''


def test_all_numbers_are_in_the_csv(made):
    table = audit_rows(made[1])
    assert len(table) == 4*(25 + 25 + 1)
    assert set(table[table['class'] == ''].task) == {r['task'] for r in made[1]['results']}
    assert {'change_value', 'change_low', 'change_high', 'clips', 'groups'} < set(table)
