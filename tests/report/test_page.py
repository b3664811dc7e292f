"A study's page: numbers by hand from the files, and the page itself in headless Chromium."
import base64
import hashlib
import html
import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import numbered
from PIL import Image

from sdfast.data.digits import write_video
from sdfast.data.text import as_markdown
from sdfast.errors import InputError
from sdfast.metrics.columns import COLUMNS
from sdfast.report.page import film_strip, html_page, write_page
from sdfast.report.panels import SHEET, plots, svg, swatch
from sdfast.report.plots import COLOURS, LOOKS
from sdfast.report.results import load_results
from sdfast.report.summary import summary, trade_off
from sdfast.report.table import latex_text
from sdfast.report.tables import strategy_table, trade_off_table
from sdfast.report.write import write_report
from sdfast.stats import mean_interval
from sdfast.study.config import Run
from sdfast.study.settings import make_settings, write_study_file

ROOT = Path(__file__).parents[2]
EVIL = '<img src="https://example.invalid/x.png" onerror="document.title=\'owned\'">'
CLASSES = ['<script>document.title="owned"</script>', 'a&b "quoted" $x_1$', 'Übung 漢字', '_plain_ & %']
SETTINGS = dict(finetune=[(0., .05), (0., .025)], self_distill=[(1., .05), (10., .05)], l2sp=[(.1, .05), (1., .05)])
CHOSEN = dict(finetune=(0., .05), self_distill=(10., .05), l2sp=(.1, .05))


def _scores(file, paths, labels, right, p):
    "Probability `p` for a video's own class where `right`, else for the next class"
    probs = np.full((len(paths), len(CLASSES)), (1 - p)/(len(CLASSES) - 1))
    for row, label, ok in zip(probs, labels, right): row[(label + (not ok)) % len(CLASSES)] = p
    s = pd.DataFrame(probs, columns=CLASSES)
    s.insert(0, 'path', paths)
    s.insert(1, 'label', [CLASSES[l] for l in labels])
    s.to_csv(file, index=False)


def make(folder, videos, seeds=3, final=True):
    "A study's folder as `study` leaves it; what each run got right follows from strategy and seed"
    rows, labels, rng = [], [i % len(CLASSES) for i in range(len(videos))], np.random.default_rng(0)
    (folder/'source'/'src').mkdir(parents=True)
    _scores(folder/'source'/'src'/'scores.csv', videos, labels, [True]*len(videos), .9)
    for strategy, settings in SETTINGS.items():
        for lam, lr in settings:
            for seed in range(seeds):
                run = Run(task=EVIL, source='source & co', data='12-34', model='tiny', strategy=strategy, lam=lam, lr=lr, seed=seed, epochs=3, final=True)
                at, failed = folder/'runs'/run.key, strategy == 'l2sp' and lam == 1. and seed == 1
                at.mkdir(parents=True)
                (at/'run.json').write_text(json.dumps(run.__dict__))
                (at/'result.json').write_text(json.dumps(dict(versions=dict(sdfast='0.1.0', torch='2.9'), python='3.11', threads=1)))
                (at/'log.txt').write_text(f'2026-01-01 10:00:00\n{run}\n{EVIL}')
                row = {c:None for c in COLUMNS} | {k:v for k, v in run.__dict__.items() if k in COLUMNS} | dict(
                    key=run.key, anchor='abc', seconds=2., status='failed' if failed else 'ok', error=f'</script>{CLASSES[0]}' if failed else '', chosen=CHOSEN[strategy] == (lam, lr))
                if not failed:
                    keep = dict(finetune=.4, self_distill=.7, l2sp=.5)[strategy] + .02*lam**.5
                    row |= dict(valid_acc1=.9 + .001*seed, acc1=.9 + .01*rng.normal(), source_acc=keep + .01*rng.normal(), source_probe=keep + .1 + .01*rng.normal(), cka=.9, drift=.2 + .01*seed)
                    pd.DataFrame([dict(epoch=e, source_acc=keep + .01*seed - .1*e, cka=1 - .1*e, **{f'layers.<b>{n}</b>.drift':.1*(n + 1)*(e + 1) + .01*seed for n in range(2)}) for e in range(3)]).to_csv(at/'curve.csv', index=False)
                    # finetune forgets the first class, and of the second one video in the first seed
                    lost = lambda i: strategy == 'finetune' and (labels[i] == 0 or i == 1 and seed == 0)
                    _scores(at/'source_scores.csv', videos, labels, [not lost(i) for i in range(len(videos))], .6)
                    _scores(at/'scores.csv', videos, labels, [not (strategy == 'l2sp' and labels[i] == 3) for i in range(len(videos))], .7)
                rows.append(row)
    rows.append({c:None for c in COLUMNS} | dict(key='src', task=EVIL, source='source & co', model='tiny', strategy='untouched', status='ok', error='', final=True, chosen=True,
                                                 anchor='abc', source_acc=.95, source_probe=.93, cka=1., drift=0.))
    pd.DataFrame(rows).to_csv(folder/'runs.csv', index=False)
    return folder


