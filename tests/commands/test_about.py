"`python -m sdfast`: what it says is so, and what is missing does not stop it."
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from av.codec import Codec
from av.codec.codec import UnknownCodecError

from sdfast.commands import about as about_module
from sdfast.pretext import METHODS
from sdfast.runtime.store import home
from sdfast.strategies import STRATEGIES


def say(code='import runpy; runpy.run_module("sdfast", run_name="__main__")', **env):
    "Its lines by their names, as a process of its own"
    p = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, timeout=300, env=os.environ | env)
    assert p.returncode == 0 and 'Traceback' not in p.stdout + p.stderr, p.stderr
    return dict(line.split(': ', 1) for line in p.stdout.splitlines())


def test_what_a_bug_report_needs(tmp_path):
    (tmp_path/'flow').mkdir()
    (tmp_path/'flow'/'x').write_bytes(bytes(3*2**20))
    got = say(SDFAST_HOME=str(tmp_path), OMP_NUM_THREADS='1')
    assert got['sdfast'] == version('sdfast') and got['Python'].startswith(sys.version.split()[0])
    for n in ('fastai', 'fastcore', 'torch', 'torchvision', 'timm', 'av', 'scikit-learn'): assert f'{n} {version(n)}' in got['packages'].split(', ')
    assert got['strategies'].split(', ') == list(STRATEGIES) and got['pre-training'].split(', ') == list(METHODS) and got['tasks'].split(', ') == ['moving_digits', 'ucf101', 'hmdb51', 'folder', 'csv']
    assert got['encoders'].startswith('tiny, c3d, r2plus1d; ') and 'r2plus1d_18' in got['encoders']
    assert got['data and cache'] == f'{tmp_path} (flow; 3 MiB)' and '1 threads' in got['CPU']
    assert ('none' in got['CUDA']) == (not torch.cuda.is_available()) and 'avcodec' in got['FFmpeg in PyAV']
    have, _, lack = got['decoders'].partition('; without ')
    for n in have.split(', '): assert Codec(n, 'r').name
    for n in filter(None, lack.split(', ')):
        with pytest.raises(UnknownCodecError): Codec(n, 'r')
    assert not [v for v in got.values() if 'not to be told' in v]


def test_missing_packages_are_said():
    "None of them there at all, and one that breaks on import"
    got = say('import sys, runpy; sys.modules.update(peft=None, timm=None, av=None); runpy.run_module("sdfast", run_name="__main__")')
    assert "not to be told: ModuleNotFoundError" in got['encoders'] and 'timm' in got['encoders']
    for line in ('FFmpeg in PyAV', 'decoders', 'tasks'): assert 'not to be told' in got[line] and 'av' in got[line]
    assert 'torch ' in got['packages'] and got['CPU'] and got['sdfast']


def test_versions_are_held_against_what_is_asked_for(monkeypatch):
    assert about_module._package('torch>=1') == f'torch {version("torch")}'
    assert about_module._package('torch>=99') == f'torch {version("torch")} (sdfast asks for >=99)'
    assert about_module._package('no-such-package>=1') == 'no-such-package not installed'
    monkeypatch.setattr(about_module, 'requires', lambda name: ['torch>=1', 'no-such-package; extra == "peers"', 'other; extra == "dev"'])
    assert about_module._packages(()) == f'torch {version("torch")}' and about_module._packages(('peers', 'log')) == 'no-such-package not installed'
    monkeypatch.setattr(about_module, '_cpu', lambda: 1/0)
    assert 'CPU: not to be told: ZeroDivisionError: division by zero' in about_module.about().splitlines()


def test_home(monkeypatch, tmp_path):
    monkeypatch.setenv('SDFAST_HOME', str(tmp_path/'no'))
    assert home() == tmp_path/'no' and about_module._home() == f'{tmp_path/"no"} (not there yet)'
    monkeypatch.setenv('SDFAST_HOME', '')
    assert str(home()).endswith('.cache/sdfast') and home().is_absolute()
