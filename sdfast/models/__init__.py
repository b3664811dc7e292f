"Encoders by name, their weights and features, and what can be done to a model's parts."
from .encoders import *
from .features import *
from .nets import *
from .surgery import *
from .weights import *
