"Ways to fine-tune: fastai callbacks, listed in `STRATEGIES`."
from .anchor import *
from .averaging import *
from .base import *
from .distill import *
from .features import *
from .importance import *
from .lora import *
from .mixins import *
from .outputs import *
from .recipes import *
from .registry import *
from .replay import *
from .telemetry import *
