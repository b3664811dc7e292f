"From a video file to a batch."
from .block import *
from .cache import *
from .clips import *
from .datasets import *
from .decoded import *
from .digits import *
from .ffmpeg import *
from .loader import *
from .official import *
from .prepared import *
from .splits import *
from .tables import *
from .task import *
from .text import *
from .video import *
