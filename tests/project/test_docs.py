"Documentation: public symbols are documented and shown, pages are stored executed and clean, links lead somewhere."
import ast
import inspect
import json
import pkgutil
import re
import textwrap
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from fastcore.docments import docments, docstring
from nbdev.clean import clean_nb, process_write
from nbdev.config import nbpath2html

import sdfast
import sdfast.all

NBS = Path(__file__).parents[2]/'nbs'
PAGES = sorted(f for f in NBS.rglob('*.ipynb') if not any(p.startswith(('.', '_')) for p in f.relative_to(NBS).parts))
MACHINE = re.compile(r'(?<![\w.~$)}/-])/(?:tmp|home|root|work|Users|opt|usr|var|mnt|private)/')
# calls that display something
DISPLAY = {'show_doc', 'print', 'display', 'show', 'show_batch', 'show_results', 'Markdown', 'HTML', 'figure'}
# commands are used on a command line and documented by their --help
NOT_API = ('sdfast.__main__', 'sdfast.all', 'sdfast.commands')


def page_id(page): return page.relative_to(NBS).as_posix()


def public_names(module):
    "What a module offers: its `__all__`, or else what it defines without an underscore"
    if getattr(module, '__all__', None): return module.__all__
    return [n for n, o in vars(module).items() if n[0] != '_' and getattr(o, '__module__', '') == module.__name__]


def public():
    "`(module, name, object)` of what the modules of sdfast offer, each object once"
    found = {}
    for info in pkgutil.walk_packages(sdfast.__path__, 'sdfast.'):
        if info.name.startswith(NOT_API): continue
        module = import_module(info.name)
        for name in public_names(module):
            o = getattr(module, name)
            found.setdefault((name, id(o)), (info.name, name, o))
    return list(found.values())


def is_callable(o): return inspect.isclass(o) or inspect.isfunction(o) or hasattr(o, 'cache_info')


PUBLIC = public()
CALLABLE = [(module, name, inspect.unwrap(o)) for module, name, o in PUBLIC if is_callable(o)]


def returns(f):
    "Whether a function returns or yields something"
    def within(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.Lambda, ast.ClassDef)): continue
            if isinstance(child, ast.Yield|ast.YieldFrom): return True
            if isinstance(child, ast.Return) and child.value is not None: return True
            if within(child): return True
        return False
    return within(ast.parse(textwrap.dedent(inspect.getsource(f))).body[0])


def undocumented(name, o):
    "What of a function, or of a class and its constructor, has no docment or docstring"
    is_class = inspect.isclass(o)
    has_constructor = is_class and not getattr(o, '_is_protocol', False)  # that of a protocol is typing's
    constructor = vars(o).get('__init__') if has_constructor else None if is_class else o
    is_dataclass = is_class and '__dataclass_params__' in vars(o)
    doc = (o.__doc__ or '').strip()
    generated = is_dataclass and doc.startswith(f'{name}(')
    missing = [] if doc and not generated else ['docstring']
    if constructor is None: return missing  # inherited
    docs = docments(o if is_dataclass else constructor, args_kwargs=True)
    parameters = [p for p in inspect.signature(constructor).parameters if p not in ('self', 'cls')]
    missing += [p for p in parameters if not docs.get(p)]
    if not is_class and returns(o) and not docs.get('return'): missing.append('return')
    return missing


def test_everything_public_is_listed():
    "What `sdfast.all` offers of sdfast comes from the `__all__` of a module"
    listed = {name for _, name, _ in PUBLIC}
    offered = {name for name, o in vars(sdfast.all).items() if name[0] != '_' and not inspect.ismodule(o)
               and str(getattr(o, '__module__', '')).startswith('sdfast.')}
    assert offered <= listed
    assert len(listed) > 200


def test_public_symbols_are_documented():
    missing = {f'{module}.{name}':undocumented(o.__name__, o) for module, name, o in CALLABLE}
    missing = {name:what for name, what in missing.items() if what}
    assert not missing, f'without docment or docstring: {missing}'


def test_a_missing_docment_is_seen():
    def f(a, # First
          b): return a
    def g(
        a, # First
    )->int: # It
        "One"
        return a
    assert undocumented('f', f) == ['docstring', 'b', 'return']
    assert undocumented('g', g) == []


# ---- API pages

def cells(page, kind='code'):
    notebook = json.loads(page.read_text(encoding='utf-8'))
    return [c for c in notebook['cells'] if c['cell_type'] == kind]


def source(cell): return ''.join(cell['source'])
def parsed(cell): return ast.parse(re.sub(r'^[%!].*', '', source(cell), flags=re.M)).body
def text(cell): return ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in cell['outputs'])


def shown():
    "Name -> Markdown that the pages in nbs/api show of it by `show_doc`"
    found = {}
    for page in NBS.glob('api/*.ipynb'):
        for cell in cells(page):
            for node in parsed(cell):
                call = getattr(node, 'value', None)
                is_show_doc = isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'show_doc'
                if is_show_doc: found[ast.unparse(call.args[0])] = text(cell)
    return found


def api_words():
    "All source text of the pages in nbs/api"
    pages = NBS.glob('api/*.ipynb')
    return ' '.join(source(c) for page in pages for kind in ('code', 'markdown') for c in cells(page, kind))


