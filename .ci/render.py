"""Every page of nbs/ as nbdev prepares it for Quarto, then as HTML: `python .ci/render.py [FOLDER]` fails where one does not get through.

Stands in for `nbdev-docs` where Quarto is not installed."""
import os, re, shutil, sys, tempfile
from pathlib import Path

import nbformat
import yaml
from nbconvert import HTMLExporter
from nbdev.serve import proc_nbs
from traitlets.config import Config

root = Path(__file__).resolve().parents[1]


def page(file, html):
    "A prepared notebook as HTML; `html` has what Quarto makes of front matter, and hides what it hides"
    nb = nbformat.read(file, 4)
    front, *nb.cells = nb.cells
    fields = yaml.safe_load(front.source.strip().strip('-')) if front.cell_type == 'raw' else {}
    if not (title := fields.get('title')): raise SystemExit(f'{file} does not begin with a title')
    nb.cells.insert(0, nbformat.v4.new_markdown_cell(f'# {title}\n\n*{fields.get("description", "")}*'))
    for c in nb.cells:
        c.metadata = {'tags':['hidden']} if c.cell_type == 'code' and re.search(r'^#\| echo: false$', c.source, re.M) else {}  # times of execution are no valid metadata
        c.source = re.sub(r'^#\| .*\n', '', c.source, flags=re.M) if c.cell_type == 'code' else re.sub(r'\.ipynb(?=[)#])', '.html', c.source)
    html.parent.mkdir(parents=True, exist_ok=True)
    config = Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags=['hidden']), HTMLExporter=dict(preprocessors=['nbconvert.preprocessors.TagRemovePreprocessor']))
    html.write_text(HTMLExporter(config=config).from_notebook_node(nb, dict(metadata=dict(name=title)))[0], encoding='utf-8')


def main(out):
    shutil.copy(root/'pyproject.toml', out)
    shutil.copytree(root/'nbs', out/'nbs', ignore=shutil.ignore_patterns('.*'))
    os.chdir(out)
    cache = proc_nbs(out/'nbs', n_workers=2, force=True)
    sources = sorted(f.relative_to(out/'nbs') for f in (out/'nbs').rglob('*.ipynb'))
    for f in sources: page(cache/f, (out/'html'/f).with_suffix('.html'))
    print(f'{len(sources)} pages rendered')


if __name__ == '__main__':
    if len(sys.argv) > 1:
        (out := Path(sys.argv[1]).resolve()).mkdir(parents=True)
        main(out)
    else:
        with tempfile.TemporaryDirectory() as d: main(Path(d))
