"Colours and markers can be read and told apart."
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from sdfast.report.looks import COLOURS, LOOKS
from sdfast.report.svg import SHEET, swatch

ROOT = Path(__file__).parents[2]

# full protanopia, deuteranopia and tritanopia on linear RGB (Machado, Oliveira & Fernandes, IEEE TVCG 2009), and none
VISIONS = [np.array(m) for m in (
    [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
    [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
    [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]])] + [np.eye(3)]


def linear(colour):
    "Linear RGB of a hexadecimal colour"
    c = np.array([int(colour[i:i + 2], 16) for i in (1, 3, 5)])/255
    return np.where(c <= .04045, c/12.92, ((c + .055)/1.055)**2.4)


def contrast(a, b):
    "Ratio of luminances by WCAG"
    dark, light = sorted(float(linear(c) @ [.2126, .7152, .0722]) for c in (a, b))
    return (light + .05)/(dark + .05)


def lab(rgb):
    "CIELAB of linear RGB"
    to_xyz = np.array([[.4124, .3576, .1805], [.2126, .7152, .0722], [.0193, .1192, .9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1)/[.9505, 1, 1.089]
    f = np.where(xyz > .008856, np.cbrt(xyz), 7.787*xyz + 16/116)
    return np.array([116*f[1] - 16, 500*(f[0] - f[1]), 200*(f[1] - f[2])])


def distance(a, b):
    "The least difference of two colours that any kind of colour vision sees"
    return min(np.linalg.norm(lab(vision @ linear(a)) - lab(vision @ linear(b))) for vision in VISIONS)


@pytest.fixture(params=['light', 'dark'])
def colours(request):
    "The page's colours by name"
    css = (ROOT/'sdfast/report/page.css').read_text()
    blocks = css.split('@media (prefers-color-scheme: dark)')[:2]
    light, dark = (dict(re.findall(r'--([\w-]+): (#[0-9a-fA-F]{6})', block)) for block in blocks)
    return light if request.param == 'light' else light | dark


def test_grey_stays_grey():
    for vision in VISIONS: assert vision.sum(1) == pytest.approx([1]*3, abs=1e-5)


def test_text_can_be_read(colours):
    for name in ('ink', 'muted', 'accent', 'better', 'worse'):
        assert contrast(colours[name], colours['paper']) >= 4.5, name
        assert contrast(colours[name], colours['surface']) >= 4.5, name


def test_marks_can_be_seen(colours):
    for i in range(len(COLOURS)): assert contrast(colours[f'c{i}'], colours['paper']) >= 3, f'c{i}: WCAG 1.4.11'


def test_strategies_can_be_told_apart(colours):
    looks = {strategy: (colours[SHEET[colour]], marker) for strategy, (colour, marker) in LOOKS.items()}
    assert len(set(looks.values())) == len(looks)
    for (a, (colour_a, marker_a)), (b, (colour_b, marker_b)) in combinations(looks.items(), 2):
        if marker_a == marker_b: assert distance(colour_a, colour_b) > 15, (a, b)


def test_the_page_draws_each_look():
    for strategy, (colour, _) in LOOKS.items(): assert f'var(--{SHEET[colour]})' in swatch(strategy)
