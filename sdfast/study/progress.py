"Rows of runs to a table (terminal, Markdown, csv) and a figure; and the live view of a study at work."
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from ..runtime.progress import Progress
from ..strategies.registry import STRATEGIES

__all__ = ['LiveProgress', 'run_cost', 'run_name']



class LiveProgress(Progress):
    "A progress bar over the study and one over the run at work; a line a run where the output is no terminal"

    def __init__(self,
        console:Console|None=None, # Of rich; standard output by default
    ):
        self.console = console or Console()
        self.bars = Bars(SpinnerColumn(), TextColumn('{task.description}'), BarColumn(20), TextColumn('{task.fields[where]}'),
                             TimeElapsedColumn(), TextColumn('left'), TimeRemainingColumn(), console=self.console, disable=not self.console.is_terminal)

    def __enter__(self):
        self.bars.start()
        return self

    def __exit__(self, *_): self.bars.stop()

    def plan(self, runs:list)->None:
        self.n, self.ended, self.failed, self.best = len(runs), 0, 0, None
        self.study = self.bars.add_task('study', total=sum(run_cost(asdict(r)) for r in runs), where=f'0/{self.n} runs')
        self.now = self.bars.add_task('', total=1, where='')

    def start(self, what:object, epochs:int)->None:
        self.epochs = max(1, epochs)
        self.bars.reset(self.now, description=what if isinstance(what, str) else run_name(asdict(what)), total=self.epochs, where='')
        if not self.console.is_terminal and isinstance(what, str): self.say(f'{what}: {epochs} epochs')

    def epoch(self, epoch:int, done:float)->None: self.bars.update(self.now, completed=epoch + done, where=f'epoch {epoch + 1}/{self.epochs}')

    def running(self, pieces:list)->None:
        if not self.console.is_terminal: return
        text = '; '.join(f'{run_name(asdict(run))}: {n}/{run.epochs}' for run, n in pieces[:3]) + (f' and {len(pieces) - 3} more' if len(pieces) > 3 else '')
        self.bars.reset(self.now, description=f'{len(pieces)} running' if pieces else 'workers begin', total=max(1, sum(run.epochs for run, _ in pieces)), completed=sum(n for _, n in pieces), where=text)

    def done(self, row:dict, skipped:bool=False)->None:
        self.ended, self.failed = self.ended + 1, self.failed + (row['status'] != 'ok')
        if row['status'] == 'ok' and row['valid_acc1'] is not None: self.best = max(self.best or 0., row['valid_acc1'])
        where = f'{self.ended}/{self.n} runs' + (f', {self.failed} failed' if self.failed else '') + (f', best on valid {self.best:.1%}' if self.best is not None else '')
        self.bars.update(self.study, advance=run_cost(row), where=where)
        line = f'{self.ended}/{self.n} {run_name(row)}: '
        if row['status'] != 'ok': self.say(f'{line}{row["status"]}: {row["error"]}')
        elif not self.console.is_terminal:
            found = ', '.join(f'{name} {row[k]:.1%}' for name, k in dict(valid='valid_acc1', test='acc1', source='source_acc').items() if row[k] is not None)
            self.say(line + found + (' (finished before)' if skipped else f', {row["seconds"]:.1f} s'))

    def say(self, text:str)->None: self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def run_cost(
    run:dict, # Fields of a `Run`
)->int: # Epochs
    "What a run takes, in epochs: reading test and measuring retention takes about four"
    return run['epochs'] + 4*run['final']


def run_name(
    run:dict, # Fields of a `Run`
)->str: # One line
    "A run for the reader: strategy, strength, seed and stage"
    strength = f'λ {run["lam"]:g}' if run['strategy'] in STRATEGIES and STRATEGIES[run['strategy']].lams else f'lr {run["lr"]:g}'
    return f'{run["strategy"]} {strength}, seed {run["seed"]}, {"final" if run["final"] else "trial"}'
