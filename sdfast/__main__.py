"`python -m sdfast` prints what a bug report needs."
import warnings

from .commands.about import about

if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    print(about())
