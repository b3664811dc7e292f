"How loops report their progress"
import io
import sys

from sdfast.runtime import progress
from sdfast.runtime.progress import Progress, begin_phase, listening, track


class Stream:
    "As the loader of a PyTorch `IterableDataset` is"
    def __iter__(self): return iter([7])
    def __len__(self): raise TypeError('object of type IterableDataset has no len()')


class Recorder(Progress):
    def __init__(self): self.heard = []
    def phase(self, what, done=0.): self.heard.append((what, done))


def test_a_listener_hears_of_loops():
    recorder = Recorder()
    with listening(recorder):
        assert list(track([5, 6, 7, 8], 'measuring')) == [5, 6, 7, 8]
        assert list(track(iter('ab'), 'counting')) == ['a', 'b']  # of unknown length
        assert list(track(iter('ab'), 'known', 2)) == ['a', 'b']
        assert list(track(Stream(), 'streaming')) == [7]
        begin_phase('reading test')
    list(track([1], 'nobody listens'))
    begin_phase('nobody listens')
    shares = [('measuring', i/4) for i in range(5)]
    assert recorder.heard == [*shares, ('counting', 0), ('known', 0), ('known', .5), ('known', 1), ('streaming', 0),
                              ('reading test', 0)]


def test_the_inner_listener_hears_and_the_outer_one_again_after_it():
    outer, inner = Recorder(), Recorder()
    with listening(outer):
        with listening(inner): begin_phase('one')
        begin_phase('two')
    assert inner.heard == [('one', 0)] and outer.heard == [('two', 0)]


class Terminal(io.StringIO):
    def isatty(self): return True


def test_a_slow_loop_shows_a_bar_in_a_terminal(monkeypatch):
    monkeypatch.setenv('TERM', 'xterm')
    for stream, slow, shown in ((Terminal(), 0., True), (Terminal(), 60., False), (io.StringIO(), 0., False)):
        monkeypatch.setattr(progress, 'SLOW', slow)
        monkeypatch.setattr(sys, 'stdout', stream)
        assert sum(track(range(4), 'measuring')) == 6
        assert ('measuring' in stream.getvalue()) == shown


def test_a_loop_that_is_left_ends_its_bar(monkeypatch):
    monkeypatch.setattr(progress, 'SLOW', 0.)
    monkeypatch.setattr(sys, 'stdout', Terminal())
    for item in track(range(9), 'measuring'):
        if item == 3: break
    assert item == 3
