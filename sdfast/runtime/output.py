"Text output that never ends the work it reports on."
import atexit
import os
import sys
from contextlib import suppress
from typing import Any

from rich.console import Console

__all__ = ['make_console']


class Unfailing:
    """A text stream that raises no error: what cannot be written is lost, and a letter that its encoding lacks is `?`.

    A full disk, a closed stream and a reader that has gone (`| head`) are no reason to lose hours of training."""
    def __init__(self,
        stream:Any=None, # Text stream to write to; `None`: what `sys.stdout` is at the time
    ): self._stream = stream

    @property
    def stream(self)->Any:
        "The stream below; not the one by which rich redirects `sys.stdout` to a console, which may be ours"
        if self._stream is not None: return self._stream
        return getattr(sys.stdout, 'rich_proxied_file', sys.stdout)

    def __getattr__(self, name): return getattr(self.stream, name)

    def write(self, text:str)->int:
        with suppress(OSError, ValueError, AttributeError):  # `sys.stdout` is `None` where it is closed
            try: self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding or 'ascii'
                self.stream.write(text.encode(encoding, 'replace').decode(encoding))
        return len(text)

    def writelines(self, lines):
        for line in lines: self.write(line)

    def flush(self)->None:
        with suppress(OSError, ValueError, AttributeError): self.stream.flush()

    def isatty(self)->bool:
        with suppress(OSError, ValueError, AttributeError): return self.stream.isatty()
        return False


def make_console(
    console:Console|None=None, # Of rich, which is changed; `None`: a new one on standard output
)->Console: # Prints to it never fail
    "A console whose output never ends a study"
    if console is None: return Console(file=Unfailing())  # type: ignore[arg-type]
    if not isinstance(console.file, Unfailing): console.file = Unfailing(console.file)  # type: ignore[assignment]
    return console


def protect_output()->None:
    "Let no output of this process fail: `print`, warnings, tracebacks, and what is flushed at its end"
    # else the next file that is opened would get the number of a closed stream, and be written to by its users
    for fd in range(3):
        try: os.fstat(fd)
        except OSError: os.open(os.devnull, os.O_RDWR)
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if isinstance(stream, Unfailing): continue
        setattr(sys, name, Unfailing(open(os.devnull, 'w') if stream is None else stream))
    atexit.register(_drain)


def _drain():
    "Write what is buffered, or drop it: the interpreter would end with status 120 if its own last flush failed"
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None: continue
        try: stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError): os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