@pytest.fixture(scope='module')
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp('study')
    videos = []
    for i in range(8):
        videos.append(str(root/f'v & <i>{i}.mp4'))
        write_video(videos[-1], numbered(12))
    Path(videos[0]).unlink()  # one is no longer there
    Path(videos[4]).write_bytes(b'no video')
    return make(root/'out', videos)


@pytest.fixture(scope='module')
def page(study): return write_page(study)


def test_results_by_hand(study):
    r, = load_results(study)
    assert len(r.rows) == 19 and len(r.failed) == 1 and set(r.tuned.groupby('strategy').size()) == {3} and r.run['source'] == 'source & co'
    assert r.versions == [dict(sdfast='0.1.0', torch='2.9', python='3.11', threads=1, runs=18)]
    c = r.classes('source')
    assert list(c) == ['finetune', 'self_distill', 'l2sp'] and c.index[0] == CLASSES[0], 'most forgotten first'
    assert c.finetune[CLASSES[0]] == -1 and c.finetune[CLASSES[1]] == pytest.approx(-(1/2)/3) and (c[['self_distill', 'l2sp']] == 0).all(axis=None)
    t = r.classes('target')
    assert list(t) == ['self_distill', 'l2sp'] and t.l2sp[CLASSES[3]] == -1 and (t.self_distill == 0).all() and t.l2sp.sum() == -1
    most, least = r.clips(3)
    assert [Path(p).name[-5] for p in most.path] == ['0', '4', '1'] and most.before[0] == pytest.approx(.9) and most.after[0] == pytest.approx(.4/3)
    assert most.after[2] == pytest.approx((.4/3 + .6 + .6)/3) and most.answer[0] == CLASSES[1] and most.answer[2] == CLASSES[1] == most.label[2], 'right in two of three seeds'
    assert most['right.finetune'].tolist() == [0, 0, 2] and most['right.l2sp'].tolist() == [3, 3, 3] and least.after.iloc[0] == pytest.approx(.6)
    assert len(r.course) == 27 and r.course[(r.course.strategy == 'finetune') & (r.course.epoch == 2)].source_acc.mean() == pytest.approx(.4 + .01 - .2)


