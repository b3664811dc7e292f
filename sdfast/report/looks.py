"The look of a strategy, the same in every figure, plot and legend: its colour and its marker."
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib.axes import Axes

from ..strategies.registry import STRATEGIES

# Okabe & Ito's colours, which can be distinguished with every kind of colour vision
COLOURS = '#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7A7A00', '#46237A'
MARKERS = 'o^vDPX*<>hp8dH'  # distinguish strategies without colour
# strategies with a colour of their own
FIRST = ['self_distill', 'fixed_teacher', 'ema_teacher', 'l2sp', 'ewc', 'lower_lr', 'linear_probe', 'lp_ft']
# indices of colours for a marker's second use, which can be distinguished from those of its first use
SECOND_COLOURS = 3, 4, 7, 0, 1, 6, 5, 2
# the same for a third use: index of a marker -> index of its colour. For the other markers no third colour is left
THIRD_COLOURS = {0: 7, 2: 4, 3: 1, 5: 7, 6: 7, 7: 0, 8: 1, 10: 4, 11: 7, 13: 7}


def _pairs():
    "Indices of colours and markers, in the order in which strategies take them"
    n = len(MARKERS)
    yield from ((i % 8, i) for i in range(n))
    yield from ((SECOND_COLOURS[i % 8], i) for i in range(n))
    yield from ((colour, i) for i, colour in THIRD_COLOURS.items())


def _assign_looks():
    "Strategy -> colour and marker: plain fine-tuning is black, the others take colours and markers in turn"
    names = [*FIRST, *(s for s in STRATEGIES if s not in FIRST)]
    looks = {name:(COLOURS[colour], MARKERS[marker]) for name, (colour, marker) in zip(names, _pairs(), strict=False)}
    return looks | dict(finetune=('#000000', 's'))


LOOKS = _assign_looks()


def look(
    name:str, # A strategy, or one with options after its name
)->tuple[str, str]: # Colour and marker
    "The look of a strategy; if options follow its name, the look is derived from the whole name"
    if name in LOOKS: return LOOKS[name]
    at = sum(name.encode())
    return COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]


@contextmanager
def marks_of(
    ax:Axes, # Axes
    strategy:str, # Its name
)->Iterator[None]: # A context
    "Give all marks drawn in this context the group id `series-STRATEGY`, by which the page finds them"
    before = set(ax.get_children())
    yield
    for artist in set(ax.get_children()) - before: artist.set_gid(f'series-{strategy}')
