"""The table of measures: names, explanations, display format, and whether more is better.

Rows of runs, `RetentionScores`, tables, plots and the page read it. To add a measure, compute it in `Retention` and
add a row to `MEASURES`."""
from dataclasses import dataclass

__all__ = ['Measure', 'MEASURES', 'AUDIT_MEASURES', 'COLUMNS', 'RETENTION_COLUMNS', 'REPORTED', 'TABLE_COLUMNS',
           'measure_title']


@dataclass(frozen=True)
class Measure:
    "One measure of a run, a row of `MEASURES`"
    column: str  # its name in runs.csv, table.csv, kept.json and `RetentionScores`
    title: str  # its name in tables and plots
    about: str  # explanation
    share: bool = False  # whether it is a fraction from 0 to 1, shown in %, with differences in points
    more_is_better: bool = True  # direction of verdicts
    target: bool = False  # measured on the target task; `Retention` measures all others
    in_runs: bool = True  # a column of runs.csv; the others are in kept.json only
    in_table: bool = True  # shown in the main tables; the others are in table.csv and in the page's second table
    held_out: bool = False  # measured on the source's valid part, to choose strengths; not shown in any table
    compares: bool = False  # compares an encoder with the untouched one, so that its value is a change already
    clips: str = 'source_clips'  # column of runs.csv with the number of clips that it is measured on; '' for none

    @property
    def scale(self)->int:
        "Factor by which a value is multiplied when it is shown"
        return 100 if self.share else 1

    @property
    def digits(self)->int:
        "Decimals of a value when it is shown"
        return 1 if self.share else 3

    @property
    def unit(self)->str: return '%' if self.share else ''


def _table(*measures): return {m.column:m for m in measures}


MEASURES = _table(
    Measure('acc1', 'target acc@1', 'accuracy on the target task', share=True, target=True, clips='test_clips'),
    Measure('acc5', 'target acc@5', 'share of videos whose label is among the five most likely classes', share=True,
            target=True, in_table=False, clips='test_clips'),
    Measure('source_acc', 'source, old head', 'accuracy with the head that was trained on the untouched encoder',
            share=True),
    Measure('source_acc_bn', 'old head, BN recomputed', 'the same, with batch-norm statistics of source clips',
            share=True),
    Measure('source_probe', 'source, new probe', "accuracy of a linear probe on this encoder's features", share=True),
    Measure('source_knn', 'source, kNN', "accuracy of the nearest neighbours in this encoder's features", share=True),
    Measure('r1', 'source, R@1', 'share of test clips whose nearest train clip is of their class', share=True,
            in_table=False),
    Measure('r5', 'source, R@5', 'the same for one of the 5 nearest', share=True, in_table=False),
    Measure('r10', 'source, R@10', 'the same for one of the 10 nearest', share=True, in_table=False),
    Measure('r20', 'source, R@20', 'the same for one of the 20 nearest', share=True, in_table=False),
    Measure('r50', 'source, R@50', 'the same for one of the 50 nearest', share=True, in_table=False),
    Measure('other_probe', 'other tasks, new probe', "mean accuracy of linear probes on the other tasks", share=True,
            clips='other_clips'),
    # what `Retention(extra=...)` measures
    Measure('source_probe_tuned', 'source, tuned probe', "accuracy of a linear probe on this encoder's features whose "
            'regularisation was chosen on held-out source clips', share=True, in_table=False),
    Measure('source_knn_tuned', 'source, tuned kNN', 'accuracy of nearest neighbours whose number was chosen on them',
            share=True, in_table=False),
    Measure('source_attentive', 'source, attentive probe', "accuracy of a probe that attends to this encoder's tokens",
            share=True, in_table=False),
    # `cka` in the runs.csv of older studies is by the biased estimator: no report reads it
    Measure('cka_unbiased', 'CKA', "linear CKA (HSIC_1) with the untouched encoder's features; 1: unchanged, "
            '0: unrelated', compares=True),
    Measure('procrustes', 'Procrustes distance', 'distance to them; 0: unchanged up to rotation and scale',
            more_is_better=False, in_table=False, compares=True),
    Measure('drift', 'drift', 'relative distance to them; 0: unchanged', more_is_better=False,
            compares=True),
    Measure('weight_distance', 'weight distance', 'relative distance of the weights; 0: unchanged',
            more_is_better=False, in_table=False, compares=True, clips=''),
    Measure('barrier', 'barrier', "of the old head's loss between untouched and tuned weights; 0: same basin",
            more_is_better=False, compares=True),
    Measure('kl', 'KL', "Kullback-Leibler divergence of the old head's answers from those on the untouched encoder; "
            '0: unchanged', more_is_better=False, in_runs=False, in_table=False, compares=True, clips=''),
    Measure('pretext', 'pretext loss', 'loss of the task on which the encoder was pre-trained without labels',
            more_is_better=False, in_runs=False, in_table=False, clips=''),
    Measure('valid_source_acc', 'source, old head, on valid', 'accuracy on a held-out part of the source', share=True,
            in_table=False, held_out=True, clips=''),
    Measure('valid_source_probe', 'source, new probe, on valid', 'accuracy of a linear probe on that part', share=True,
            in_table=False, held_out=True, clips=''),
)

# what audits measure in addition
AUDIT_MEASURES = MEASURES | _table(
    Measure('neighbours', 'neighbours kept', "share of a clip's 10 nearest clips in the untouched encoder's features "
            'that are among its 10 nearest still', share=True, compares=True))

# what `Retention` measures and runs.csv has
RETENTION_COLUMNS = [c for c, m in MEASURES.items() if m.in_runs and not m.target]
# what the page and summaries report
REPORTED = [c for c, m in MEASURES.items() if m.in_runs and not m.held_out]
# what the main tables show
TABLE_COLUMNS = [c for c, m in MEASURES.items() if m.in_table]

# numbers of clips: of the target's valid and test part, of the source's test part, of the other tasks' test parts
CLIP_COLUMNS = ['valid_clips', 'test_clips', 'source_clips', 'other_clips']
# what runs.csv has of `RetentionScores.about`; chance is the share of the source's most frequent class
ABOUT_COLUMNS = ['source_clips', 'other_clips', 'source_chance']

# the columns of runs.csv, in this order
COLUMNS = ['key', 'task', 'source', 'model', 'strategy', 'strategy_args', 'lam', 'seed', 'epochs', 'lr', 'valid_acc1',
           'acc1', 'acc5', *RETENTION_COLUMNS, *CLIP_COLUMNS, 'source_chance', 'select', 'best_epoch',
           'best_valid_acc1', 'best_acc1', 'best_acc5', 'seconds', 'status', 'error', 'final', 'chosen']


def measure_title(
    column:str, # A column of `MEASURES`, or any other name
)->str: # `column` itself if it is not a measure
    "The title of a measure in tables and plots"
    return MEASURES[column].title if column in MEASURES else column