def test_the_answer_that_came_most(study):
    "Of equals the first by name, as pandas' mode has it, for each video by itself"
    r, = load_results(study)
    rng, n = np.random.default_rng(0), 40
    def answers(strategy, seed):
        a = rng.choice(CLASSES, n) if seed is not None else [CLASSES[0]]*n
        return pd.DataFrame(dict(strategy=strategy, seed=seed or 0, path=[f'v{i}' for i in range(n)], label=CLASSES[0], answer=a, right=np.array(a) == CLASSES[0], p=rng.uniform(size=n)))
    r.source = pd.concat([answers('untouched', None), *(answers('finetune', s) for s in range(4))], ignore_index=True)
    got = pd.concat(r.clips(n//2)).set_index('path').answer
    want = r.source[r.source.strategy == 'finetune'].groupby('path').answer.agg(lambda s: s.mode().iloc[0])
    assert len(got) == n and got.to_dict() == want.to_dict()


def test_plots_show_the_numbers_of_the_report(study):
    r, = load_results(study)
    table = summary(r.rows)
    by, p = table.set_index('strategy'), {p.name:p for p in plots(r, table)}
    assert list(p) == ['paths', 'means', 'strengths', 'course', 'classes_source', 'classes_target', 'drift']
    numbers = {(n, t):svg(plot, t, 'x', 'x')[1] for n, plot in p.items() for t in plot.panels}
    means = numbers['means', 'source, old head'].set_index('strategy')
    assert means.acc1['l2sp'] == by.acc1['l2sp'] and means.source_acc_low['self_distill'] == by.source_acc_low['self_distill'] and 'untouched' not in means.index
    paths, t = numbers['paths', 'source, new probe'], trade_off(r.rows, 'source_probe').set_index('strategy')
    # what the table puts on the front, the plot does; a path begins with plain fine-tuning, which is no setting of its own there
    drawn = {s:' '.join(g.setting[g.front & (g.setting != 'λ0')]) for s, g in paths.groupby('strategy')}
    assert drawn == t.front.to_dict() and paths[paths.chosen].set_index('strategy').setting.to_dict() == dict(finetune='lr0.05', self_distill='λ10', l2sp='λ0.1')
    curve = numbers['strengths', 'source, old head']
    one = r.rows[(r.rows.strategy == 'self_distill') & (r.rows.lam == 1)].source_acc.astype(float)
    got, want = curve[(curve.strategy == 'self_distill') & (curve['λ'] == 1)].iloc[0], mean_interval(one)
    assert (got.source_acc, got.low, got.high) == pytest.approx((want.mean, want.low, want.high))
    drift = numbers['drift', 'finetune'].set_index('layer')
    assert drift['epoch 3']['<b>1</b>'] == pytest.approx(.1*2*3 + .01) and list(drift.index) == ['<b>0</b>', '<b>1</b>'] and p['drift'].heat == pytest.approx(.61)
    assert numbers['course', 'CKA with the untouched encoder'].groupby('strategy').cka.last()['l2sp'] == pytest.approx(.8)


def test_static_figures_are_of_every_plot(study, page):
    r, = load_results(study)
    names = {p.name for p in plots(r, summary(r.rows))}
    assert {f.name for f in (study/'figures').iterdir()} == {f'{n}.{end}' for n in names for end in ('pdf', 'png')}
    for n in names:
        assert (study/'figures'/f'{n}.pdf').read_bytes().startswith(b'%PDF')
        with Image.open(study/'figures'/f'{n}.png') as im: assert im.width > 600 and len(im.convert('L').resize((64, 64)).getcolors()) > 5, 'something is drawn'


def test_the_page_is_complete_in_itself(page):
    text = page.read_text()
    links = re.findall(r'(?:href|src|xlink:href)="([^"]*)"|url\(([^)]*)\)', text)
    assert links and all((a or b).startswith(('#', 'data:')) for a, b in links)
    assert '@import' not in text and set(re.findall(r'xmlns\S*="[^"]*"', text)) == {'xmlns="http://www.w3.org/2000/svg"', 'xmlns:xlink="http://www.w3.org/1999/xlink"'}
    policy, script = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1], re.findall(r'<script>(.*?)</script>', text, re.S)
    assert len(script) == 1 and policy.startswith("default-src 'none'; img-src data:") and f"'sha256-{base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()}'" in policy
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids)) and all(a.removeprefix('#').strip() in ids for a, b in links if a.startswith('#')) and all(b[1:] in ids for a, b in links if b.startswith('#'))
    assert text.count('data:image/jpeg') == 2*4 - 2, 'eight clips, of which one is gone and one is broken'
    assert str(page.parent.parent) not in text, 'no path of this machine'


def test_tables_to_copy_are_those_of_the_report(study, page):
    r, = load_results(study)
    table, text = summary(r.rows, folder=study), html.unescape(page.read_text())
    main = strategy_table(table, ['acc1', 'source_acc', 'source_probe', 'mcnemar'])
    assert main.to_markdown() in text
    assert main.to_latex() in text
    for m in ('source_acc', 'source_probe'):
        costs = trade_off_table(trade_off(r.rows, m), m)
        assert costs.to_markdown() in text
        assert costs.to_latex() in text


def test_latex_is_escaped_and_has_the_numbers_of_the_markdown():
    table = summary(pd.read_csv(ROOT/'experiments/results/moving_digits/runs.csv'))
    text = strategy_table(table).to_latex()
    r = table.set_index('strategy').loc['self_distill']
    assert f'self\\_distill & $\\lambda$ {r.lam:g} & {100*r.acc1:.1f} {100*r.acc1_diff:+.1f} [' in text and '95 \\% t interval' in text
    body = text[text.index('\\toprule'):text.index('\\bottomrule')]
    rows = [re.sub(r'\\&', '', l).count('&') for l in body.split('\n') if l.endswith('\\\\')]
    alignment = text[text.index('{tabular}{') + 10:].split('}')[0]
    assert len(rows) == len(table) + 1
    assert set(rows) == {len(alignment) - 1}
    assert alignment == 'll' + 'r'*(len(alignment) - 2)
    assert not re.search(r'(?<!\\)[%#_]', text) and text.count('{') == text.count('}')
    assert [float(x) for x in re.findall(r'[+-]\d+\.\d', body)] == [float(x) for x in re.findall(r'[+-]\d+\.\d', strategy_table(table).to_markdown().split('\n\n')[0])]


