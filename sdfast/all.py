"`from sdfast.all import *`: fastai's `Learner` and all of sdfast, for notebooks."
from fastai.learner import Learner
from fastai.metrics import accuracy

from .decoded import *
from .errors import InputError
from .figures import *
from .forgetting import *
from .launch import *
from .memory import *
from .models import *
from .page import *
from .pretext import *
from .report import *
from .resume import *
from .results import *
from .sequence import *
from .stats import *
from .status import *
from .strategies import *
from .study import *
from .tasks import *
from .video import *
