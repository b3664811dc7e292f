"A line of output at least every two seconds, also while a library works. It imports nothing that takes time."
import sys
import threading
import time

__all__ = ['Heartbeat']


class Heartbeat:
    "Context that prints what is being done, and while nothing new begins, for how long it has been: `beat.say('...')`"
    def __init__(self,
        every:float=2., # Seconds without other output after which a line is printed
        in_logs:bool=True, # Also where the output is not a terminal
    ):
        self.every, self.what = every, ''
        self.started = self._printed = time.monotonic()
        self._ended, self._lock = threading.Event(), threading.RLock()  # lines of two threads must not mix
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._terminal = sys.stdout is not None and sys.stdout.isatty()
        self._beats = in_logs or self._terminal

    def __enter__(self)->'Heartbeat':
        if self._beats: self._thread.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        if self._beats: self._thread.join()
        if self._terminal: self._print('', end='')

    def say(self,
        what:str, # What begins now
    )->None:
        "Print what begins now"
        with self._lock:
            self.what, self.started = what, time.monotonic()
            self._print(what)

    def _beat(self):
        while not self._ended.wait(self.every/10):
            with self._lock:
                now = time.monotonic()
                if not self.what or now - self._printed < .8*self.every: continue
                text = f'{self.what} ({now - self.started:.0f} s)'
                self._print(text, end='' if self._terminal else '\n')

    def _print(self, text, end='\n'):
        "On a terminal, the line of the last beat is written over"
        self._printed = time.monotonic()
        print(f'\r\x1b[2K{text}' if self._terminal else text, end=end, flush=True)