def _untex(text):
    "What LaTeX sets for text, by a reader of its own: any other command or bare special character is an error"
    said = {r'\textbackslash{}':'\\', r'\textasciitilde{}':'~', r'\textasciicircum{}':'^', r'\textless{}':'<', r'\textgreater{}':'>', r'\textbar{}':'|', r'$\lambda$':'λ', r'$\to$':'→', '$^2$':'²'}
    tokens = '|'.join(map(re.escape, said)) + r'|\\[&%$#_{}]|--|[^\\&%$#_{}~^<>|]'
    assert ''.join(m[0] for m in re.finditer(tokens, text, re.S)) == text, text
    return re.sub(tokens, lambda m: said.get(m[0]) or ('–' if m[0] == '--' else m[0][-1]), text, flags=re.S)


@pytest.mark.parametrize('text', [EVIL, *CLASSES, r'\input{/etc/passwd} 100%~#^{}|', '$$ \\ \\\\ & [x] *', 'λ 0.1 → 2 points², –'])
def test_latex_shows_any_text_and_runs_none(text): assert _untex(latex_text(text)) == text


def test_notes_are_in_the_caption_of_the_latex():
    table = summary(pd.read_csv(ROOT/'experiments/results/moving_digits/runs.csv'))
    text = strategy_table(table, ['acc1'], [f'{as_markdown("a_&_b*")}: 1 of 15 videos are missing', 'two']).to_latex()
    caption = re.search(r'\\caption\{(.*)\}\n', text)[1]
    assert _untex(caption).endswith('never on test. a_&_b*: 1 of 15 videos are missing. two.')
    assert re.fullmatch(r'\\begin\{table\}\n\\centering\n\\caption\{.*\}\n\\begin\{tabular\}\{llr\}\n\\toprule\n.*\n\\midrule\n(.* \\\\\n)+\\bottomrule\n\\end\{tabular\}\n\\end\{table\}\n', text)


def test_folders_are_merged(study, tmp_path):
    shutil.copytree(study, tmp_path/'a'), shutil.copytree(study, tmp_path/'b')
    rows = pd.read_csv(study/'runs.csv')
    rows[rows.strategy != 'self_distill'].to_csv(tmp_path/'a/runs.csv', index=False)
    rows[rows.strategy != 'l2sp'].to_csv(tmp_path/'b/runs.csv', index=False)
    merged, (whole,) = load_results(tmp_path/'a', tmp_path/'b'), load_results(study)
    assert len(merged) == 1
    pd.testing.assert_frame_equal(*(summary(r.rows).set_index('strategy').sort_index() for r in (merged[0], whole)), check_dtype=False)
    # one that failed here and ended well there did
    again = rows.copy()
    again.loc[again.status == 'failed', ['status', 'error', 'acc1', 'source_acc', 'source_probe']] = ['ok', '', .9, .5, .6]
    again.to_csv(tmp_path/'b/runs.csv', index=False)
    assert len(load_results(tmp_path/'a', tmp_path/'b')[0].failed) == 0
    # both chose, differently: the better one on valid
    other = rows.assign(chosen=[not c if s == 'self_distill' else c for s, c in zip(rows.strategy, rows.chosen)], valid_acc1=[.95 if s == 'self_distill' and l == 1 else v for s, l, v in zip(rows.strategy, rows.lam, rows.valid_acc1)])
    rows.assign(valid_acc1=other.valid_acc1).to_csv(tmp_path/'a/runs.csv', index=False), other.to_csv(tmp_path/'b/runs.csv', index=False)
    r, = load_results(tmp_path/'a', tmp_path/'b')
    assert set(r.tuned[r.tuned.strategy == 'self_distill'].lam) == {1.} and 'λ 1, the best on valid' in r.notes[0]
    # what is not the same study is another, and what contradicts itself is an error
    rows.assign(anchor='other').to_csv(tmp_path/'b/runs.csv', index=False)
    assert len(load_results(tmp_path/'a', tmp_path/'b')) == 2 and write_page([tmp_path/'a', tmp_path/'b'], tmp_path/'two.html', figures=False).read_text().count('<article') == 2
    rows.assign(key=rows.key + 'x', acc1=rows.acc1 + .1).to_csv(tmp_path/'b/runs.csv', index=False)
    with pytest.raises(InputError, match='cannot be merged: two runs of finetune with seed 0 differ'): load_results(tmp_path/'a', tmp_path/'b')


