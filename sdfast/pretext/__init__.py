"Pre-training without labels: fastai callbacks, listed in `METHODS`."
from . import (
    augment,
    base,
    clips,
    cvrl,
    flow,
    iic,
    loaders,
    order,
    pace,
    puzzle,
    registry,
    rspnet,
    rspnet_checkpoint,
    statistics,
)
from .augment import *
from .base import *
from .clips import *
from .cvrl import *
from .flow import *
from .iic import *
from .loaders import *
from .order import *
from .pace import *
from .puzzle import *
from .registry import *
from .rspnet import *
from .rspnet_checkpoint import *
from .statistics import *

MODULES = (
    augment, base, clips, cvrl, flow, iic, loaders, order, pace, puzzle, registry, rspnet, rspnet_checkpoint,
    statistics,
)
__all__ = [name for module in MODULES for name in module.__all__]
