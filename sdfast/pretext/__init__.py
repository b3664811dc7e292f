"Pre-training without labels: each method a fastai callback, listed in `METHODS` for the scripts and the docs."
from . import augment, order, pace, pretext, rspnet
from .augment import *
from .order import *
from .pace import *
from .pretext import *
from .rspnet import *

METHODS = dict(rspnet=RSPNet, pace=Pace, order=ClipOrder)

__all__ = [n for m in (augment, pretext, rspnet, pace, order) for n in m.__all__] + ['METHODS']