def test_a_folder_with_runs_alone_says_what_is_missing(study, tmp_path):
    shutil.copy(study/'runs.csv', tmp_path/'runs.csv')
    text = write_page(tmp_path).read_text()
    for said in ('has no courses', 'cannot be told', 'has no drift by layer', 'not recorded in this folder', 'The command was not recorded'): assert said in text
    assert {f.stem for f in (tmp_path/'figures').iterdir()} == {'paths', 'means', 'strengths'}


@pytest.mark.parametrize('name', ['moving_digits_all', 'lambda_sweep', 'arid6_fights2_mobilenetv2'])
def test_shipped_results_have_pages(name, tmp_path):
    r, = load_results(ROOT/'experiments/results'/name)
    text = html_page([r], [summary(r.rows)])
    assert f'{len(r.failed)} of {len(r.rows) - 1} runs' in text or not len(r.failed)
    if name == 'lambda_sweep': assert 'self_distill reduction=mean,teacher_bn=batch: the runs leave open' in text


def test_what_is_no_study_is_said(study, tmp_path):
    with pytest.raises(InputError, match='has no runs.csv'): load_results(tmp_path)
    with pytest.raises(InputError, match='a chain of tasks'): load_results(ROOT/'experiments/results/sequence')
    rows = pd.read_csv(study/'runs.csv')
    rows.assign(strategy=rows.strategy.replace('l2sp', EVIL)).to_csv(tmp_path/'runs.csv', index=False)
    with pytest.raises(InputError, match='unknown strategy'): load_results(tmp_path)
    rows[rows.strategy != 'finetune'].to_csv(tmp_path/'runs.csv', index=False)
    with pytest.raises(InputError, match='no runs of finetune'): load_results(tmp_path)


def _script(name):
    return importlib.import_module(f'sdfast.commands.{name}')


def test_script(study, tmp_path, capsys):
    env = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, ROOT/'experiments/make_report.py', study, '--out', tmp_path/'x'/'page.html', '--no-figures'], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0 and 'written' in done.stdout and (tmp_path/'x'/'page.html').exists() and not (tmp_path/'x'/'figures').exists(), done.stderr
    main = _script('report').main
    for folders, options, said in (((), {}, 'name at least one folder'), ((study, study), {}, '--out is needed'), ((tmp_path,), {}, 'has no runs.csv'), ((study,), dict(adjust='x'), '--adjust must be one of')):
        with pytest.raises(SystemExit, match='2'): main(*map(str, folders), **options)
        assert said in capsys.readouterr().err


def test_how_to_repeat_a_study_without_a_study_file_is_its_plans_command(study, tmp_path):
    shutil.copytree(study, tmp_path/'s')
    plan = dict(command='python compare.py --task "<b>"', total=1, folders=[])
    (tmp_path/'s'/'plan.json').write_text(json.dumps(plan))
    r, = load_results(tmp_path/'s')
    assert r.commands == ['python compare.py --task "<b>"']
    assert 'python compare.py --task &#34;&lt;b&gt;&#34;' in html_page([r], [summary(r.rows)])


def test_how_to_repeat_a_study_is_made_from_its_study_file(study, tmp_path):
    shutil.copytree(study, tmp_path/'s')
    (tmp_path/'s'/'plan.json').write_text(json.dumps(dict(command='python compare.py --config x.yaml')))
    write_study_file(make_settings('compare', epochs=3, task='folder:<b> c'), tmp_path/'s')
    r, = load_results(tmp_path/'s')
    assert r.commands == ["python experiments/compare.py --task 'folder:<b> c' --epochs 3"]
    assert '--task &#39;folder:&lt;b&gt; c&#39; --epochs 3' in html_page([r], [summary(r.rows)])


def test_a_page_says_that_no_command_was_recorded(study):
    r, = load_results(study)
    assert r.commands == []
    assert 'The command was not recorded.' in html_page([r], [summary(r.rows)])


