"The study files of `experiments/`: the schema reads them, and they have the settings of the committed results."
import pandas as pd
import pytest
import yaml
from scripts import ROOT

from sdfast.study.settings import command_line, read_study_file

FILES = sorted((ROOT/'experiments').glob('*.yaml'))
SHARED = ('task', 'source', 'model', 'epochs')  # settings that are columns of runs.csv


@pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
def test_a_study_file_is_read_and_asks_a_question(file):
    settings = read_study_file(file)
    assert settings.out == f'runs/{file.stem}'
    comments = [line for line in file.read_text().splitlines() if line.startswith('#')]
    assert '?' in ' '.join(comments)
    assert comments[-1] == f'#     python experiments/{settings.command}.py --config experiments/{file.name}'


@pytest.mark.parametrize('file', FILES, ids=lambda f: f.stem)
def test_a_study_file_names_no_default_twice(file):
    "Each setting in it changes something, `jobs` and `out` aside, which say how it was run"
    written = yaml.safe_load(file.read_text())
    said = command_line(read_study_file(file))
    for name in written.keys() - {'command', 'jobs', 'out'}: assert f'--{name.replace("_", "-")}' in said, name


def compared(): return [f for f in FILES if yaml.safe_load(f.read_text())['command'] == 'compare']


@pytest.mark.parametrize('file', compared(), ids=lambda f: f.stem)
def test_the_committed_results_are_of_this_study(file):
    rows = pd.read_csv(ROOT/'experiments/results'/file.stem/'runs.csv').fillna(dict(strategy_args=''))
    settings = read_study_file(file)
    rows = rows[rows.strategy != 'untouched']
    for name in SHARED: assert set(rows[name]) == {getattr(settings, name)}, name
    assert rows.lr.max() == settings.lr
    assert rows[rows.final].seed.nunique() == settings.seeds
    if settings.strategies != 'all': assert set(rows.strategy) == {'finetune', *settings.strategies.split(',')}
    if settings.all_strengths: assert rows.final.all()


@pytest.mark.parametrize('file', compared(), ids=lambda f: f.stem)
def test_the_committed_strengths_are_of_this_study(file):
    rows = pd.read_csv(ROOT/'experiments/results'/file.stem/'runs.csv')
    lams = yaml.safe_load(file.read_text()).get('lams', {})
    if isinstance(lams, list): lams = {s:lams for s in set(rows.strategy) - {'finetune', 'untouched'}}
    for strategy, values in lams.items():
        assert set(rows[rows.strategy == strategy].lam) == set(map(float, values)), strategy
