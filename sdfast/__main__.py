"`python -m sdfast` prints what a bug report needs."
import warnings

from .commands.start import start

if __name__ == '__main__':
    start()
    from .commands.about import about
    warnings.filterwarnings('ignore')
    print(about())
