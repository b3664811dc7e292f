"""Build the documentation's site: the executed pages of nbs/, the page of experiments, reports, contributing, changes.

    python .ci/site.py [FOLDER]      # open FOLDER/index.html; without a folder nothing is kept

nbdev prepares the notebooks as it does for Quarto, nbconvert makes Markdown of them, and MkDocs makes the site, with
the order of pages that nbs/_quarto.yml has. A page that cannot be converted or a link that leads nowhere is an error.
Where Quarto is installed, `nbdev-docs` renders the same notebooks."""
import ast
import logging
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path, PurePosixPath

import nbformat
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config
from nbconvert import MarkdownExporter
from nbdev.config import get_config
from nbdev.serve import proc_nbs

from sdfast.report.page import write_page

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = 'experiments.md'  # where the site has experiments/README.md
PAGES = {'experiments/README.md': EXPERIMENTS, 'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changes.md'}
# studies whose page is shown, and the question of each
REPORTS = dict(
    moving_digits_paths='What does each of ten strategies keep, at which price?',
    moving_digits='The default study: plain fine-tuning and five other strategies',
    arid6_fights2_mobilenetv2="A small net over real clips, with ImageNet's weights",
    arid6_fights2_tiny='The tiny net on real clips')
# the name of the fold around code that readers rarely need
FOLDS = {'code-fold': 'The code of this result', 'set-up': 'Imports and settings'}


# ---- notebooks

def is_set_up(code):
    "Whether a cell only imports, and sets options or constants"
    def is_setting(node):
        if isinstance(node, ast.Assign): return isinstance(node.value, ast.Constant)
        call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
        return call and re.search('set_|filter|manual_seed|disable_', ast.unparse(node.value.func))
    try: body = ast.parse(code).body
    except SyntaxError: return False
    imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return bool(imports) and all(node in imports or is_setting(node) for node in body)


def prepare_cell(cell):
    "Note in a code cell's metadata how it is shown, and remove directives"
    if cell.cell_type != 'code': return
    hidden = re.search(r'^#\| echo: false$', cell.source, re.M)
    folded = re.search(r'^#\| code-fold: true$', cell.source, re.M)
    cell.source = re.sub(r'^#\| .*\n?', '', cell.source, flags=re.M)
    fold = 'code-fold' if folded else 'set-up' if is_set_up(cell.source) and not cell.outputs else ''
    cell.metadata = dict(hidden=bool(hidden), fold=fold)


def fold(text, title):
    "A collapsed block of Material for MkDocs"
    indented = '\n'.join(f'    {line}' if line else '' for line in text.strip().splitlines())
    return f'\n??? abstract "{title}"\n\n{indented}\n\n'


def cell_markdown(exporter, cell, name):
    "Markdown of a cell, and the files that it shows"
    nb = nbformat.v4.new_notebook(cells=[cell], metadata=dict(language_info=dict(name='python')))
    text, resources = exporter.from_notebook_node(nb, dict(unique_key=name, output_files_dir=f'{name}_files'))
    if cell.cell_type == 'code':
        # tables of pandas are HTML with a style of their own, which the site's theme replaces
        text = re.sub(r'<style scoped>.*?</style>', '', text, flags=re.S)
        code = f'```python\n{cell.source}\n```'
        if cell.metadata['hidden']: text = text.replace(code, '', 1)
        elif cell.metadata['fold']: text = text.replace(code, fold(code, FOLDS[cell.metadata['fold']]), 1)
    return text, resources['outputs']


def notebook_markdown(file):
    "Title of a prepared notebook, its Markdown, and the files that it shows: name -> bytes"
    nb = nbformat.read(file, 4)
    front, *cells = nb.cells
    fields = yaml.safe_load(front.source.strip().strip('-')) if front.cell_type == 'raw' else {}
    title = fields.get('title')
    if not title: raise SystemExit(f'{file} does not begin with a title')
    parts, shown = [f'# {title}\n\n*{fields.get("description", "")}*\n'], {}
    exporter = MarkdownExporter()
    for i, cell in enumerate(cells):
        prepare_cell(cell)
        text, files = cell_markdown(exporter, cell, f'{file.stem}_{i}')
        parts.append(text)
        shown |= files
    return title, '\n'.join(parts), shown


# ---- links

def site_links(text, page, source, repository):
    """Let a page's relative links lead to pages of the site, or else to files of the repository.

    `page` is its place in the site, `source` the place of its source in the repository."""
    def target(found):
        label, link = found[1], found[2]
        path, _, anchor = link.partition('#')
        if re.match('[a-z]+:', link) or not path: return found[0]
        to = PurePosixPath(os.path.normpath(PurePosixPath(source).parent/path))
        place = PAGES.get(str(to)) or (to.relative_to('nbs').with_suffix('.md') if to.suffix == '.ipynb' else None)
        if place is None and str(to).startswith('nbs/') and (ROOT/to).is_file(): place = to.relative_to('nbs')
        if place is None:
            if not (ROOT/to).exists() and not path.startswith(f'{PurePosixPath(page).stem}_'):
                raise SystemExit(f'{source} links to {link}, which does not exist')
            if path.startswith(f'{PurePosixPath(page).stem}_'): return found[0]  # a picture of its own
            kind = 'raw' if label.startswith('!') else 'tree' if (ROOT/to).is_dir() else 'blob'
            return f'{label}({repository}/{kind}/main/{to})'
        place = os.path.relpath(place, PurePosixPath(page).parent)
        return f'{label}({place}{"#" if anchor else ""}{anchor})'
    parts = re.split(r'(^```.*?^```$)', text, flags=re.S | re.M)
    return ''.join(p if p.startswith('```') else re.sub(r'(!?\[[^\[\]]*\])\(([^)\s]+)\)', target, p) for p in parts)


