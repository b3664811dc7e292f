"Encoders by name, their weights and features, and operations on parts of a model."
from inspect import ismodule as _ismodule

from .averages import *
from .calls import *
from .clip_spec import *
from .copies import *
from .csn_nets import *
from .encoders import *
from .features import *
from .heads import *
from .labels import *
from .layers import *
from .learner import *
from .lrcn_nets import *
from .merging import *
from .model_folder import *
from .nets import *
from .pretrained import *
from .probes import *
from .slowfast_nets import *
from .statistics import *
from .surgery import *
from .two_stream_nets import *
from .video_transformers import *
from .weights import *

# names, not submodules
__all__ = [name for name, obj in list(globals().items()) if not name.startswith('_') and not _ismodule(obj)]