def test_notes_of_the_tasks_are_in_a_page_that_is_made_again(study, tmp_path):
    shutil.copytree(study, tmp_path/'s')
    (whole,), notes = load_results(study), [f'{as_markdown("<b>_")}: 1 of 15 videos are missing', 'splits _odd are not used']
    write_report(whole.rows, tmp_path/'s', 'x', notes)
    r, = load_results(tmp_path/'s')
    text = write_page(tmp_path/'s', figures=False).read_text()
    assert r.notes == notes and '<li>&lt;b&gt;_: 1 of 15 videos are missing</li><li>splits' in text and strategy_table(summary(r.rows, folder=tmp_path/'s'), ['acc1', 'source_acc', 'source_probe', 'mcnemar'], notes).to_markdown() in html.unescape(text)
    assert load_results(tmp_path/'s', study)[0].notes == notes and not whole.notes


def test_film_strips(tmp_path):
    write_video(tmp_path/'v.mp4', numbered(12, 32))
    uri, w, h = film_strip(tmp_path/'v.mp4', n=4, height=48)
    im = Image.open(io.BytesIO(base64.b64decode(uri.split(',')[1]))).convert('L')
    assert uri.startswith('data:image/jpeg;base64,') and im.size == (w, h) == (4*48 + 3*2, 48)
    want = [6*round(i) for i in np.linspace(0, 11, 4)]
    assert [im.getpixel((24 + 50*i, 24)) for i in range(4)] == pytest.approx(want, abs=5)
    (tmp_path/'bad.mp4').write_bytes(b'x')
    assert film_strip(tmp_path/'bad.mp4') is None and film_strip(tmp_path/'gone.mp4') is None


def _rgb(c): return np.array([int(c[i:i + 2], 16) for i in (1, 3, 5)])/255
def _linear(c): return np.where(c <= .04045, c/12.92, ((c + .055)/1.055)**2.4)
def _contrast(a, b):
    x, y = sorted(float(_linear(_rgb(c)) @ [.2126, .7152, .0722]) for c in (a, b))
    return (y + .05)/(x + .05)


def _themes():
    css = (ROOT/'sdfast/report/page.css').read_text()
    light, dark = (dict(re.findall(r'--([\w-]+): (#[0-9a-fA-F]{6})', block)) for block in css.split('@media (prefers-color-scheme: dark)')[:2])
    return dict(light=light, dark=light | {k:v for k, v in dark.items()})


@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_colours_can_be_read_and_told_apart(theme):
    c = _themes()[theme]
    for name in ('ink', 'muted', 'accent', 'better', 'worse'): assert _contrast(c[name], c['paper']) >= 4.5 and _contrast(c[name], c['surface']) >= 4.5, name
    for i in range(len(COLOURS)): assert _contrast(c[f'c{i}'], c['paper']) >= 3, f'c{i}: WCAG 1.4.11 for graphics'
    # full protanopia, deuteranopia and tritanopia on linear RGB: Machado, Oliveira & Fernandes, IEEE TVCG 2009
    kinds = [np.array(m) for m in ([[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]], [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
                                   [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]])] + [np.eye(3)]
    assert all(k.sum(1) == pytest.approx([1]*3, abs=1e-5) for k in kinds), 'grey stays grey'
    def lab(rgb):
        xyz = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]]) @ np.clip(rgb, 0, 1)/[.9505, 1, 1.089]
        f = np.where(xyz > .008856, np.cbrt(xyz), 7.787*xyz + 16/116)
        return np.array([116*f[1] - 16, 500*(f[0] - f[1]), 200*(f[1] - f[2])])
    looks = {s:(c[SHEET[colour]], marker) for s, (colour, marker) in LOOKS.items()}
    assert len(set(looks.values())) == len(looks)
    for a in looks:
        for b in looks:
            if a < b and looks[a][1] == looks[b][1]:
                assert min(np.linalg.norm(lab(k @ _linear(_rgb(looks[a][0]))) - lab(k @ _linear(_rgb(looks[b][0])))) for k in kinds) > 15, (a, b)
    for s in LOOKS: assert f'var(--{SHEET[LOOKS[s][0]]})' in swatch(s)


# --- in a browser

FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    webdriver = pytest.importorskip('selenium.webdriver', reason="the page's tests need selenium: pip install -e '.[dev]'")
    chrome, driver = (next((p for n in names if (p := shutil.which(n))), None) for names in (('chromium', 'chromium-browser', 'google-chrome'), ('chromedriver',)))
    if not chrome or not driver: pytest.skip("the page's tests need a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    for f in [*FLAGS, f'--user-data-dir={tmp_path_factory.mktemp("chromium")}']: options.add_argument(f)
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    d = webdriver.Chrome(options=options, service=webdriver.chrome.service.Service(driver))
    yield d
    d.quit()


def show(browser, page, width=1440, theme='light'):
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500))
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[dict(name='prefers-color-scheme', value=theme), dict(name='prefers-reduced-motion', value='reduce')]))
    for log in ('browser', 'performance'): browser.get_log(log)
    browser.get(f'file://{page}')


