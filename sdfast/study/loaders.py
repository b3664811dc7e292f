"""Runs as pure functions of a `Run`, and the comparison of strategies made of them.

A study's folder holds `source/<key>/`, the model before fine-tuning, and `runs/<key>/`: `run.json`, `epochs.csv`, `scores.csv`
(answers on the target's test videos), `source_scores.csv` (the old head's on the source's; before fine-tuning they are in
`source/<key>/scores.csv`), `kept.json` and `curve.csv` (what was kept, and its course; all of final runs only), `log.txt` and,
written last, `result.json`, which has the digests of the others. Finished runs are skipped; one whose process died goes on from its last
finished epoch (`resume.Resume`); one whose files are damaged is done again. Strengths are chosen on valid parts; only final runs
read test."""
from functools import lru_cache

from ..data.datasets import create_task
from ..data.decoded import decoded_folder
from ..models.encoders import model_stats
from .config import QUICK

PROBE_CLIPS, FISHER_CLIPS = 1200, 500  # of the source's train part, classes balanced


@lru_cache(maxsize=8)
def load_data(spec, part, quick, frames, stride, size, area, flip, wrap, clips, held, bs, workers, model):
    "`(task, dls, loader of test)`, kept so that runs of one process share decoded videos"
    task = create_task(spec, part)
    if held: task = task.hold_out(held)
    if quick: task = task.subset(**QUICK)
    def dls(bs, k): return task.dls(frames, stride, size, bs, k, workers, stats=model_stats(model), area=(area, 1.) if area else None, flip=flip, wrap=wrap, decoded=decoded_folder())
    train = dls(bs, 1)
    return task, train, task.dl(train if clips == 1 else dls(max(1, 2*bs//clips), clips), 'test')


def load_part(run, spec, part, bs, held=0.):
    return load_data(spec, part, run.quick, run.frames, run.stride, run.size, run.area, run.flip, run.wrap, run.clips, held, bs//run.processes, run.workers, run.model)


def target_data(run): return load_part(run, run.task, 'target', run.bs, run.valid_frac)


def source_data(run): return load_part(run, run.source, 'source', run.source_bs, .2*run.source_valid)


def balanced_loader(task, dls, n):
    "Loader of about `n` train clips, classes balanced, without augmentation"
    return task.subset(train=-(-n//len(task.vocab))).dl(dls, 'train')
