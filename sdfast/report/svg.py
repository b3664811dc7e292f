"Plots as inline SVG, whose fonts and colours are those of the page, light or dark."
import io
import re
import warnings
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle

from .looks import COLOURS, look
from .panels import Plot

# no TeX, as class names may contain a $; the same ids at each drawing; text as text, in the page's fonts
RC: dict[Any, Any] = {
    'text.parse_math': False, 'svg.fonttype': 'none', 'svg.hashsalt': 'sdfast', 'pdf.fonttype': 42, 'font.size': 10,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.linewidth': .8, 'axes.axisbelow': True,
    'legend.frameon': False}

# colour -> the page's variable for it
SHEET = {colour: f'c{i}' for i, colour in enumerate(COLOURS)}
SHEET |= {'#000000': 'ink', '#808080': 'muted', '#ffffff': 'surface', '#b0b0b0': 'grid'}


def svg(
    plot:Plot, # From `plots`
    panel:str, # Its title
    prefix:str, # Makes ids unique on a page
    alt:str, # Text for screen readers
)->tuple[str, pd.DataFrame]: # A panel as inline SVG, and the numbers it shows
    """Draw a panel for the page.

    CSS variables `--c0`... stand for the colours of `SHEET`. The marks of a strategy are groups with `data-s`.
    Matplotlib escapes all text."""
    with rc_context(RC), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Glyph')  # the browser has the letters that matplotlib's font lacks
        fig = Figure(figsize=plot.size, layout='constrained')
        numbers = plot.panels[panel](fig.subplots())
        fig.patch.set_alpha(0)
        fig.axes[0].patch.set_alpha(0)
        file = io.StringIO()
        FigureCanvasSVG(fig).print_svg(file, metadata=dict(Date=None, Creator=None, Format=None, Type=None))
    return _for_page(file.getvalue(), prefix, alt), numbers


def _for_page(s, prefix, alt):
    "Matplotlib's SVG without its styles, with the page's colours, unique ids and a title"
    s = s[s.index('<svg'):]
    s = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->', '', s, flags=re.S)
    s = re.sub(r'<g id="series-([^"]*)"', r'<g data-s="\1"', s)
    s = re.sub(r'(\bid="|href="#|url\(#)', rf'\g<1>{prefix}-', s)
    s = re.sub(r'style="[^"]*"', _page_style, s)
    width, height = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', s).groups()
    head = (f'<svg class="plot" role="img" aria-labelledby="{prefix}-t" viewBox="0 0 {width} {height}" '
            f'style="--w: {float(width):.0f}" xmlns="http://www.w3.org/2000/svg" '
            'xmlns:xlink="http://www.w3.org/1999/xlink">'
            f'<title id="{prefix}-t">{escape(alt, quote=False)}</title>')
    return head + s[s.index('>') + 1:].strip()


VARIABLES = {colour.lower(): name for colour, name in SHEET.items()}


def _page_style(match):
    "A style attribute without fonts, colours replaced by variables"
    style = re.sub(r'font-family: [^;"]*;? ?', '', match[0])
    return re.sub(r'#[0-9a-f]{6}\b', lambda c: f'var(--{VARIABLES[c[0]]})' if c[0] in VARIABLES else c[0], style)


def swatch(
    strategy:str, # Its name
)->str: # SVG
    "Draw a strategy's marker, for legends of the page"
    colour, marker = look(strategy)
    style = MarkerStyle(marker)
    polygon, *_ = style.get_path().transformed(style.get_transform()).to_polygons()
    polygon = polygon/np.abs(polygon).max()*5
    points = ' '.join(f'{x:.1f},{-y:.1f}' for x, y in polygon)
    shape = f'<polygon points="{points}" style="fill: var(--{SHEET[colour]})"/>'
    return f'<svg class="swatch" viewBox="-6 -6 12 12" aria-hidden="true">{shape}</svg>'
