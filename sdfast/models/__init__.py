"From a name to an encoder."
from .encoders import *
from .features import *
from .surgery import *
from .weights import *