def requested(browser):
    "Addresses that were asked for since `show`, but for the page itself and data; and those that the policy stopped"
    events = [json.loads(e['message'])['message'] for e in browser.get_log('performance')]
    urls = {m['params']['requestId']:m['params']['request']['url'] for m in events if m['method'] == 'Network.requestWillBeSent'}
    assert urls, 'the log sees requests'
    stopped = {m['params']['requestId'] for m in events if m['method'] == 'Network.loadingFailed' and m['params'].get('blockedReason') == 'csp'}
    outside = {i:u for i, u in urls.items() if not u.startswith(('file:', 'data:'))}
    return [u for i, u in outside.items() if i not in stopped], [u for i, u in outside.items() if i in stopped]


@pytest.mark.parametrize('width', [375, 1440])
@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_renders_without_errors_overflow_or_requests(browser, page, width, theme):
    show(browser, page, width, theme)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true; window.scrollTo(0, 1e6)")
    assert browser.get_log('browser') == [] and requested(browser) == ([], [])
    assert browser.execute_script('return document.documentElement.scrollWidth') <= width
    wide = browser.execute_script('''return [...document.querySelectorAll('main *, header *')].filter(e => {
        const r = e.getBoundingClientRect();
        return r.width && (r.right > innerWidth + .5 || r.left < -.5) && !e.closest('.scroll > *, pre > *, svg, .quiet');}).map(e => e.outerHTML.slice(0, 90))''')
    assert wide == []
    # no text of a plot is cut off
    cut = browser.execute_script('''return [...document.querySelectorAll('svg.plot')].flatMap(s => { const b = s.getBoundingClientRect();
        return [...s.querySelectorAll('text')].filter(t => { const r = t.getBoundingClientRect(); return r.left < b.left - 3 || r.right > b.right + 3 || r.top < b.top - 3 || r.bottom > b.bottom + 3; })
            .map(t => t.textContent); })''')
    assert cut == []
    small = browser.execute_script('''return Math.min(...[...document.querySelectorAll('svg.plot text')].map(t => parseFloat(getComputedStyle(t).fontSize)*t.getScreenCTM().a || 99))''')
    assert small >= 6, 'in pixels'
    if width == 375:  # the main table is read without scrolling
        assert browser.execute_script("const s = document.querySelector('.main').parentElement; return s.scrollWidth - s.clientWidth") <= 0
    ink, paper = (browser.execute_script(f'return getComputedStyle(document.body).{p}') for p in ('color', 'backgroundColor'))
    light = [sum(map(int, re.findall(r'\d+', c)[:3])) for c in (ink, paper)]
    assert light[0] < light[1] if theme == 'light' else light[0] > light[1]


@pytest.mark.parametrize('key', [None, '\ue007', ' '])
def test_sorting_by_mouse_and_keyboard(browser, study, page, key):
    show(browser, page)
    table = summary(load_results(study)[0].rows)
    def order(): return [e.text.split('\n')[0].strip() for e in browser.find_elements('css selector', '#s1-main tbody th')]
    def press(i):
        b = browser.find_elements('css selector', '#s1-main thead button')[i]
        if key is None: b.click()
        else:
            browser.execute_script('arguments[0].focus()', b)
            b.send_keys(key)
        return [e.get_attribute('aria-sort') for e in browser.find_elements('css selector', '#s1-main thead th')]
    assert order() == list(table.strategy)
    assert press(2) == ['none', 'none', 'descending', 'none'] and order() == list(table.sort_values('source_acc', ascending=False).strategy)
    assert 'descending' in browser.find_element('id', 'said').get_attribute('textContent')
    assert press(2)[2] == 'ascending' and order() == list(table.sort_values('source_acc').strategy)
    assert press(1) == ['none', 'descending', 'none', 'none'] and order() == [*table.dropna(subset='acc1').sort_values('acc1', ascending=False).strategy, 'untouched'], 'without a value last'
    assert press(1)[1] == 'ascending' and order() == [*table.dropna(subset='acc1').sort_values('acc1').strategy, 'untouched']
    assert press(1)[1] == 'none' and order() == list(table.strategy)
    assert press(0)[0] == 'ascending' and order() == sorted(table.strategy)


