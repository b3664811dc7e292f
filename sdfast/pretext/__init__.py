"Pre-training without labels: fastai callbacks, listed in `METHODS`."
from .augment import *
from .base import *
from .clips import *
from .cvrl import *
from .flow import *
from .iic import *
from .loaders import *
from .order import *
from .pace import *
from .puzzle import *
from .registry import *
from .rspnet import *
from .rspnet_checkpoint import *
from .statistics import *
