"From a video file to a batch."
from inspect import ismodule as _ismodule

from .annotated import *
from .batches import *
from .block import *
from .cache import *
from .clips import *
from .dataloaders import *
from .datasets import *
from .decoded import *
from .folders import *
from .images import *
from .loader import *
from .manifest import *
from .official import *
from .order import *
from .pipelines import *
from .prepared import *
from .splits import *
from .tables import *
from .task import *
from .text import *
from .torch_loader import *
from .unpacked import *
from .video import *

# names, not submodules
__all__ = [name for name, obj in list(globals().items()) if not name.startswith('_') and not _ismodule(obj)]
