"Ways to fine-tune, as fastai callbacks and for any training loop (`core`), listed in `STRATEGIES`."
from inspect import ismodule as _ismodule

from .anchor import *
from .averaging import *
from .base import *
from .base_outputs import *
from .budget import *
from .budgeted import *
from .byot import *
from .clip_numbers import *
from .columns import *
from .core import *
from .cotuning import *
from .distill import *
from .drift_kept import *
from .feature_maps import *
from .hooks import *
from .hosted import *
from .importance import *
from .in_step import *
from .likelihood import *
from .lora import *
from .mixins import *
from .optimizers import *
from .outputs import *
from .path_integral import *
from .r3f import *
from .rates import *
from .recipe import *
from .recipes import *
from .registry import *
from .replay import *
from .second_pass import *
from .spectral import *
from .stochnorm import *
from .targets import *
from .telemetry import *
from .train_clips import *

# names, not submodules
__all__ = [name for name, obj in list(globals().items()) if not name.startswith('_') and not _ismodule(obj)]
