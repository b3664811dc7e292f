"""Runs as pure functions of a `Run`, and the comparison of strategies made of them.

A study's folder holds `source/<key>/`, the model before fine-tuning, and `runs/<key>/`: `run.json`, `epochs.csv`, `scores.csv`
(answers on the target's test videos), `source_scores.csv` (the old head's on the source's; before fine-tuning they are in
`source/<key>/scores.csv`), `kept.json` and `curve.csv` (what was kept, and its course; all of final runs only), `log.txt` and,
written last, `result.json`, which has the digests of the others. Finished runs are skipped; one whose process died goes on from its last
finished epoch (`resume.Resume`); one whose files are damaged is done again. Strengths are chosen on valid parts; only final runs
read test."""
import json
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from fastai.torch_core import rank_distrib
from safetensors import safe_open
from safetensors.torch import load_file, save

from ..errors import Damaged, StoreError
from ..metrics.columns import COLUMNS, RETENTION_COLUMNS
from ..runtime import store
from ..runtime.distributed import from_rank0
from ..runtime.progress import Progress
from ..strategies.importance import Importance
from .config import Run, hash_fields

__all__ = ['finished']

LASTING = ('ok', 'diverged')  # results that another try would not change


def source_folder(run, out): return Path(out)/'source'/run.source_key


def reference_file(run, out): return source_folder(run, out)/f'reference-{hash_fields(dict(others=run.others, barrier=run.with_barrier))}.json'


def read_reference(run, out, progress):
    file = reference_file(run, out)
    return (d := read_sealed(file.parent, file.name, progress, 'measured again')) and dict(id=d['id'], reference=d['reference'])


def write_reference(run, out, source, task):
    "What the untouched encoder scores, sealed with its answers; those that another of the references is sealed with stay"
    file = reference_file(run, out)
    scores = file.parent/'scores.csv'
    def other(f):
        try: store.verify(f.parent, files := store.read_json(f)['files'])
        except (Damaged, OSError): return False
        return scores.name in files
    if not any(other(f) for f in file.parent.glob('reference-*.json')): write_answers(source.retention.reference.answers, task, scores)
    store.write_json(file, dict(id=source.id, reference=source.reference, files={scores.name:store.digest(scores)}))


def dump_importance(imp):
    return save({f'{part}.{k}':v.detach().cpu().contiguous() for part in ('diag', 'anchor') for k, v in getattr(imp, part).items()}, dict(n=str(imp.n)))


def load_importance(file):
    d = load_file(file)
    with safe_open(file, 'pt') as f: n = int((f.metadata() or {}).get('n', 0))
    return Importance(*({k.removeprefix(f'{part}.'):v for k, v in d.items() if k.startswith(f'{part}.')} for part in ('diag', 'anchor')), n)


def load_path_integral(folder): return load_importance(folder/'path.safetensors') if (folder/'path.safetensors').exists() else None


def versions(): return dict(versions={n:version(n) for n in ('sdfast', 'torch', 'fastai', 'av')}, python=sys.version.split()[0], threads=torch.get_num_threads())


def claim_folder(folder, progress, wait=True):
    "`store.claim` by the first of the processes that train together"
    @contextmanager
    def together():
        claim = nullcontext() if rank_distrib() else store.claim(folder, wait, progress.say)
        from_rank0(claim.__enter__)
        try: yield folder
        finally: claim.__exit__(None, None, None)
    return together()


def read_sealed(folder, name, progress, then):
    "What the sealed file says that is written last, if all that it names is as it was; else `None`, and the reader is told of damage"
    try:
        d = store.read_json(folder/name)
        store.verify(folder, d['files'])
        return d
    except FileNotFoundError: return None
    except Damaged as e: progress.say(f'{e}; it is {then}')


def finished(
    run:Run, # What was done
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Is told what is damaged
    since:float|None=None, # Failures from before this time, in seconds since the epoch, do not count: their cause may be gone. `None`: none counts
)->dict|None: # A row with the fields of `COLUMNS`, and `anchor`
    "What a run found, if it is finished and its files are what they were. Raises `StoreError` if the folder is another run's"
    folder = Path(out)/'runs'/run.key
    if (d := read_sealed(folder, 'result.json', progress, 'done again')) is None: return None
    if store.read_json(folder/'run.json') != json.loads(json.dumps(asdict(run))): raise StoreError(f'{folder} is of another run; take another folder for this study')
    if d['status'] in LASTING or since is not None and d['ended'] >= since: return {c:d.get(c) for c in [*COLUMNS, 'anchor']}


def write_epochs(learn, folder, names=None):
    log = pd.DataFrame(list(learn.recorder.values), columns=[(names or {}).get(n, n) for n in learn.recorder.metric_names[1:] if n != 'time'])
    store.write(folder/'epochs.csv', log.rename_axis('epoch').to_csv())


def retention_columns(kept): return {k:v for k, v in kept.items() if k in RETENTION_COLUMNS}


def write_answers(probs, task, file):
    "Path, label and class probabilities of each test video"
    scores = pd.DataFrame(probs.numpy(), columns=task.vocab)
    paths, labels = zip(*task.items('test'))
    scores.insert(0, 'path', paths)
    scores.insert(1, 'label', labels)
    store.write(file, scores.to_csv(index=False, float_format='%.6g'))
