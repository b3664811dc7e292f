"The signatures of the API are annotated, and a wheel says so."
import inspect
import pkgutil
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import FunctionType

import pytest
from fastai.callback.core import event

import sdfast

ROOT = Path(__file__).parents[2]
# commands are used on a command line; a module's API is its `__all__`, other functions in it are internal
NAMES = [m.name for m in pkgutil.walk_packages(sdfast.__path__, 'sdfast.')]
MODULES = sorted(n for n in NAMES if not n.startswith('sdfast.commands'))
EVENTS = {e for e in vars(event) if not e.startswith('_')}
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
KNOWN = {'Retention.__init__', 'SelfDistill.begin', 'Task.dls', 'Task.vocab', 'create_task', 'linear_cka',
         'keep_buffers', 'VideoFile.create', 'Run.key'}  # of each kind some


def underlying(attribute):
    "The function of a method, property, cached property, class method or static method"
    if getattr(attribute, 'fget', None): return attribute.fget
    if isinstance(attribute, cached_property): return attribute.func
    return getattr(attribute, '__func__', attribute)


def is_public(name): return not name.startswith('_') or name in ('__init__', '__call__')


def written_by_dataclass(f): return f.__code__.co_filename == '<string>'


def methods(cls):
    "`(name, function)` of the public methods that a class defines"
    for name, attribute in vars(cls).items():
        f = underlying(attribute)
        if not isinstance(f, FunctionType) or not is_public(name) or f.__module__ != cls.__module__: continue
        f = inspect.unwrap(f)
        if not written_by_dataclass(f): yield name, f


def functions(module):
    "`(name, function, whether it is an event of a callback)` of the functions and methods that a module offers"
    offered = getattr(module, '__all__', None) or [name for name in vars(module) if not name.startswith('_')]
    for name in offered:
        obj = getattr(module, name)
        if getattr(obj, '__module__', None) != module.__name__: continue
        f = inspect.unwrap(obj) if callable(obj) else obj
        if isinstance(f, FunctionType): yield name, f, False
        if isinstance(obj, type):
            for method, f in methods(obj): yield f'{name}.{method}', f, method in EVENTS


def missing_annotations(who, f, is_event):
    signature = inspect.signature(f)
    parameters = [p for p in signature.parameters.values() if p.name not in ('self', 'cls') and p.kind not in VARIADIC]
    missing = [f'{who}({p.name})' for p in parameters if p.annotation is p.empty]
    needs_return = not is_event and not who.endswith('__init__')
    if needs_return and signature.return_annotation is signature.empty: missing.append(f'{who}()->')
    return missing


@pytest.mark.parametrize('name', MODULES)
def test_every_public_signature_is_annotated(name):
    missing = [m for who, f, is_event in functions(import_module(name)) for m in missing_annotations(who, f, is_event)]
    assert not missing


def test_the_check_finds_functions_of_each_kind():
    found = {who for name in MODULES for who, _, _ in functions(import_module(name))}
    assert KNOWN <= found
    assert len(found) > 400
