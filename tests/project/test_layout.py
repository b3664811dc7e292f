"The layout of the code: packages import only from those before them, scripts stand alone, modules and lines are short."
import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT/'sdfast'
# along the flow of data: each imports only from those before it
ORDER = ('errors', 'stats', 'crossed', 'runtime', 'data', 'models', 'strategies', 'lightning', 'hf', 'pretext',
         'metrics', 'study', 'report', 'commands', 'all', '__main__')
PRIVATE_BY_DESIGN = {'__version__'}
LINES, COLUMNS = 300, 120


def python_files(*folders): return sorted(f for folder in folders for f in (ROOT/folder).rglob('*.py'))


def module_name(file):
    "Dotted name of a file of the package"
    parts = file.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(f):f for f in python_files('sdfast')}


@cache
def parse(file): return ast.parse(file.read_text(encoding='utf-8'))


def absolute(name, file, node):
    "Module that an import statement of a module of the package names"
    if not node.level: return node.module
    package = name.split('.') if file.name == '__init__.py' else name.split('.')[:-1]
    package = package[:len(package) - node.level + 1]
    return '.'.join([*package, node.module] if node.module else package)


def imports(name, file):
    "`(module, imported name)` of all imports from the package, those inside functions included"
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split('.')[0] == 'sdfast': yield alias.name, None
        if isinstance(node, ast.ImportFrom):
            module = absolute(name, file, node)
            if module is None or module.split('.')[0] != 'sdfast': continue
            for alias in node.names:
                inner = f'{module}.{alias.name}'
                if inner in MODULES: yield inner, None
                else: yield module, alias.name


def package_of(name):
    "First part below sdfast: 'data' of sdfast.data.video; '' of the package itself"
    return (name.split('.') + [''])[1]


def find_cycle(edges):
    "Names of a cycle in `edges`, a dict from a name to those it leads to; [] without one"
    done = set()
    def visit(name, path):
        if name in path: return [*path[path.index(name):], name]
        if name in done: return []
        for other in sorted(edges[name]):
            cycle = visit(other, [*path, name])
            if cycle: return cycle
        done.add(name)
        return []
    for name in sorted(edges):
        cycle = visit(name, [])
        if cycle: return cycle
    return []


def private_imports(files):
    "`file: name` of imports of another module's private name"
    found = []
    for file in files:
        name = module_name(file) if file.is_relative_to(PACKAGE) else ''
        for module, imported in imports(name, file):
            part = (imported or module).split('.')[-1]
            if part.startswith('_') and part not in PRIVATE_BY_DESIGN: found.append(f'{file.name}: {module}.{part}')
    return found


def test_every_package_has_its_place():
    unplaced = {package_of(name) for name in MODULES} - {'', *ORDER}
    assert not unplaced


def test_packages_import_only_from_those_before_them():
    upward = []
    for name, file in MODULES.items():
        mine = package_of(name)
        if mine not in ORDER: continue
        for module, _ in imports(name, file):
            other = package_of(module)
            if other in ORDER and ORDER.index(other) > ORDER.index(mine): upward.append(f'{name} imports {module}')
    assert not upward


def test_no_import_cycle():
    edges = defaultdict(set)
    for name, file in MODULES.items():
        if file.name == '__init__.py': continue  # gathers what its modules offer
        edges[name] |= {module for module, _ in imports(name, file) if module != name}
    cycle = find_cycle(edges)
    assert not cycle, ' → '.join(cycle)


def test_private_names_stay_in_their_module():
    found = private_imports(python_files('sdfast', 'experiments'))
    assert not found


def test_scripts_do_not_import_scripts():
    "Benchmarks share `measure.py`, which is no script"
    scripts = {f.stem for f in python_files('experiments')} - {'measure'}
    found = []
    for file in python_files('experiments'):
        for node in ast.walk(parse(file)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom): names = [node.module or '']
            found += [f'{file.name} imports {n}' for n in names if n.split('.')[0] in scripts]
    assert not found


def test_modules_are_short():
    counts = {str(f.relative_to(ROOT)):len(f.read_text(encoding='utf-8').splitlines()) for f in MODULES.values()}
    long = {name:n for name, n in counts.items() if n > LINES}
    assert not long


def test_lines_are_short():
    found = []
    for file in python_files('sdfast', 'experiments', 'tests', '.ci'):
        for i, line in enumerate(file.read_text(encoding='utf-8').splitlines(), 1):
            if len(line) > COLUMNS: found.append(f'{file.relative_to(ROOT)}:{i}: {len(line)} columns')
    assert not found


# ---- the checks see what they are for

def test_a_cycle_is_seen():
    assert find_cycle(defaultdict(set, a={'b'}, b={'c'}, c={'a'}, d={'a'})) == ['a', 'b', 'c', 'a']
    assert find_cycle(defaultdict(set, a={'b', 'c'}, b={'c'})) == []


@pytest.mark.parametrize('statement,expected', [
    ('from . import store', [('sdfast.runtime.store', None)]),
    ('from ..errors import InputError', [('sdfast.errors', 'InputError')]),
    ('from .store import _lock as lock', [('sdfast.runtime.store', '_lock')]),
    ('def f():\n    from sdfast.study.config import Run', [('sdfast.study.config', 'Run')]),
    ('import sdfast.study', [('sdfast.study', None)]), ('import torch', [])])
def test_imports_are_seen(tmp_path, statement, expected):
    file = tmp_path/'loggers.py'
    file.write_text(statement)
    assert list(imports('sdfast.runtime.loggers', file)) == expected


def test_a_private_import_is_seen(tmp_path):
    file = tmp_path/'study.py'
    file.write_text('from sdfast.runtime.store import _lock, claim\nfrom sdfast import __version__')
    assert private_imports([file]) == ['study.py: sdfast.runtime.store._lock']
