"What the papers beside the code say: their code runs, their links lead somewhere, their figures are the results'."
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import learner, make, model, same, small_run, state

from sdfast.data import datasets as datasets_module
from sdfast.data.datasets import create_task
from sdfast.models import encoders as encoders_module
from sdfast.strategies import STRATEGIES
from sdfast.study.choose import strength_grid
from sdfast.study.compare import compare

ROOT = Path(__file__).parents[2]
SETTINGS = configparser.ConfigParser()
SETTINGS.read(ROOT/'settings.ini', encoding='utf-8')
SETTINGS = SETTINGS['DEFAULT']


@pytest.fixture
def contributed(fresh, monkeypatch):
    "The registries with what CONTRIBUTING.md adds to them, each piece of code by itself"
    for module, name in ((datasets_module, 'TASKS'), (encoders_module, 'ENCODERS')): monkeypatch.setattr(module, name, dict(getattr(module, name)))
    before = dict(STRATEGIES)
    blocks = re.findall(r'```python\n(.*?)```', (ROOT/'CONTRIBUTING.md').read_text(), re.S)
    assert len(blocks) == 3
    try:
        for code in blocks: exec(code, {})
        yield
    finally:
        STRATEGIES.clear()
        STRATEGIES.update(before)


def test_the_code_of_contributing_runs(contributed, clips, tmp_path):
    task = create_task(f'by_person:{clips},test=p0')
    assert set(task.df.group[task.df.split == 'test']) == {'p0'} and task.count('test') == 4 and task.count('train') == 12 and task.vocab == ['down', 'right']
    with pytest.raises(ValueError, match="unknown option 'tset'; by_person has test"): create_task(f'by_person:{clips},tset=p0')
    run = small_run(clips, task=f'by_person:{clips},test=p0', model='mean_frame', model_args='', epochs=1, source_epochs=1)
    rows = compare(run, {s:strength_grid(s, .05)[:1] for s in ('finetune', 'small_features')}, tmp_path, seeds=1)
    assert set(rows.status) == {'ok'} and set(rows.model) == {'mean_frame'} and set(rows.strategy) == {'finetune', 'small_features', 'untouched'}


def test_its_strategy_is_one(contributed):
    "The term by hand, and lam 0"
    seen = []
    learn = learner(cbs := make('small_features', .7, net := model()), net=net)
    net[0].register_forward_hook(lambda m, a, out: seen.append(out.detach().square().mean().item()) if m.training else None)
    learn.fit(1)
    assert cbs[0].mean_term() == pytest.approx(sum(seen)/len(seen), rel=1e-5)
    plain, none = learner(net=model()), learner(make('small_features', 0., net := model()), net=net)
    plain.fit(2), none.fit(2)
    assert same(state(plain.model), state(none.model)) and not same(state(plain.model), state(learn.model))


def test_citation():
    c = yaml.safe_load((ROOT/'CITATION.cff').read_text())
    assert c['cff-version'] == '1.2.0' and c['title'] == SETTINGS['lib_name'] and str(c['version']) == SETTINGS['version'] and c['abstract'].startswith(SETTINGS['description']) and c['license'] == 'Apache-2.0'
    assert c['authors'] == [{'name': SETTINGS['author']}] and c['type'] == 'software' and c['message']
    paper = c['preferred-citation']
    assert [a['family-names'] for a in paper['authors']] == ['Zhou', 'He', 'Lu', 'Wang', 'Wang'] and all(a['given-names'] for a in paper['authors']) and (paper['type'], paper['year']) == ('article', 2022)
    assert paper['url'].endswith(paper['identifiers'][0]['value'].removeprefix('arXiv:')) and paper['title'].lower() in (ROOT/'README.md').read_text().lower()
    assert not set(c) - {'cff-version', 'message', 'title', 'abstract', 'type', 'authors', 'version', 'license', 'keywords', 'preferred-citation'}


def test_changelog_and_licence():
    text = (ROOT/'CHANGELOG.md').read_text()
    assert f'## [Unreleased] {SETTINGS["version"]}' in text and re.findall('^### (.*)', text, re.M) == ['Added', 'Fixed', 'Not done']
    assert 'Apache License' in (ROOT/'LICENSE').read_text() and 'Version 2.0' in (ROOT/'LICENSE').read_text()
    assert len(STRATEGIES) == 26 and 'Twenty-six ways' in text


def anchors(text):
    "Of the headings, as GitHub makes them"
    return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in re.findall(r'^#+ (.*)', text, re.M)}


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'experiments/README.md'])
def test_links_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', (ROOT/page).read_text(), flags=re.S)
    links = [l for l in re.findall(r'\]\(([^)\s]+)\)', text) if not l.startswith('http')]
    assert links or page == 'CHANGELOG.md'
    for link in links:
        path, _, at = link.partition('#')
        if path.startswith('nbs/') and not (ROOT/'nbs').exists(): continue  # a copy without the notebooks
        target = ((ROOT/page).parent/path) if path else ROOT/page
        assert target.exists(), link
        if at: assert at in anchors(target.read_text()), link


def test_each_script_says_question_command_time_and_output():
    "A row of experiments/README.md for each script, with a command that names it"
    text = (ROOT/'experiments/README.md').read_text()
    head, _, *rows = re.search(r'^\| script .*?\n\n', text, re.S | re.M)[0].strip().split('\n')
    assert [c.strip() for c in head.strip('|').split('|')] == ['script', 'question', 'command', 'time', 'writes']
    cells = [[c.strip() for c in re.split(r'(?<!\\)\|', r.strip().strip('|'))] for r in rows]
    named = {re.search(r'\]\((.*?)\)', c[0])[1] for c in cells}
    assert named == {n for f in (ROOT/'experiments').rglob('*.py') if f'python experiments/{(n := str(f.relative_to(ROOT/"experiments")))}' in f.read_text()}
    for script, question, command, time, writes in cells:
        name = re.search(r'\]\((.*?)\)', script)[1]
        assert question and writes and re.fullmatch(rf'`python experiments/{re.escape(name)}( [^`]*)?`', command) and re.search(r'[\d½]', time), name


def test_ruff():
    p = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', str(ROOT)], capture_output=True, text=True)
    assert p.returncode == 0, p.stdout


def test_the_hooks_are_of_tools_that_dev_brings():
    hooks = [h for r in yaml.safe_load((ROOT/'.pre-commit-config.yaml').read_text())['repos'] for h in r['hooks']]
    assert {'ruff', 'nbdev-clean'} <= {h['id'] for h in hooks} and all(h['language'] == 'system' for h in hooks)
    assert {'ruff', 'pre-commit', 'pre-commit-hooks', 'nbdev'} <= {re.split('[>=]', r)[0] for r in SETTINGS['dev_requirements'].split()}
