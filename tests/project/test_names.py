"`from sdfast.all import *` brings functions and classes, and shadows no name of Python or fastai."
import builtins
import inspect
import subprocess
import sys

import fastai.vision.all

import sdfast.all

STAR = {name:obj for name, obj in vars(sdfast.all).items() if not name.startswith('_')}


def test_no_module_comes_with_the_star():
    assert not [name for name, obj in STAR.items() if inspect.ismodule(obj)]


def test_no_name_of_pythons_or_fastais_is_shadowed():
    known = vars(fastai.vision.all) | vars(builtins)
    shadowed = [name for name, obj in STAR.items() if name in known and known[name] is not obj]
    assert not shadowed
    assert not set(STAR) & set(sys.stdlib_module_names)


def test_other_trainers_are_not_imported_with_sdfast():
    names = ['lightning', 'pytorch_lightning', 'transformers', 'datasets', 'webdataset']
    script = f'import sys, sdfast.all; print([n for n in {names} if n in sys.modules])'
    run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '[]'
