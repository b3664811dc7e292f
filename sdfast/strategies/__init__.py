"Ways to fine-tune: fastai callbacks, listed in `STRATEGIES`."
from . import (
    anchor,
    averaging,
    base,
    columns,
    cotuning,
    distill,
    feature_maps,
    hooks,
    importance,
    lora,
    mixins,
    optimizers,
    outputs,
    path_integral,
    r3f,
    rates,
    recipes,
    registry,
    replay,
    spectral,
    stochnorm,
    telemetry,
)
from .anchor import *
from .averaging import *
from .base import *
from .columns import *
from .cotuning import *
from .distill import *
from .feature_maps import *
from .hooks import *
from .importance import *
from .lora import *
from .mixins import *
from .optimizers import *
from .outputs import *
from .path_integral import *
from .r3f import *
from .rates import *
from .recipes import *
from .registry import *
from .replay import *
from .spectral import *
from .stochnorm import *
from .telemetry import *

MODULES = (
    anchor, averaging, base, columns, cotuning, distill, feature_maps, hooks, importance, lora, mixins,
    optimizers, outputs, path_integral, r3f, rates, recipes, registry, replay, spectral, stochnorm, telemetry,
)
__all__ = [name for module in MODULES for name in module.__all__]
