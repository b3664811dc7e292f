"Public signatures say their types, in the wheel too."
import inspect
import pkgutil
import subprocess
import sys
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest
from fastai.callback.core import event

import sdfast

ROOT = Path(__file__).parents[2]
MODULES = sorted(m.name for m in pkgutil.walk_packages(sdfast.__path__, 'sdfast.'))
EVENTS = {e for e in vars(event) if not e.startswith('_')}


def functions(module):
    "`(name, function, whether it is an event of a callback)`: public ones that are defined there, and the public methods, constructors and calls of public classes"
    for name, obj in vars(module).items():
        if name.startswith('_') or getattr(obj, '__module__', None) != module.__name__: continue
        if isinstance(f := inspect.unwrap(obj) if callable(obj) else obj, FunctionType): yield name, f, False
        if not isinstance(obj, type): continue
        for n, m in vars(obj).items():
            m = getattr(m, 'fget', None) or (m.func if isinstance(m, cached_property) else getattr(m, '__func__', m))
            if not isinstance(m, FunctionType) or (n.startswith('_') and n not in ('__init__', '__call__')) or m.__module__ != module.__name__: continue
            if getattr(inspect.unwrap(m), '__code__', None).co_filename == '<string>': continue  # a dataclass wrote it
            yield f'{name}.{n}', inspect.unwrap(m), n in EVENTS


@pytest.mark.parametrize('name', MODULES)
def test_every_public_signature_is_annotated(name):
    missing = []
    for who, f, is_event in functions(import_module(name)):
        s = inspect.signature(f)
        for p in s.parameters.values():
            if p.annotation is p.empty and p.name not in ('self', 'cls') and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD): missing.append(f'{who}({p.name})')
        if s.return_annotation is s.empty and not is_event and not who.endswith('__init__'): missing.append(f'{who}()->')
    assert not missing, missing


def test_the_check_finds_what_is_missing():
    found = {who:f for m in MODULES for who, f, _ in functions(import_module(m))}
    assert {'Retention.__init__', 'SelfDistill.begin', 'Task.dls', 'Task.vocab', 'create_task', 'linear_cka', 'keep_buffers', 'VideoFile.create', 'Run.key'} <= found.keys() and len(found) > 400


def test_a_wheel_has_the_marker_and_the_page(tmp_path):
    p = subprocess.run([sys.executable, 'setup.py', '-q', 'build', '--build-base', str(tmp_path), 'egg_info', '--egg-base', str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    built = tmp_path/'lib'/'sdfast'
    want = {f.relative_to(ROOT/'sdfast') for f in (ROOT/'sdfast').rglob('*') if f.suffix != '.pyc' and f.is_file()}
    assert {f.relative_to(built) for f in built.rglob('*') if f.is_file()} == want and Path('py.typed') in want
