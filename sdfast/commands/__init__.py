"The command line: one module a command."
import warnings

# of libraries about each other, when they are imported
warnings.filterwarnings('ignore', category=FutureWarning)
warnings.filterwarnings('ignore', category=DeprecationWarning)
