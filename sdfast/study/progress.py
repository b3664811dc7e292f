"The live view of a study: progress bars in a terminal, else one line for each run."
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ..runtime.output import make_console
from ..runtime.progress import Progress, listening
from ..strategies.registry import STRATEGIES
from .config import Run

__all__ = ['LiveProgress', 'run_cost', 'run_name']

FINAL_COST = 4  # approximate cost, in epochs, of reading test and measuring retention
SHOWN = 3  # largest number of runs of other processes to name


class LiveProgress(Progress):
    "A progress bar for the study and one for the current run; a line for each run if the output is not a terminal"

    def __init__(self,
        console:Console|None=None, # Of rich, changed by `make_console`; `None`: standard output
    ):
        self.console = make_console(console)
        self.bars = Bars(SpinnerColumn(), TextColumn('{task.description}'), BarColumn(20),
                         TextColumn('{task.fields[where]}'), TimeElapsedColumn(), TextColumn('left'),
                         TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal)

        self.study = self.bars.add_task('study', total=None, where='', visible=False)
        self.now = self.bars.add_task('', total=None, where='', visible=False)
        self.part = self.bars.add_task('', total=1, where='', visible=False)
        self.planned = False
        self.what = ''  # the current phase, shown by the bar `part`

    def __enter__(self):
        self.bars.start()
        self.listening = listening(self)
        self.listening.__enter__()
        return self

    def __exit__(self, *error):
        self._end_phase()
        self.listening.__exit__(*error)
        self.bars.stop()

    def plan(self, runs:list)->None:
        self.n, self.ended, self.failed, self.best, self.planned = len(runs), 0, 0, None, True
        total = sum(run_cost(asdict(r)) for r in runs)
        self.bars.reset(self.study, total=total, where=f'0/{self.n} runs', visible=True)

    def start(self, what:Run|str, epochs:int)->None:
        self.epochs = max(1, epochs)
        name = what if isinstance(what, str) else run_name(asdict(what))
        self._end_phase()
        self.bars.reset(self.now, description=name, total=self.epochs, where='', visible=True)
        if isinstance(what, str) and not self.console.is_terminal: self.say(f'{what}: {epochs} epochs')

    def epoch(self, epoch:int, done:float)->None:
        self._end_phase()
        self.bars.update(self.now, completed=epoch + done, where=f'epoch {epoch + 1}/{self.epochs}')

    def phase(self, what:str, done:float=0.)->None:
        if what != self.what:
            self.what = what
            self.bars.reset(self.part, description=what, total=1, where='', visible=True)
            # a log has a line for each run, and one for each phase before the first run
            if not self.planned and not self.console.is_terminal: self.say(what)
        self.bars.update(self.part, completed=done, where=f'{done:.0%}')

    def _end_phase(self):
        if self.what: self.bars.update(self.part, visible=False)
        self.what = ''

    def running(self, pieces:list)->None:
        if not self.console.is_terminal: return
        text = '; '.join(f'{run_name(asdict(run))}: {done}/{run.epochs}' for run, done in pieces[:SHOWN])
        if len(pieces) > SHOWN: text += f' and {len(pieces) - SHOWN} more'
        name = f'{len(pieces)} running' if pieces else 'workers start'
        epochs, done = sum(run.epochs for run, _ in pieces), sum(n for _, n in pieces)
        self.bars.reset(self.now, description=name, total=max(1, epochs), completed=done, where=text, visible=True)

    def done(self, row:dict, skipped:bool=False)->None:
        self._end_phase()
        ok = row['status'] == 'ok'
        self.ended += 1
        if not ok: self.failed += 1
        elif row['valid_acc1'] is not None: self.best = max(self.best or 0., row['valid_acc1'])
        self.bars.update(self.study, advance=run_cost(row), where=self._summary())
        line = f'{self.ended}/{self.n} {run_name(row)}: '
        if not ok: self.say(f'{line}{row["status"]}: {row["error"]}')
        elif not self.console.is_terminal: self.say(line + _result_text(row, skipped))

    def _summary(self):
        text = f'{self.ended}/{self.n} runs'
        if self.failed: text += f', {self.failed} failed'
        if self.best is not None: text += f', best on valid {self.best:.1%}'
        return text

    def say(self, text:str)->None: self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _result_text(row, skipped):
    "A run's accuracies, and how long it took"
    columns = dict(valid='valid_acc1', test='acc1', source='source_acc')
    text = ', '.join(f'{name} {row[c]:.1%}' for name, c in columns.items() if row[c] is not None)
    return f'{text} (finished before)' if skipped else f'{text}, {row["seconds"]:.1f} s'


def run_cost(
    run:dict, # Fields of a `Run`
)->int: # In epochs
    "Approximate duration of a run; final runs also read test and measure retention"
    return run['epochs'] + FINAL_COST*run['final']


def run_name(
    run:dict, # Fields of a `Run`
)->str: # One line
    "A run for the reader: strategy, strength, seed and stage"
    has_strength = run['strategy'] in STRATEGIES and STRATEGIES[run['strategy']].lams
    strength = f'λ {run["lam"]:g}' if has_strength else f'lr {run["lr"]:g}'
    return f'{run["strategy"]} {strength}, seed {run["seed"]}, {"final" if run["final"] else "trial"}'
