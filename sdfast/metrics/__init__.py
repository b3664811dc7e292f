"What an encoder kept."
from inspect import ismodule as _ismodule

from .audit import *
from .columns import *
from .continual import *
from .curve import *
from .features import *
from .kept import *
from .per_clip import *
from .resample import *
from .retention import *
from .scores import *

# names, not submodules
__all__ = [name for name, obj in list(globals().items()) if not name.startswith('_') and not _ismodule(obj)]
