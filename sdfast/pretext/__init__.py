"Pre-training without labels: each method a fastai callback, listed in `METHODS` for the scripts and the docs."
from . import augment, cvrl, iic, order, pace, pretext, puzzle, rspnet, statistics
from .augment import *
from .cvrl import *
from .iic import *
from .order import *
from .pace import *
from .pretext import *
from .puzzle import *
from .rspnet import *
from .statistics import *

METHODS = dict(rspnet=RSPNet, pace=Pace, order=ClipOrder, puzzle=CubicPuzzle, cvrl=CVRL, iic=InterIntra, mas=MotionStatistics)

__all__ = [n for m in (augment, pretext, rspnet, pace, order, puzzle, cvrl, iic, statistics) for n in m.__all__] + ['METHODS']
