"Study and prevent forgetting when a pre-trained video encoder is fine-tuned."
from importlib.metadata import version

__version__ = version('sdfast')
