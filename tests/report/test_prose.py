"Names of studies in titles."
from types import SimpleNamespace

import pandas as pd
import pytest

from sdfast.report.prose import page_title, study_title, task_name


@pytest.mark.parametrize('spec, name', [
    ('moving_digits', 'moving_digits'), ('moving_digits:/tmp/x', 'moving_digits'),
    ('folder:/data/my clips/skate,group=_(g\\d+)_', 'skate'), ('folder:skate/', 'skate'),
    ('csv:/data/arid6/manifest.csv,test=test_seen', 'arid6'), ('csv:arid6/Labels.csv', 'arid6'),
    ('csv:/data/walking_people.csv', 'walking_people'), ('csv:manifest.csv', 'manifest'),
    ('ucf101:/data/UCF-101,fold=2', 'ucf101'), ('hf_dataset:owner/clips', 'clips'),
    ('shards:/data/hockey/{000..012}.tar', 'hockey')])
def test_the_name_of_a_task(spec, name): assert task_name(spec) == name


def study(source, task, model='tiny'):
    return SimpleNamespace(rows=pd.DataFrame([dict(source=source, task=task, model=model)]))


def test_titles_have_names_instead_of_paths():
    r = study('csv:/data/arid6/manifest.csv,test=seen', 'folder:/data/skate', 'hf:/models/videomae')
    assert study_title(r) == 'arid6 → skate, videomae'
    assert page_title([r]) == 'What does videomae forget of arid6 when it learns skate?'


def test_two_tasks_of_one_name_are_named_in_full():
    r = study('folder:/a/clips', 'folder:/b/clips')
    assert study_title(r) == 'folder:/a/clips → folder:/b/clips, tiny'
    assert page_title([study('moving_digits', 'moving_digits')]).endswith('when it learns its target task?')