def spaced_lists(text):
    "Put an empty line before each list, which Python-Markdown needs and GitHub does not"
    return re.sub(r'(^(?![-*|> ]|\d+\. ).+\n)(?=[-*] )', r'\1\n', text, flags=re.M)


# ---- the site

def write_text_pages(docs, repository):
    for source, page in PAGES.items():
        text = (ROOT/source).read_text(encoding='utf-8')
        for picture in set(re.findall(r'!\[[^\]]*\]\(([^)\s]+)\)', text)):
            file = (ROOT/source).parent/picture
            (docs/picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, docs/picture)
            text = text.replace(f']({picture})', f'](./{picture}#)')
        text = site_links(text.replace('](./', '](shown:'), page, source, repository)
        (docs/page).write_text(spaced_lists(text.replace('](shown:', '](').replace('#)', ')')), encoding='utf-8')


def write_gallery(docs):
    "The pages of committed studies, and a page that lists them"
    lines = ['# Reports\n', 'A study writes such a page, one file that opens offline. These are of committed results: '
             'without the folders of single runs, so without clips and confusions.\n']
    for name, question in REPORTS.items():
        with tempfile.TemporaryDirectory() as folder:
            study = shutil.copytree(ROOT/'experiments/results'/name, Path(folder)/name)
            page = write_page([str(study)], None, 'holm', False)
            target = docs/'reports'/f'{name}.html'
            target.parent.mkdir(exist_ok=True)
            shutil.copy(page, target)
        shutil.copy(ROOT/'experiments/results'/name/'figure.png', docs/'reports'/f'{name}.png')
        lines.append(f'## [{question}]({name}.html)\n\n[![{question}]({name}.png)]({name}.html)\n')
    (docs/'reports/index.md').write_text('\n'.join(lines), encoding='utf-8')


def navigation(sidebar, titles):
    "MkDocs' navigation, of Quarto's sidebar"
    def entry(item):
        if isinstance(item, str): return {titles[item]: str(Path(item).with_suffix('.md'))}
        return {item['section']: [entry(i) for i in item['contents']]}
    home, *sections = map(entry, sidebar)
    for section in sections:
        if 'Evidence' in section:
            section['Evidence'] += [dict(Experiments=EXPERIMENTS), dict(Reports='reports/index.md')]
    return [dict(Home='index.md'), *sections, dict(Contributing='contributing.md'), dict(Changes='changes.md')]


def settings(docs, out, nav, config):
    "mkdocs.yml"
    def palette(scheme, media, icon, name):
        return dict(media=f'(prefers-color-scheme: {media})', scheme=scheme, primary='teal', accent='teal',
                    toggle=dict(icon=f'material/{icon}', name=name))
    return dict(
        site_name=config.title, site_description=config.description, site_url=config.doc_url, repo_url=config.git_url,
        docs_dir=str(docs), site_dir=str(out), nav=nav, plugins=['search'], extra_css=['site.css'],
        extra_javascript=['site.js'],
        theme=dict(
            name='material', font=False,
            features=['navigation.tabs', 'navigation.footer', 'content.code.copy', 'search.suggest', 'toc.follow'],
            palette=[palette('default', 'light', 'weather-night', 'Switch to dark mode'),
                     palette('slate', 'dark', 'weather-sunny', 'Switch to light mode')]),
        markdown_extensions=[
            'admonition', 'attr_list', 'footnotes', 'md_in_html', 'pymdownx.details', 'pymdownx.superfences',
            {'toc': dict(permalink=True)}, {'pymdownx.highlight': dict(use_pygments=True)}],
        validation=dict(links=dict(not_found='warn', anchors='warn', unrecognized_links='warn')))


def write_site(work, out):
    "Build the site in `out`, with `work` for what is between"
    config = get_config(path=ROOT)
    shutil.copy(ROOT/'pyproject.toml', work)
    shutil.copytree(ROOT/'nbs', work/'nbs', ignore=shutil.ignore_patterns('.*'))
    docs = work/'docs'
    docs.mkdir()
    os.chdir(work)
    prepared = proc_nbs(work/'nbs', n_workers=2, force=True)
    titles = {}
    for file in sorted((work/'nbs').rglob('*.ipynb')):
        name = file.relative_to(work/'nbs')
        page = docs/name.with_suffix('.md')
        page.parent.mkdir(parents=True, exist_ok=True)
        titles[str(name)], text, shown = notebook_markdown(prepared/name)
        text = site_links(text, str(name.with_suffix('.md')), f'nbs/{name}', config.git_url)
        page.write_text(spaced_lists(text), encoding='utf-8')
        for picture, data in shown.items():
            (page.parent/picture).parent.mkdir(exist_ok=True)
            (page.parent/picture).write_bytes(data)
    write_text_pages(docs, config.git_url)
    write_gallery(docs)
    for name in ('site.css', 'site.js'): shutil.copy(ROOT/'nbs'/name, docs)
    sidebar = yaml.safe_load((ROOT/'nbs/_quarto.yml').read_text())['website']['sidebar']['contents']
    (work/'mkdocs.yml').write_text(yaml.safe_dump(settings(docs, out, navigation(sidebar, titles), config)))
    logging.basicConfig(level=logging.WARNING)  # what ends a strict build is a warning of MkDocs
    build(load_config(str(work/'mkdocs.yml'), strict=True))
    print(f'{len(titles)} notebooks, {len(PAGES)} other pages, {len(REPORTS)} reports')


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as work:
        out = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(work)/'site'
        write_site(Path(work), out)
