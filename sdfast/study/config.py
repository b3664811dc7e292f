"""Runs as pure functions of a `Run`, and the comparison of strategies made of them.

A study's folder holds `source/<key>/`, the model before fine-tuning, and `runs/<key>/`: `run.json`, `epochs.csv`, `scores.csv`
(answers on the target's test videos), `source_scores.csv` (the old head's on the source's; before fine-tuning they are in
`source/<key>/scores.csv`), `kept.json` and `curve.csv` (what was kept, and its course; all of final runs only), `log.txt` and,
written last, `result.json`, which has the digests of the others. Finished runs are skipped; one whose process died goes on from its last
finished epoch (`resume.Resume`); one whose files are damaged is done again. Strengths are chosen on valid parts; only final runs
read test."""
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import InputError

__all__ = ['RSPNET', 'Run', 'file_id']

QUICK = dict(train=12, valid=8, test=6)
# fields of a `Run` under the protocol of RSPNet's code (commit e069052), for both encoders and data sets
RSPNET = dict(frames=16, stride=1, size=112, clips=10, area=.25, flip=True, wrap=True, wd=1e-4, schedule='epoch_cosine', epochs=100)


@dataclass(frozen=True)
class Run:
    "All that decides a run's numbers; equal runs have equal `key`s"
    task: str = 'moving_digits'  # see `create_task`
    source: str = 'moving_digits'  # what is not to be forgotten, see `create_task`; none if empty
    data: str = ''  # fingerprints of both: changed files are another run
    model: str = 'tiny'  # see `create_model`
    model_args: str = ''  # for the model's constructor, `name=value,...`
    init: str|None = None  # weights before the source stage
    strategy: str = 'finetune'  # one of `STRATEGIES`
    strategy_args: str = ''  # for its callbacks, `name=value,...`
    lam: float = 0.  # its strength
    seed: int = 0  # of head, data order, clips and augmentation
    epochs: int = 12  # of fine-tuning
    lr: float = .05  # learning rate at the start
    schedule: str = 'cosine'  # see `learning_rates`
    wd: float = 0.  # L2 regularisation of all parameters
    bs: int = 32  # batch size, over all processes
    frames: int = 8  # in a clip
    stride: int = 1  # frames of the video from one of the clip to the next
    size: int = 40  # side of the square in pixels
    area: float = 0.  # smallest part of the frame that a training crop covers; 0: a square of the scaled frame
    flip: bool = False  # mirror half of the training clips
    wrap: bool = False  # a short video begins again instead of repeating its last frame
    clips: int = 1  # of each test video; the valid part is seen by its middle clip
    valid_frac: float = .2  # of train, held out by group where there is no valid part; 0: train on all
    select: str = 'last'  # the epoch to measure: the last, the best on 'valid', or 'paper': the last, and beside it the best on test (not honest)
    patience: int = 0  # stop after so many epochs without a better accuracy on valid; 0: never
    workers: int = 0  # processes that load clips
    source_epochs: int = 6  # of training on the source
    source_lr: float = .1  # learning rate of it
    source_bs: int = 32  # batch size of it
    source_valid: bool = False  # hold out a part of the source, too, to choose strengths by what was kept
    others: str = ''  # other tasks to probe, joined by `;`
    with_barrier: bool = False  # measure the loss on the way from the weights before
    processes: int = 1  # that train together on each batch, under torchrun
    quick: bool = False  # use only `QUICK` clips of each class
    final: bool = False  # reads test and measures retention; a trial does neither

    def __post_init__(self):
        if self.select == 'test': raise InputError("choosing an epoch on test is not honest: select='valid' chooses on held-out groups of train; for the "
                                                   "paper's protocol, labelled as such beside the last epoch, select='paper'")
        if self.select not in ('last', 'valid', 'paper'): raise InputError(f"select must be last, valid or paper, not {self.select!r}")
        if self.bs % self.processes or self.source_bs % self.processes: raise InputError(f'batches of {self.bs} and {self.source_bs} cannot be dealt out to {self.processes} processes alike')
        if self.patience < 0: raise InputError(f'patience must be at least 0 epochs, not {self.patience}')

    @property
    def key(self)->str: return hash_fields(asdict(self))

    @property
    def source_key(self)->str:
        "Of what decides the model before fine-tuning"
        names = 'source data model model_args init frames stride size area flip wrap clips workers source_epochs source_lr source_bs source_valid processes quick'
        return hash_fields({n:getattr(self, n) for n in names.split()})

    @property
    def stage(self)->str: return 'final' if self.final else 'trial'

    def options(self, field:str='model_args')->dict:
        "`model_args` or `strategy_args` as keyword arguments"
        pairs = [a.split('=', 1) for a in filter(None, getattr(self, field).split(','))]
        if bad := [p for p in pairs if len(p) < 2]: raise InputError(f'{field} must be name=value,..., not {bad[0][0]!r}')
        def value(v):
            try: return json.loads(v)
            except ValueError: return v
        return {k:value(v) for k, v in pairs}


def hash_fields(d): return hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()[:12]


def file_id(
    path:str|Path, # A file; `None` and `pretrained` are none
)->str: # Of SHA-256
    "Sixteen hex digits of a file's content, '' without a file"
    if path in (None, 'pretrained'): return ''
    with open(path, 'rb') as f: return hashlib.file_digest(f, 'sha256').hexdigest()[:16] if hasattr(hashlib, 'file_digest') else hashlib.sha256(f.read()).hexdigest()[:16]
