"Scripts of `experiments/` as modules, to call their functions in the tests' process."
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load_script(name):
    "Import `experiments/NAME.py` without running it"
    spec = importlib.util.spec_from_file_location(name, ROOT/f'experiments/{name}.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
