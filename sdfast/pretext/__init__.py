"Pre-training without labels: fastai callbacks, listed in `METHODS`."
from inspect import ismodule as _ismodule

from .augment import *
from .base import *
from .clips import *
from .cvrl import *
from .cycle import *
from .dogo import *
from .flow import *
from .hdc import *
from .iic import *
from .loaders import *
from .maps import *
from .memdpc import *
from .net import *
from .order import *
from .pace import *
from .puzzle import *
from .registry import *
from .rspnet import *
from .rspnet_checkpoint import *
from .statistics import *

# names, not submodules
__all__ = [name for name, obj in list(globals().items()) if not name.startswith('_') and not _ismodule(obj)]
