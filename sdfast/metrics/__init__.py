"What an encoder kept."
from inspect import ismodule as _ismodule

from .attentive import *
from .audit import *
from .chosen import *
from .columns import *
from .continual import *
from .curve import *
from .events import *
from .extra import *
from .features import *
from .flips import *
from .kept import *
from .per_clip import *
from .resample import *
from .retention import *
from .scores import *

# names, not submodules
__all__ = [name for name, obj in list(globals().items()) if not name.startswith('_') and not _ismodule(obj)]
