"`sdfast audit` and `sdfast gate` as commands: files on class folders, the page, exit statuses, one-line errors."
import json
import subprocess
import sys
import time
import xml.etree.ElementTree as ET

import pandas as pd
import pytest
import torch
from processes import ENV, ROOT

from sdfast.commands import audit as audit_command
from sdfast.commands import gate as gate_command
from sdfast.commands.heartbeat import Heartbeat
from sdfast.models.encoders import create_model
from sdfast.models.weights import save_weights

pytestmark = pytest.mark.filterwarnings('ignore')


@pytest.fixture(scope='module')
def audited(clips, tmp_path_factory):
    "The folder of an audit of an encoder that moved, and of one that did not, on class folders and without labels"
    root = tmp_path_factory.mktemp('audited')
    torch.manual_seed(0)
    net = create_model('tiny', 2)[0]
    save_weights(net, root/'before.safetensors')
    with torch.no_grad():
        for p in net.parameters(): p.add_(.3*torch.randn_like(p))
    save_weights(net, root/'after.safetensors')
    words = [root/'before.safetensors', root/'after.safetensors', root/'before.safetensors', '--model', 'tiny',
             '--task', f'folder:{clips},test_frac=.5', '--task', f'videos:{clips}', '--frames', 4, '--size', 32,
             '--resamples', 200, '--out', root/'out']
    assert audit_command.main([*map(str, words)]) == 0
    return root/'out'


def test_what_an_audit_writes(audited):
    assert {f.name for f in audited.iterdir()} == {'audit.html', 'audit.json', 'audit.csv', 'clips.csv', 'layers.csv'}
    content = json.loads((audited/'audit.json').read_text())
    assert (content['format'], content['version']) == ('sdfast audit', 1)
    assert [len(r['classes']) for r in content['results']] == [2, 2, 0, 0]
    table = pd.read_csv(audited/'audit.csv', keep_default_na=False)
    row = table[(table['class'] == 'right') & (table.measure == 'source_probe')].iloc[0]
    stored = content['results'][0]['classes']['right']['measures']['source_probe']['change']
    assert float(row.change_value) == stored['value']
    assert len(pd.read_csv(audited/'clips.csv')) == 2*8 + 2*16
    assert set(pd.read_csv(audited/'layers.csv').columns) >= {'after', 'task', 'layer', 'drift', 'weight_distance'}


def test_untouched_is_zero_in_the_file(audited):
    content = json.loads((audited/'audit.json').read_text())
    for r in content['results']:
        if not r['after'].endswith('before.safetensors'): continue
        changes = [m['change'] for m in r['measures'].values()]
        changes += [m['change'] for c in r['classes'].values() for m in c['measures'].values()]
        assert all(c == dict(value=0., low=0., high=0.) for c in changes)
        assert r['flips'] == dict(lost=[], gained=[])


def test_the_page_stands_alone(audited):
    page = (audited/'audit.html').read_text()
    assert "default-src 'none'" in page and '<script' not in page
    assert page.count('<article') == 4
    for text in ('Classes', 'Clips that flipped', 'Layers that moved', 'No clip flipped', 'features moved most',
                 'not distinguishable', 'unchanged', 'data:image/jpeg;base64'): assert text in page


def gate(capsys, *words):
    try: status = gate_command.main([*map(str, words)])
    except SystemExit as e: status = e.code
    return status, capsys.readouterr()


def test_exit_statuses(audited, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv('GITHUB_ACTIONS', raising=False)
    status, said = gate(capsys, audited, '--fail-if', 'drift > 1e9')
    assert (status, said.out) == (0, 'passed: 4 checks of 1 rule\n')
    status, said = gate(capsys, audited, '--fail-if', 'drift > .001', '--junit', tmp_path/'a.xml')
    assert status == 1
    assert said.out.splitlines()[-1] == '2 of 4 checks failed' and '::error' not in said.out
    assert ET.parse(tmp_path/'a.xml').getroot().get('failures') == '2'
    policy = tmp_path/'gate.yaml'
    policy.write_text('fail_if: [drift > 1e9]')
    assert gate(capsys, audited/'audit.json', '--policy', policy)[0] == 0
    assert gate(capsys, audited, '--policy', policy, '--fail-if', 'drift > .001')[0] == 1


def test_annotations_where_github_runs(audited, capsys, monkeypatch):
    monkeypatch.setenv('GITHUB_ACTIONS', 'true')
    assert gate(capsys, audited, '--fail-if', 'drift > .001')[1].out.startswith('::error title=sdfast gate')
    assert '::error' not in gate(capsys, audited, '--fail-if', 'drift > .001', '--no-github')[1].out


@pytest.mark.parametrize('words', [
    [], ['--fail-if', 'prob < 1'], ['--fail-if', 'class:run.probe < 1'], ['--policy', 'none.yaml'], ['--fail-if', 'x'],
    ['--fail-if', 'drift > 1', '--junit', 'no/folder/a.xml']], ids=' '.join)
def test_wrong_use_of_gate_is_one_line(words, audited, capsys):
    status, said = gate(capsys, audited, *words)
    assert (status, said.out) == (2, '')
    assert said.err.startswith('gate.py: ') and said.err.count('\n') == 1


@pytest.mark.parametrize('words', [
    ['audit'], ['audit', 'a.pth', 'b.pth'], ['audit', 'a.pth', '--task', 'folder:x'],
    ['audit', 'a.pth', 'b.pth', '--task', 'x', '--frames', '0'],
    ['audit', 'a.pth', 'b.pth', '--task', 'x', '--bs', 'many'], ['gate'],
    ['gate', 'none.json', '--fail-if', 'drift > 1'], ['gate', 'none.json', '--fail', 'drift > 1']], ids=' '.join)
def test_wrong_use_is_one_line_in_a_process(words):
    p = subprocess.run([sys.executable, '-m', 'sdfast', *words], capture_output=True, text=True, cwd=ROOT, env=ENV)
    assert (p.returncode, p.stdout) == (2, '')
    assert p.stderr.startswith(f'sdfast {words[0]}: ') and p.stderr.count('\n') == 1
    assert ' _' not in p.stderr, 'no name of a function of ours'


def test_wrong_input_of_audit_is_one_line(clips, tmp_path, capsys):
    for words, message in ((['none.pth', 'b.pth', '--task', f'folder:{clips}'], 'none.pth is neither a file'),
                           (['a', 'b', '--task', 'x', '--level', '1.5'], 'level between 0 and 1, not 2000 and 1.5')):
        with pytest.raises(SystemExit) as e: audit_command.main([*words, '--out', str(tmp_path)])
        err = capsys.readouterr().err
        assert e.value.code == 2 and message in err and err.count('\n') == 1


def test_a_line_every_two_seconds(capsys):
    "While one thing takes long, its name is printed again"

    with Heartbeat(.2) as beat:
        beat.say('reading')
        time.sleep(.7)
        beat.say('writing')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'reading' and lines[-1] == 'writing'
    assert 2 <= lines.count('reading (0 s)') + lines.count('reading (1 s)') <= 5


def test_gate_imports_nothing_slow():
    code = 'import sys; import sdfast.commands.gate; print(*({"torch", "numpy", "pandas"} & set(sys.modules)))'
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, env=ENV)
    assert p.stdout == '\n'
