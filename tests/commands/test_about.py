"`sdfast about`: what it says is so, and what is missing does not stop it."
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from av.codec import Codec
from av.codec.codec import UnknownCodecError

from sdfast.commands import about as about_module
from sdfast.data.datasets import TASKS
from sdfast.pretext import METHODS
from sdfast.runtime.store import home
from sdfast.strategies import STRATEGIES

AS_A_MODULE = 'import runpy, sys; sys.argv[1:] = ["about"]; runpy.run_module("sdfast", run_name="__main__")'
# none of these packages is there, and importing them fails
WITHOUT_PACKAGES = 'import sys; sys.modules.update(peft=None, timm=None, av=None); ' + AS_A_MODULE


def lines(code, **env):
    "What the code prints in a process of its own, by the names in front"
    line = [sys.executable, '-W', 'ignore', '-c', code]
    p = subprocess.run(line, capture_output=True, text=True, timeout=300, env=os.environ | env)
    assert p.returncode == 0 and 'Traceback' not in p.stdout + p.stderr, p.stderr
    return dict(line.split(': ', 1) for line in p.stdout.splitlines())


def test_what_a_bug_report_needs(tmp_path):
    (tmp_path/'flow').mkdir()
    (tmp_path/'flow'/'x').write_bytes(bytes(3*2**20))
    got = lines(AS_A_MODULE, SDFAST_HOME=str(tmp_path), OMP_NUM_THREADS='1')
    assert got['sdfast'] == version('sdfast')
    assert got['Python'].startswith(sys.version.split()[0])
    packages = got['packages'].split(', ')
    for n in ('fastai', 'fastcore', 'torch', 'torchvision', 'timm', 'av', 'scikit-learn'):
        assert f'{n} {version(n)}' in packages
    assert got['strategies'].split(', ') == list(STRATEGIES)
    assert got['pre-training'].split(', ') == list(METHODS)
    assert got['tasks'].split(', ') == list(TASKS)
    assert got['encoders'].startswith('tiny, c3d, r2plus1d, slowfast_r50, ') and 'r2plus1d_18' in got['encoders']
    assert got['data and cache'] == f'{tmp_path} (flow; 3 MiB)'
    assert '1 threads' in got['CPU']
    assert ('none' in got['CUDA']) == (not torch.cuda.is_available())
    assert 'avcodec' in got['FFmpeg in PyAV']
    there, _, missing = got['decoders'].partition('; without ')
    for n in there.split(', '): assert Codec(n, 'r').name
    for n in filter(None, missing.split(', ')):
        with pytest.raises(UnknownCodecError): Codec(n, 'r')
    assert not [v for v in got.values() if v.startswith('unknown')]


@pytest.mark.nightly
def test_missing_packages_have_their_line():
    got = lines(WITHOUT_PACKAGES)
    assert got['encoders'].startswith('unknown: ModuleNotFoundError') and 'timm' in got['encoders']
    for name in ('FFmpeg in PyAV', 'decoders', 'tasks'):
        assert got[name].startswith('unknown') and 'av' in got[name]
    assert 'torch ' in got['packages']
    assert got['CPU'] and got['sdfast']


def test_versions_are_compared_with_what_is_asked_for(monkeypatch):
    assert about_module._package('torch>=1') == f'torch {version("torch")}'
    assert about_module._package('torch>=99') == f'torch {version("torch")} (sdfast asks for >=99)'
    assert about_module._package('no-such-package>=1') == 'no-such-package not installed'
    asked = ['torch>=1', 'no-such-package; extra == "peers"', 'other; extra == "dev"']
    monkeypatch.setattr(about_module, 'requires', lambda name: asked)
    assert about_module._packages(()) == f'torch {version("torch")}'
    assert about_module._packages(('peers', 'log')) == 'no-such-package not installed'


def test_what_fails_says_why(monkeypatch):
    monkeypatch.setitem(about_module.LINES, 'CPU', lambda: 1/0)
    assert 'CPU: unknown: ZeroDivisionError: division by zero' in about_module.about().splitlines()


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv('SDFAST_HOME', str(tmp_path/'no'))
    assert home() == tmp_path/'no'
    assert about_module._home() == f'{tmp_path/"no"} (does not exist yet)'
    monkeypatch.setenv('SDFAST_HOME', '')
    assert home().is_absolute()
    assert str(home()).endswith('.cache/sdfast')
