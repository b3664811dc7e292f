"What an encoder kept."
from . import columns, continual, curve, features, retention, scores
from .columns import *
from .continual import *
from .curve import *
from .features import *
from .retention import *
from .scores import *

MODULES = (columns, continual, curve, features, retention, scores)
__all__ = [name for module in MODULES for name in module.__all__]
