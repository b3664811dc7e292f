"From a video file to a batch."
from . import block, cache, clips, datasets, decoded, loader, official, prepared, splits, tables, task, text, video
from .block import *
from .cache import *
from .clips import *
from .datasets import *
from .decoded import *
from .loader import *
from .official import *
from .prepared import *
from .splits import *
from .tables import *
from .task import *
from .text import *
from .video import *

MODULES = (block, cache, clips, datasets, decoded, loader, official, prepared, splits, tables, task, text, video)
__all__ = [name for module in MODULES for name in module.__all__]
