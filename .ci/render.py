"""Prepare every page of nbs/ as nbdev does for Quarto, then convert it to HTML; fails if a page cannot be converted.

    python .ci/render.py [FOLDER]

Stands in for `nbdev-docs` where Quarto is not installed. Without a folder nothing is kept."""
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
import yaml
from nbconvert import HTMLExporter
from nbdev.serve import proc_nbs
from traitlets.config import Config

ROOT = Path(__file__).resolve().parents[1]
HIDE_TAGGED = Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags=['hidden']),
                     HTMLExporter=dict(preprocessors=['nbconvert.preprocessors.TagRemovePreprocessor']))


def read_front_matter(cell):
    "Fields of a prepared notebook's first cell, `{}` if it has none"
    if cell.cell_type != 'raw': return {}
    return yaml.safe_load(cell.source.strip().strip('-'))


def prepare_code(cell):
    "Hide the source of cells that Quarto does not echo, and remove directives"
    hidden = re.search(r'^#\| echo: false$', cell.source, re.M)
    cell.metadata = {'tags': ['hidden']} if hidden else {}  # execution times, which nbdev leaves, are invalid there
    cell.source = re.sub(r'^#\| .*\n', '', cell.source, flags=re.M)


def prepare_text(cell):
    "Let links lead to the pages' HTML"
    cell.metadata = {}
    cell.source = re.sub(r'\.ipynb(?=[)#])', '.html', cell.source)


def render_page(file, html):
    "Convert a prepared notebook to HTML, with the title and description of its front matter"
    nb = nbformat.read(file, 4)
    front, *nb.cells = nb.cells
    fields = read_front_matter(front)
    title = fields.get('title')
    if not title: raise SystemExit(f'{file} does not begin with a title')
    heading = f'# {title}\n\n*{fields.get("description", "")}*'
    nb.cells.insert(0, nbformat.v4.new_markdown_cell(heading))
    for cell in nb.cells:
        if cell.cell_type == 'code': prepare_code(cell)
        else: prepare_text(cell)
    html.parent.mkdir(parents=True, exist_ok=True)
    text, _ = HTMLExporter(config=HIDE_TAGGED).from_notebook_node(nb, dict(metadata=dict(name=title)))
    html.write_text(text, encoding='utf-8')


def main(out):
    "Render all pages to `out/html`"
    shutil.copy(ROOT/'pyproject.toml', out)
    shutil.copytree(ROOT/'nbs', out/'nbs', ignore=shutil.ignore_patterns('.*'))
    os.chdir(out)
    prepared = proc_nbs(out/'nbs', n_workers=2, force=True)
    pages = sorted(f.relative_to(out/'nbs') for f in (out/'nbs').rglob('*.ipynb'))
    for page in pages: render_page(prepared/page, (out/'html'/page).with_suffix('.html'))
    print(f'{len(pages)} pages rendered')


if __name__ == '__main__':
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1]).resolve()
        folder.mkdir(parents=True)
        main(folder)
    else:
        with tempfile.TemporaryDirectory() as folder: main(Path(folder))
