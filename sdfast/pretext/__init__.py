"Pre-training without labels: each method a fastai callback, listed in `METHODS` for the scripts and the docs."
from . import augment, pace, pretext
from .augment import *
from .pace import *
from .pretext import *

METHODS = dict(pace=Pace)

__all__ = [n for m in (augment, pretext, pace) for n in m.__all__] + ['METHODS']
