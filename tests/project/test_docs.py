"Documentation: every public symbol is documented and shown, every page is stored executed and clean, every link leads somewhere."
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
ANSWERS = {'show_doc', 'print', 'display', 'show', 'show_batch', 'show_results', 'Markdown', 'HTML', 'figure'}  # calls that put something out


def public():
    "`(module, name, object)` of all that modules of sdfast offer, each once"
    found = {}
    for info in pkgutil.walk_packages(sdfast.__path__, 'sdfast.'):
        if info.name.endswith(('.__main__', '.all')): continue
        module = import_module(info.name)
        names = getattr(module, '__all__', None) or [n for n, o in vars(module).items() if n[0] != '_' and getattr(o, '__module__', '') == info.name]
        for n in names: found.setdefault((n, id(getattr(module, n))), (info.name, n, getattr(module, n)))
    return list(found.values())


PUBLIC = public()
CALLABLE = [(m, n, inspect.unwrap(o)) for m, n, o in PUBLIC if inspect.isclass(o) or inspect.isfunction(o) or hasattr(o, 'cache_info')]


def returns(f):
    "Whether a function returns or yields something"
    def within(node):
        for c in ast.iter_child_nodes(node):
            if isinstance(c, (ast.FunctionDef, ast.Lambda, ast.ClassDef)): continue
            if isinstance(c, (ast.Yield, ast.YieldFrom)) or isinstance(c, ast.Return) and c.value is not None: return True
            if within(c): return True
        return False
    return within(ast.parse(textwrap.dedent(inspect.getsource(f))).body[0])


def undocumented(name, o):
    "What of a function, or of a class and what makes it, has no docment or docstring"
    made = vars(o).get('__init__') if inspect.isclass(o) else o
    generated = inspect.isclass(o) and '__dataclass_params__' in vars(o)
    missing = [] if (o.__doc__ or '').strip() and not (generated and o.__doc__.startswith(f'{name}(')) else ['docstring']
    if made is None: return missing  # takes what its parent takes
    docs = docments(o if generated else made, args_kwargs=True)
    missing += [p for p in inspect.signature(made).parameters if p not in ('self', 'cls') and not docs.get(p)]
    return missing + (['return'] if not inspect.isclass(o) and returns(o) and not docs.get('return') else [])


def test_everything_public_is_listed():
    "What `sdfast.all` offers of sdfast comes from some `__all__`"
    listed = {n for _, n, _ in PUBLIC}
    mine = {n for n, o in vars(sdfast.all).items() if n[0] != '_' and str(getattr(o, '__module__', '')).startswith('sdfast.') and not inspect.ismodule(o)}
    assert mine <= listed and len(listed) > 200


def test_public_symbols_are_documented():
    missing = {f'{m}.{n}':u for m, n, o in CALLABLE if (u := undocumented(o.__name__, o))}
    assert not missing, f'without docment or docstring: {missing}'


def test_a_missing_docment_is_seen():
    def f(a, # First
          b): return a
    def g(
        a, # First
    )->int: # It
        "One"
        return a
    assert undocumented('f', f) == ['docstring', 'b', 'return'] and undocumented('g', g) == []


# --- API pages ----------------------------------------------------------------------------------------------------------

def cells(page, kind='code'): return [c for c in json.loads(page.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]
def source(cell): return ''.join(cell['source'])
def parsed(cell): return ast.parse(re.sub(r'^[%!].*', '', source(cell), flags=re.M)).body
def text(cell): return ''.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in cell['outputs'])


def shown():
    "name -> what the pages in nbs/api show of it by `show_doc`"
    found = {}
    for page in NBS.glob('api/*.ipynb'):
        for c in cells(page):
            for node in parsed(c):
                call = getattr(node, 'value', None)
                if isinstance(call, ast.Call) and getattr(call.func, 'id', '') == 'show_doc': found[ast.unparse(call.args[0])] = text(c)
    return found


def test_public_symbols_are_in_the_api_pages():
    names, words = set(shown()), ' '.join(source(c) for page in NBS.glob('api/*.ipynb') for kind in ('code', 'markdown') for c in cells(page, kind))
    missing = [n for _, n, o in CALLABLE if o.__name__ not in names] + [n for _, n, _ in PUBLIC if not re.search(rf'\b{n}\b', words)]
    assert not missing, f'add show_doc of these to a page in nbs/api, or where they are no functions or classes name them there: {missing}'


