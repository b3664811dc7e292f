"Pre-training without labels: fastai callbacks, listed in `METHODS`."
from .augment import *
from .base import *
from .cvrl import *
from .iic import *
from .order import *
from .pace import *
from .puzzle import *
from .registry import *
from .rspnet import *
from .statistics import *
