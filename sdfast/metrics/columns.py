"""The table of measures: what each is called, in which unit it is shown, and whether more of it is better.

Rows of runs, tables, plots and the page read it. To add a measure, compute it in `Retention` and add its row here."""
from dataclasses import dataclass

__all__ = ['Measure', 'MEASURES', 'COLUMNS', 'RETENTION_COLUMNS', 'REPORTED', 'TABLE_COLUMNS', 'measure_title']


@dataclass(frozen=True)
class Measure:
    "One measure of a run"
    column: str  # in runs.csv, table.csv and kept.json
    title: str  # in tables and plots
    share: bool = False  # a fraction: shown in %, differences in points
    more_is_better: bool = True  # the direction of a verdict
    in_table: bool = True  # shown in the main tables; the others are in table.csv and in the page's second table
    held_out: bool = False  # measured on the source's valid part, to choose strengths by; no table shows it

    @property
    def scale(self)->int:
        "By which a value is multiplied when it is shown"
        return 100 if self.share else 1

    @property
    def digits(self)->int:
        "Decimals when it is shown"
        return 1 if self.share else 3

    @property
    def unit(self)->str: return '%' if self.share else ''


MEASURES = {m.column:m for m in (
    Measure('acc1', 'target acc@1', share=True),
    Measure('acc5', 'target acc@5', share=True, in_table=False),
    Measure('source_acc', 'source, old head', share=True),
    Measure('source_acc_bn', 'old head, BN recomputed', share=True),
    Measure('source_probe', 'source, new probe', share=True),
    Measure('source_knn', 'source, kNN', share=True),
    Measure('r1', 'source, R@1', share=True, in_table=False),
    Measure('r5', 'source, R@5', share=True, in_table=False),
    Measure('r10', 'source, R@10', share=True, in_table=False),
    Measure('r20', 'source, R@20', share=True, in_table=False),
    Measure('r50', 'source, R@50', share=True, in_table=False),
    Measure('other_probe', 'other tasks, new probe', share=True),
    Measure('cka', 'CKA'),
    Measure('procrustes', 'Procrustes distance', more_is_better=False, in_table=False),
    Measure('drift', 'drift', more_is_better=False),
    Measure('weight_distance', 'weight distance', more_is_better=False, in_table=False),
    Measure('barrier', 'barrier', more_is_better=False),
    Measure('valid_source_acc', 'source, old head, on valid', share=True, in_table=False, held_out=True),
    Measure('valid_source_probe', 'source, new probe, on valid', share=True, in_table=False, held_out=True),
)}

RETENTION_COLUMNS = [c for c in MEASURES if c not in ('acc1', 'acc5')]  # what `Retention` measures
REPORTED = [c for c, m in MEASURES.items() if not m.held_out]
TABLE_COLUMNS = [c for c, m in MEASURES.items() if m.in_table]

# the columns of runs.csv, in this order
COLUMNS = ['key', 'task', 'source', 'model', 'strategy', 'strategy_args', 'lam', 'seed', 'epochs', 'lr', 'valid_acc1', 'acc1', 'acc5',
           *RETENTION_COLUMNS, 'select', 'best_epoch', 'best_valid_acc1', 'best_acc1', 'best_acc5', 'seconds', 'status', 'error', 'final',
           'chosen']


def measure_title(
    column:str, # Of `MEASURES`, or any other name
)->str: # The name itself where it is no measure
    "A measure as tables and plots name it"
    return MEASURES[column].title if column in MEASURES else column
