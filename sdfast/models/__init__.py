"Encoders by name, their weights and features, and what can be done to a model's parts."
from . import encoders, features, nets, surgery, weights
from .encoders import *
from .features import *
from .nets import *
from .surgery import *
from .weights import *

MODULES = (encoders, features, nets, surgery, weights)
__all__ = [name for module in MODULES for name in module.__all__]