def test_api_pages_show_what_the_code_says():
    "Stored outputs are of these signatures and docstrings; `nbdev-test --save nbs/api` writes them anew"
    stored, stale = shown(), []
    for _, n, o in CALLABLE:
        if n not in stored: continue
        docs = docments(o) if not inspect.isclass(o) or '__init__' in vars(o) else {}
        want = [docstring(o).split('\n')[0], *(c for p, c in docs.items() if c and p != 'self')]
        if gone := [w for w in want if w.split('\n')[0].strip() not in stored[n]]: stale.append((n, gone[0]))
    assert not stale, f'execute nbs/api again: {stale}'


# --- pages --------------------------------------------------------------------------------------------------------------

def unanswered(cell):
    "Whether a cell ends in a value, or calls what puts something out, and nothing is stored"
    body = parsed(cell)
    if cell['outputs'] or not body: return False
    called = {getattr(n.func, 'id', getattr(n.func, 'attr', '')) for n in ast.walk(ast.Module(body, [])) if isinstance(n, ast.Call)}
    last = body[-1]
    value = isinstance(last, ast.Expr) and not isinstance(last.value, (ast.Call, ast.Constant)) and not source(cell).rstrip().endswith(';')
    return value or bool(ANSWERS & called & {getattr(getattr(n.value, 'func', None), 'id', getattr(getattr(n.value, 'func', None), 'attr', '')) for n in body if isinstance(n, ast.Expr)})


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.relative_to(NBS).as_posix())
def test_page_is_stored_executed_and_clean(page, tmp_path):
    code = cells(page)
    assert any(c['outputs'] for c in code), 'no cell has an output: execute with `nbdev-test --save`'
    for c in code:
        assert not any(o['output_type'] == 'error' for o in c['outputs']), f'an error is stored: {source(c)}'
        assert not unanswered(c), f'not executed: {source(c)}'
    left = MACHINE.search(page.read_text(encoding='utf-8'))
    assert not left, f'a path of a machine: {page.read_text(encoding="utf-8")[max(0, left.start() - 80):left.end() + 80]}'
    process_write('', clean_nb, page, tmp_path/'clean.ipynb')
    assert page.read_bytes() == (tmp_path/'clean.ipynb').read_bytes(), 'run `nbdev-clean`'


def leads(page, target):
    "Whether a link on a page leads to a file: a page by its own name or by that of its HTML, or any other file"
    if re.match(r'[a-z]+:|#', target): return True
    file = page.parent/target.split('#')[0]
    return file.exists() or file.suffix == '.html' and any(nbpath2html(f) == file for f in file.parent.glob('*.ipynb'))


@pytest.mark.parametrize('page', PAGES, ids=lambda p: p.relative_to(NBS).as_posix())
def test_links_lead_somewhere(page):
    links = [t for c in cells(page, 'markdown') for t in re.findall(r'\]\(([^)\s]+)[^)]*\)', re.sub(r'`[^`]*`', '', source(c)))]
    lost = [t for t in links if not leads(page, t)]
    assert not lost, lost


def test_the_sidebar_has_all_pages():
    config = yaml.safe_load((NBS/'_quarto.yml').read_text())
    def pages(x):
        if isinstance(x, str): return [x]
        if isinstance(x, list): return [p for e in x for p in pages(e)]
        return pages(x.get('contents', [])) + ([x['href']] if 'href' in x else [])
    listed = pages(config['website']['sidebar'])
    assert len(set(listed)) == len(listed) and sorted(listed) == sorted(p.relative_to(NBS).as_posix() for p in PAGES)
    assert set(pages(config['website']['navbar']['left'])) <= set(listed)


def test_a_page_that_was_not_executed_is_seen():
    def cell(code, *outputs): return dict(cell_type='code', source=code, outputs=list(outputs))
    assert [unanswered(cell(c)) for c in ('show_doc(Run)', 'x = 1\nx', 'print(x)', 'dls.show_batch()')] == [True]*4
    assert [unanswered(cell(c)) for c in ('import torch', 'x = 1', 'learn.fit(1)', 'x.show();', '"a docstring"', '')] == [False, False, False, True, False, False]
    assert not unanswered(cell('x', dict(output_type='execute_result')))


def test_links_that_lead_nowhere_are_seen():
    page = NBS/'api'/'video.ipynb'
    assert all(leads(page, t) for t in ('tasks.ipynb', 'tasks.html#csv', '../_quarto.yml', 'https://x.org', '#clips'))
    assert not any(leads(page, t) for t in ('task.ipynb', '../tasks.html', 'tasks.ipynb/x'))
    for top in ('tmp', 'home', 'root', 'work', 'Users', 'opt', 'usr', 'var', 'mnt', 'private'):
        for before in ('in ', '"'): assert MACHINE.search(f'{before}/{top}/a'), (before, top)
        for before in ('out', '~', 'experiments'): assert not MACHINE.search(f'{before}/{top}/a'), (before, top)
