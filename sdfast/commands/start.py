"The start of a command: Ctrl-C is one line from the first moment, as is wrong use, and no output can end it."
import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .heartbeat import Heartbeat

__all__ = ['start', 'run', 'run_command', 'loading']


def start()->None:
    """Make Ctrl-C end this process with one line and status 130, and protect its output, see `protect_output`.

    To be called by a script before it imports anything that takes time. `one_line_errors` takes Ctrl-C over."""
    # where Ctrl-C is ignored, as in the background, it stays so
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler: signal.signal(signal.SIGINT, stop)
    from ..runtime.output import protect_output  # it imports rich, which takes time
    protect_output()


def stop(*_)->None:
    "Handle Ctrl-C where there is nothing to finish: say so and exit, also in the middle of an import"
    # not `print`, which a signal may interrupt, and not an exception, which some libraries swallow or wrap
    with suppress(Exception): sys.stdout.flush()
    with suppress(OSError): os.write(2, f'{os.path.basename(sys.argv[0])}: stopped\n'.encode(errors='replace'))
    os._exit(130)


def _one_line(parser, message):
    parser.exit(2, f'{os.path.basename(sys.argv[0])}: {" ".join(message.split())}; see --help\n')


@contextmanager
def loading()->Iterator[None]: # Context manager
    "Say, during the imports that take seconds, that a command with correct arguments has started"
    if os.environ.get('RANK', '0') != '0':
        yield
        return
    with Heartbeat(in_logs=False) as beat:
        beat.say('loading PyTorch and fastai')
        yield


def run(
    command:str, # Name of a module of `sdfast.commands`
)->None: # It reads the command line
    "Run a command as the script of this process"
    start()
    run_command(command)


def run_command(
    command:str, # As for `run`
)->None: # After `start`
    "Run a command in this process"
    argparse.ArgumentParser.error = _one_line  # type: ignore[method-assign]  # it would print the usage as well
    from runpy import run_module
    run_module(f'sdfast.commands.{command}', run_name='__main__')
