"What an encoder kept."
from .columns import *
from .continual import *
from .curve import *
from .features import *
from .retention import *
from .scores import *
