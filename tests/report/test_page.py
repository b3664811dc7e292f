"A study's page, made from its files: complete in itself, with the tables of the report."
import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdfast.commands import report
from sdfast.data.text import as_markdown
from sdfast.report.load import load_results
from sdfast.report.page import html_page, write_page
from sdfast.report.summary import summary
from sdfast.report.tables import strategy_table, trade_off_table
from sdfast.report.trade_off import trade_off
from sdfast.report.write import write_report
from sdfast.study.settings import make_settings, write_study_file

ROOT = Path(__file__).parents[2]
MAIN = ['acc1', 'source_acc', 'source_probe', 'mcnemar']


@pytest.fixture
def copy(study, tmp_path): return shutil.copytree(study, tmp_path/'s')


def test_all_links_stay_on_the_page(page):
    text = page.read_text()
    links = re.findall(r'(?:href|src|xlink:href)="([^"]*)"|url\(([^)]*)\)', text)
    targets = [(a or b).strip() for a, b in links]
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert targets
    assert all(t.startswith(('#', 'data:')) for t in targets)
    assert len(ids) == len(set(ids))
    assert {t[1:] for t in targets if t.startswith('#')} <= set(ids)


def test_nothing_is_imported(page):
    text = page.read_text()
    namespaces = {'xmlns="http://www.w3.org/2000/svg"', 'xmlns:xlink="http://www.w3.org/1999/xlink"'}
    assert '@import' not in text
    assert set(re.findall(r'xmlns\S*="[^"]*"', text)) == namespaces


def test_the_policy_allows_the_pages_script_alone(page):
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    script, = re.findall(r'<script>(.*?)</script>', text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; img-src data:")
    assert f"'sha256-{digest}'" in policy


def test_clips_that_can_be_read_are_shown(page):
    assert page.read_text().count('data:image/jpeg') == 2*4 - 2, 'of eight clips one is gone and one is broken'


def test_no_path_of_the_machine_is_shown(page): assert str(page.parent.parent) not in page.read_text()


def test_tables_to_copy_are_those_of_the_report(study, page):
    r, = load_results(study)
    text = html.unescape(page.read_text())
    tables = [strategy_table(summary(r.rows, folder=study), MAIN)]
    tables += [trade_off_table(trade_off(r.rows, m), m) for m in ('source_acc', 'source_probe')]
    for table in tables:
        assert table.to_markdown() in text
        assert table.to_latex() in text


def test_cells_sort_by_value_and_say_their_verdict(study, page):
    r, = load_results(study)
    table = strategy_table(summary(r.rows, folder=study), MAIN)
    row = next(row for row in table.rows if row[0] == 'self_distill')
    cell = row[3]
    assert cell.verdict == 'better'
    text = page.read_text()
    assert (f'<td class="n" data-v="{cell.value:.10g}"><span class="mean">{cell.mean}</span>'
            f'<span class="diff">{cell.diff} <span class="iv">{cell.interval}</span></span>'
            '<span class="verdict better">▲ <span class="word">better</span></span></td>') in text


def test_a_folder_with_runs_alone_says_what_is_missing(study, tmp_path):
    shutil.copy(study/'runs.csv', tmp_path/'runs.csv')
    text = write_page(tmp_path).read_text()
    for said in ('has no courses', 'is unknown: this folder has no answers', 'has no drift by layer',
                 'not recorded in this folder', 'The command was not recorded'):
        assert said in text
    assert {f.stem for f in (tmp_path/'figures').iterdir()} == {'paths', 'means', 'strengths'}


@pytest.mark.parametrize('name', ['moving_digits_all', 'lambda_sweep', 'arid6_fights2_mobilenetv2'])
def test_shipped_results_have_pages(name):
    r, = load_results(ROOT/'experiments/results'/name)
    text = html_page([r], [summary(r.rows)])
    if len(r.failed): assert f'{len(r.failed)} of {len(r.rows) - 1} runs' in text
    if name == 'lambda_sweep': assert 'self_distill reduction=mean,teacher_bn=batch: the runs leave open' in text


def test_how_to_repeat_a_study_without_a_study_file_is_its_plans_command(copy):
    plan = dict(command='python compare.py --task "<b>"', total=1, folders=[])
    (copy/'plan.json').write_text(json.dumps(plan))
    r, = load_results(copy)
    assert r.commands == ['python compare.py --task "<b>"']
    assert 'python compare.py --task &#34;&lt;b&gt;&#34;' in html_page([r], [summary(r.rows)])


def test_how_to_repeat_a_study_is_made_from_its_study_file(copy):
    (copy/'plan.json').write_text(json.dumps(dict(command='python compare.py --config x.yaml')))
    write_study_file(make_settings('compare', epochs=3, task='folder:<b> c'), copy)
    r, = load_results(copy)
    assert r.commands == ["python experiments/compare.py --task 'folder:<b> c' --epochs 3"]
    assert '--task &#39;folder:&lt;b&gt; c&#39; --epochs 3' in html_page([r], [summary(r.rows)])


def test_a_page_says_that_no_command_was_recorded(study):
    r, = load_results(study)
    assert r.commands == []
    assert 'The command was not recorded.' in html_page([r], [summary(r.rows)])


def test_notes_of_the_tasks_are_in_a_page_that_is_made_again(study, copy):
    notes = [f'{as_markdown("<b>_")}: 1 of 15 videos are missing', 'splits _odd are not used']
    whole, = load_results(study)
    assert not whole.notes
    write_report(whole.rows, copy, 'x', notes)
    assert load_results(copy)[0].notes == notes
    text = write_page(copy, figures=False).read_text()
    assert '<li>&lt;b&gt;_: 1 of 15 videos are missing</li><li>splits' in text
    assert strategy_table(summary(whole.rows, folder=copy), MAIN, notes).to_markdown() in html.unescape(text)


def test_merged_studies_have_the_notes_of_each(study, copy):
    (copy/'notes.json').write_text(json.dumps(['a', 'b']))
    assert load_results(copy, study)[0].notes == ['a', 'b']


def test_script(study, tmp_path):
    out = tmp_path/'x'/'page.html'
    words = [sys.executable, ROOT/'experiments/make_report.py', study, '--out', out, '--no-figures']
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert 'written' in done.stdout
    assert out.exists()
    assert not (tmp_path/'x'/'figures').exists()


@pytest.mark.parametrize('n, options, said', [
    (0, {}, 'name at least one folder'),
    (2, {}, '--out is needed'),
    (1, dict(adjust='x'), '--adjust must be one of'),
])
def test_options_of_the_script(study, capsys, n, options, said):
    with pytest.raises(SystemExit, match='2'): report.main(*[str(study)]*n, **options)
    assert said in capsys.readouterr().err


def test_the_script_refuses_what_is_no_study(tmp_path, capsys):
    with pytest.raises(SystemExit, match='2'): report.main(str(tmp_path))
    assert 'has no runs.csv' in capsys.readouterr().err
