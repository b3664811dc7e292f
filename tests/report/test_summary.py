"What a study of classes with odd names writes, and what is read back."
import csv
from functools import partial

import pandas as pd
import pytest
from tables import ODD_CLASSES

from sdfast.data.text import FORMULA
from sdfast.report.paper import right_answers
from sdfast.report.summary import answered_right, mcnemar_of_runs
from sdfast.study.config import Run
from sdfast.study.execute import execute


def cells(folder):
    "Every cell of every csv file below, with comma or semicolon for what divides them"
    for file in folder.rglob('*.csv'):
        for mark in ',;':
            with open(file, newline='', encoding='utf-8') as f:
                for row in csv.reader(f, delimiter=mark): yield from ((file, c) for c in row)


def test_odd_class_names_stay_names(class_csv, tmp_path, monkeypatch):
    "They come back from what is written as they went in, make no files, and no cell that is a formula"
    file = class_csv(ODD_CLASSES)
    rows = pd.read_csv(file, dtype=str)
    pd.concat([rows, rows[rows.split.eq('train')].assign(split='valid')]).to_csv(file, index=False)
    before = sorted(tmp_path.rglob('*'))
    monkeypatch.chdir(tmp_path/'set/down')
    run = Run(task=f'csv:{file}', source='', size=24, frames=4, bs=4, epochs=1, final=True)
    row = execute(run, tmp_path/'out')
    assert row['status'] == 'ok', row['error']
    assert [p for p in sorted(tmp_path.rglob('*')) if not p.is_relative_to(tmp_path/'out')] == before
    written = {p.name for p in (tmp_path/'out').rglob('*') if p.is_file()} - {'.lock'}
    assert written == {'run.json', 'epochs.csv', 'scores.csv', 'log.txt', 'result.json'}
    pd.DataFrame([row]).to_csv(tmp_path/'out/runs.csv', index=False)
    for _, cell in cells(tmp_path/'out'): assert not FORMULA.search(cell) or cell in ('-1', '+1.5')
    scores = pd.read_csv(tmp_path/'out/runs'/row['key']/'scores.csv', dtype=dict(label=str))
    assert list(scores.columns[2:]) == sorted(ODD_CLASSES)
    assert list(scores.label) == ODD_CLASSES
    assert right_answers(tmp_path/'out', row, 'last').mean() == pytest.approx(row['acc1'])
    runs = pd.DataFrame([row])
    assert mcnemar_of_runs(partial(answered_right, tmp_path/'out'), runs, runs.set_index('seed')) == 1