def test_public_symbols_are_in_the_api_pages():
    names = set(shown())
    words = api_words()
    missing = [name for _, name, o in CALLABLE if o.__name__ not in names]
    missing += [name for _, name, _ in PUBLIC if not re.search(rf'\b{name}\b', words)]
    assert not missing, f'show_doc functions and classes on a page in nbs/api, and name the others there: {missing}'


def missing_text(o, stored):
    "The first line of an object's docstring and its docments that the stored page lacks"
    has_own = not inspect.isclass(o) or '__init__' in vars(o)
    docs = docments(o) if has_own else {}
    wanted = [docstring(o).split('\n')[0], *(comment for p, comment in docs.items() if comment and p != 'self')]
    return [w for w in wanted if w.split('\n')[0].strip() not in stored]


def test_api_pages_show_what_the_code_says():
    "Stored outputs are of the present signatures and docstrings; `nbdev-test --save nbs/api` updates them"
    stored = shown()
    stale = []
    for _, name, o in CALLABLE:
        missing = missing_text(o, stored[name]) if name in stored else []
        if missing: stale.append((name, missing[0]))
    assert not stale, f'execute nbs/api again: {stale}'


# ---- pages

def called_name(call): return getattr(call.func, 'id', getattr(call.func, 'attr', ''))


def unanswered(cell):
    "Whether a cell should display something and no output is stored: it ends in a value, or calls one of `DISPLAY`"
    body = parsed(cell)
    if cell['outputs'] or not body: return False
    last = body[-1]
    is_expression = isinstance(last, ast.Expr) and not isinstance(last.value, ast.Call|ast.Constant)
    ends_in_value = is_expression and not source(cell).rstrip().endswith(';')
    statements = {called_name(n.value) for n in body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)}
    return ends_in_value or bool(DISPLAY & statements)


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_page_is_stored_executed_and_clean(page, tmp_path):
    code = cells(page)
    assert any(c['outputs'] for c in code), 'no cell has an output: execute with `nbdev-test --save`'
    for c in code:
        assert not any(o['output_type'] == 'error' for o in c['outputs']), f'an error is stored: {source(c)}'
        assert not unanswered(c), f'not executed: {source(c)}'
    whole = page.read_text(encoding='utf-8')
    path = MACHINE.search(whole)
    assert not path, f'a path of a machine: {whole[max(0, path.start() - 80):path.end() + 80]}'
    process_write('', clean_nb, page, tmp_path/'clean.ipynb')
    assert page.read_bytes() == (tmp_path/'clean.ipynb').read_bytes(), 'run `nbdev-clean`'


def leads(page, target):
    "Whether a link on a page leads to a file: a page by its own name or by that of its HTML, or any other file"
    if re.match(r'[a-z]+:|#', target): return True
    file = page.parent/target.split('#')[0]
    if file.exists(): return True
    return file.suffix == '.html' and any(nbpath2html(f) == file for f in file.parent.glob('*.ipynb'))


def links(cell): return re.findall(r'\]\(([^)\s]+)[^)]*\)', re.sub(r'`[^`]*`', '', source(cell)))


@pytest.mark.parametrize('page', PAGES, ids=page_id)
def test_links_lead_somewhere(page):
    lost = [target for c in cells(page, 'markdown') for target in links(c) if not leads(page, target)]
    assert not lost


def linked_pages(entry):
    "Pages that an entry of Quarto's sidebar or menu leads to"
    if isinstance(entry, str): return [entry]
    if isinstance(entry, list): return [p for e in entry for p in linked_pages(e)]
    own = [entry['href']] if 'href' in entry else []
    return linked_pages(entry.get('contents', [])) + own


def test_the_sidebar_has_all_pages():
    website = yaml.safe_load((NBS/'_quarto.yml').read_text())['website']
    listed = linked_pages(website['sidebar'])
    assert len(set(listed)) == len(listed)
    assert sorted(listed) == sorted(map(page_id, PAGES))
    assert set(linked_pages(website['navbar']['left'])) <= set(listed)


# ---- the checks see what they are for

def code_cell(code, *outputs): return dict(cell_type='code', source=code, outputs=list(outputs))


@pytest.mark.parametrize('code', ['show_doc(Run)', 'x = 1\nx', 'print(x)', 'dls.show_batch()', 'x.show();'])
def test_a_page_that_was_not_executed_is_seen(code): assert unanswered(code_cell(code))


@pytest.mark.parametrize('code', ['import torch', 'x = 1', 'learn.fit(1)', '"a docstring"', ''])
def test_cells_that_display_nothing_need_no_output(code): assert not unanswered(code_cell(code))


def test_a_stored_output_is_an_answer(): assert not unanswered(code_cell('x', dict(output_type='execute_result')))


def test_links_that_lead_nowhere_are_seen():
    page = NBS/'api'/'video.ipynb'
    for target in ('tasks.ipynb', 'tasks.html#csv', '../_quarto.yml', 'https://x.org', '#clips'):
        assert leads(page, target), target
    for target in ('task.ipynb', '../tasks.html', 'tasks.ipynb/x'): assert not leads(page, target)


@pytest.mark.parametrize('top', ['tmp', 'home', 'root', 'work', 'Users', 'opt', 'usr', 'var', 'mnt', 'private'])
def test_paths_of_a_machine_are_seen(top):
    for before in ('in ', '"'): assert MACHINE.search(f'{before}/{top}/a'), before
    for before in ('out', '~', 'experiments'): assert not MACHINE.search(f'{before}/{top}/a'), before
