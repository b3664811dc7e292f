"What an encoder kept."
from .continual import *
from .curve import *
from .features import *
from .retention import *
