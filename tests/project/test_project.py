"The texts of the project: the code of CONTRIBUTING runs, links lead somewhere, citation and style are in order."
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers import learner, make, model, same, small_run, state
from pages import prose

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
    "The registries with what CONTRIBUTING.md adds to them; each of its pieces of code runs on its own"
    monkeypatch.setattr(datasets_module, 'TASKS', dict(datasets_module.TASKS))
    monkeypatch.setattr(encoders_module, 'ENCODERS', dict(encoders_module.ENCODERS))
    before = dict(STRATEGIES)
    blocks = re.findall(r'```python\n(.*?)```', (ROOT/'CONTRIBUTING.md').read_text(), re.S)
    assert len(blocks) == 3
    try:
        for code in blocks: exec(code, {})
        yield
    finally:
        STRATEGIES.clear()
        STRATEGIES.update(before)


def test_the_task_of_contributing(contributed, clips):
    task = create_task(f'by_person:{clips},test=p0')
    assert set(task.df.group[task.df.split == 'test']) == {'p0'}
    assert task.count('test') == 4
    assert task.count('train') == 12
    assert task.vocab == ['down', 'right']
    with pytest.raises(ValueError, match="unknown option 'tset'; by_person has test"):
        create_task(f'by_person:{clips},tset=p0')


def test_task_encoder_and_strategy_of_contributing_in_a_study(contributed, clips, tmp_path):
    run = small_run(clips, task=f'by_person:{clips},test=p0', model='mean_frame', model_args='', epochs=1,
                    source_epochs=1)
    grids = {s:strength_grid(s, .05)[:1] for s in ('finetune', 'small_features')}
    rows = compare(run, grids, tmp_path, seeds=1)
    assert set(rows.status) == {'ok'}
    assert set(rows.model) == {'mean_frame'}
    assert set(rows.strategy) == {'finetune', 'small_features', 'untouched'}


def test_the_term_of_contributing_by_hand(contributed):
    net = model()
    cbs = make('small_features', .7, net)
    learn = learner(cbs, net=net)
    terms = []
    def record(m, args, out):
        if m.training: terms.append(out.detach().square().mean().item())
    net[0].register_forward_hook(record)
    learn.fit(1)
    assert cbs[0].mean_term() == pytest.approx(sum(terms)/len(terms), rel=1e-5)


def test_the_strategy_of_contributing_at_lam_0(contributed):
    def fit(lam):
        net = model()
        learn = learner([] if lam is None else make('small_features', lam, net), net=net)
        learn.fit(2)
        return state(learn.model)
    plain = fit(None)
    assert same(plain, fit(0.))
    assert not same(plain, fit(.7))


# ---- citation, changelog, licence

@pytest.fixture
def citation(): return yaml.safe_load((ROOT/'CITATION.cff').read_text())


def test_citation_of_the_software(citation):
    assert citation['cff-version'] == '1.2.0'
    assert citation['title'] == SETTINGS['lib_name']
    assert str(citation['version']) == SETTINGS['version']
    assert citation['abstract'].startswith(SETTINGS['description'])
    assert citation['license'] == 'Apache-2.0'
    assert citation['authors'] == [{'name': SETTINGS['author']}]
    assert citation['type'] == 'software'
    assert citation['message']
    assert not set(citation) - {'cff-version', 'message', 'title', 'abstract', 'type', 'authors', 'version', 'license',
                                'keywords', 'preferred-citation'}


def test_citation_of_the_paper(citation):
    paper = citation['preferred-citation']
    assert [a['family-names'] for a in paper['authors']] == ['Zhou', 'He', 'Lu', 'Wang', 'Wang']
    assert all(a['given-names'] for a in paper['authors'])
    assert (paper['type'], paper['year']) == ('article', 2022)
    assert paper['url'].endswith(paper['identifiers'][0]['value'].removeprefix('arXiv:'))
    assert paper['title'].lower() in prose(ROOT/'README.md').lower()


def test_changelog():
    text = (ROOT/'CHANGELOG.md').read_text()
    assert f'## [Unreleased] {SETTINGS["version"]}' in text
    assert re.findall('^### (.*)', text, re.M) == ['Added', 'Fixed', 'Not done']
    assert len(STRATEGIES) == 33
    assert 'Thirty-three ways' in text


def test_licence():
    text = (ROOT/'LICENSE').read_text()
    assert 'Apache License' in text
    assert 'Version 2.0' in text


# ---- links and the table of scripts

def anchors(text):
    "Anchors of the headings, as GitHub makes them"
    headings = re.findall(r'^#+ (.*)', text, re.M)
    return {re.sub(r'[^\w\- ]', '', h.lower()).replace(' ', '-') for h in headings}


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'experiments/README.md'])
def test_links_lead_somewhere(page):
    text = re.sub(r'```.*?```', '', (ROOT/page).read_text(), flags=re.S)
    links = [l for l in re.findall(r'\]\(([^)\s]+)\)', text) if not l.startswith('http')]
    assert links or page == 'CHANGELOG.md'
    for link in links:
        path, _, anchor = link.partition('#')
        if path.startswith('nbs/') and not (ROOT/'nbs').exists(): continue  # a copy without the notebooks
        target = (ROOT/page).parent/path if path else ROOT/page
        assert target.exists(), link
        if anchor: assert anchor in anchors(target.read_text()), link


def table_of_scripts():
    "Cells of the rows of the first table in experiments/README.md, after its head"
    text = (ROOT/'experiments/README.md').read_text()
    table = re.search(r'^\| script .*?\n\n', text, re.S | re.M)[0]
    def split(row): return [cell.strip() for cell in re.split(r'(?<!\\)\|', row.strip().strip('|'))]
    head, _, *rows = map(split, table.strip().split('\n'))
    assert head == ['script', 'question', 'command', 'time', 'writes']
    return rows


def linked_script(cell): return re.search(r'\]\((.*?)\)', cell)[1]


def test_the_table_has_every_script():
    folder = ROOT/'experiments'
    names = [str(f.relative_to(folder)) for f in folder.rglob('*.py')]
    scripts = {n for n in names if f'python experiments/{n}' in (folder/n).read_text()}
    assert {linked_script(row[0]) for row in table_of_scripts()} == scripts


@pytest.mark.parametrize('row', table_of_scripts(), ids=lambda row: linked_script(row[0]))
def test_each_script_says_question_command_time_and_output(row):
    script, question, command, time, writes = row
    name = re.escape(linked_script(script))
    assert question
    assert writes
    assert re.fullmatch(rf'`python experiments/{name}( [^`]*)?`', command)
    assert re.search(r'[\d½]', time)


# ---- style

def test_ruff():
    command = [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'concise', str(ROOT)]
    p = subprocess.run(command, capture_output=True, text=True)
    assert p.returncode == 0, p.stdout


def test_the_hooks_are_of_tools_that_dev_installs():
    repos = yaml.safe_load((ROOT/'.pre-commit-config.yaml').read_text())['repos']
    hooks = [hook for repo in repos for hook in repo['hooks']]
    assert {'ruff', 'nbdev-clean'} <= {h['id'] for h in hooks}
    assert all(h['language'] == 'system' for h in hooks)
    required = {re.split('[>=]', r)[0] for extra in ('dev', 'docs')
                for r in SETTINGS[f'{extra}_requirements'].split()}
    assert {'ruff', 'pre-commit', 'pre-commit-hooks', 'nbdev'} <= required
