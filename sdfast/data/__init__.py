"From a video file to a batch."
from .cache import *
from .clips import *
from .datasets import *
from .decoded import *
from .digits import *
from .prepared import *
from .task import *
from .text import *
from .video import *