def test_hostile_text_is_text(browser, page):
    show(browser, page)
    time.sleep(.2)
    assert 'owned' not in browser.title.replace(EVIL, '') and browser.execute_script("return document.querySelectorAll('img:not([src^=\"data:\"]), main script, main i:not([style])').length") == 0
    seen = browser.execute_script('return document.body.textContent')
    for text in (EVIL, *CLASSES, '<b>1</b>', f'</script>{CLASSES[0]}'): assert text in seen
    labels = browser.execute_script("return [...document.querySelectorAll('svg.plot text')].map(t => t.textContent)")
    assert CLASSES[1] in labels and '<b>1</b>' in labels and requested(browser) == ([], [])


def test_the_policy_forbids_what_slips_through(browser, page):
    "Were the escaping to fail: no script runs but the page's own, and nothing is loaded"
    show(browser, page)
    browser.execute_script('''window.broken = []; document.addEventListener('securitypolicyviolation', e => broken.push(e.effectiveDirective));
        document.body.insertAdjacentHTML('beforeend', '<img src="https://example.invalid/x.png"><img src="x" onerror="window.owned = 1"><link rel="stylesheet" href="https://example.invalid/x.css"><iframe src="https://example.invalid/"></iframe>');
        const s = document.createElement('script'); s.textContent = 'window.owned = 2'; document.body.append(s);''')
    assert browser.execute_async_script("const done = arguments[0]; fetch('https://example.invalid/').then(() => done('sent'), () => done('refused'))") == 'refused'
    time.sleep(.3)
    assert {'img-src', 'connect-src', 'script-src-elem', 'script-src-attr', 'style-src-elem', 'frame-src'} <= set(browser.execute_script('return broken')) and browser.execute_script('return window.owned') is None
    sent, stopped = requested(browser)
    assert sent == [] and 'https://example.invalid/x.png' in stopped


def test_picking_and_copying(browser, study, page):
    show(browser, page)
    button = browser.find_element('css selector', '.key button[data-pick=l2sp]')
    button.click()
    assert {b.get_attribute('aria-pressed') for b in browser.find_elements('css selector', 'button[data-pick=l2sp]')} == {'true'}
    time.sleep(.3)
    opacity = browser.execute_script('''return Object.fromEntries(['l2sp', 'self_distill'].map(s => [s, getComputedStyle(document.querySelector(`svg.plot [data-s=${s}]`)).opacity]))''')
    assert opacity == dict(l2sp='1', self_distill='0.1')
    button.click()
    assert not browser.find_elements('css selector', '.study.on')
    browser.execute_cdp_cmd('Browser.grantPermissions', dict(permissions=['clipboardReadWrite', 'clipboardSanitizedWrite']))
    for kind, n in (('Markdown', 1), ('LaTeX', 2)):
        copy = browser.find_element('css selector', f'button[data-copy=s1-text-{n}]')
        copy.click()
        time.sleep(.2)
        assert copy.text == 'Copied'
        text = browser.execute_async_script('const done = arguments[0]; navigator.clipboard.readText().then(done, e => done("no: " + e))')
        main = strategy_table(summary(load_results(study)[0].rows, folder=study), ['acc1', 'source_acc', 'source_probe', 'mcnemar'])
        assert text.replace('\r\n', '\n') == {'Markdown': main.to_markdown, 'LaTeX': main.to_latex}[kind]()


def test_the_page_works_for_screen_readers_and_keyboards(browser, page):
    axe = pytest.importorskip('axe_core_python', reason="needs axe-core-python: pip install -e '.[dev]'")
    script = next(Path(axe.__file__).parent.rglob('axe.min.js')).read_text()
    for width, theme in ((1440, 'light'), (375, 'dark')):
        show(browser, page, width, theme)
        browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
        browser.execute_script(script)
        found = browser.execute_async_script("const done = arguments[0]; axe.run().then(r => done([r.passes.length, r.violations.map(v => [v.id, v.nodes[0].html.slice(0, 120)])]))")
        assert found[0] > 15 and found[1] == []
    browser.find_element('css selector', 'body').send_keys('\ue004')
    assert browser.execute_script('return document.activeElement.className') == 'skip', 'the first stop is the link to the results'
    for plot in browser.execute_script("return [...document.querySelectorAll('svg.plot')].map(s => [s.getAttribute('role'), s.querySelector('title').textContent])"): assert plot[0] == 'img' and len(plot[1]) > 40
