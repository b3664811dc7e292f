"Checks that a process sees the videos that a run was made with, for instance on another machine."
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ..data.datasets import create_task
from ..data.task import Task
from ..errors import Damaged, InputError
from ..runtime import store
from .config import QUICK, Run
from .loaders import source_data, target_data

__all__ = ['check_data']

SHOWN = 10  # names in a message
FINGERPRINT = 16  # hexadecimal digits


def check_data(
    run:Run, # A run whose `data` has the fingerprints of its tasks; others are not checked
    out:str|Path, # Folder of the study
)->None:
    """Raise `InputError` if this process sees other videos than the process that made the run; names those missing.

    The first process that sees the right ones lists them in `out/data/FINGERPRINT.json`."""
    expected = [part for part in run.data.split('-') if _is_fingerprint(part)]
    if not expected: return
    for spec, part, seen in _tasks(run):
        own = [fingerprint for fingerprint in (t.fingerprint for t in seen) if fingerprint in expected]
        if not own: raise InputError(_difference(out, spec, part, seen, expected))
        task = next(t for t in seen if t.fingerprint == own[0])
        _write_list(_list_file(out, own[0]), spec, part, task)


def _is_fingerprint(text): return len(text) == FINGERPRINT and all(c in '0123456789abcdef' for c in text)


def _tasks(run)->Iterator[tuple[str, str, list[Task]]]:
    "Spec and part of each task, and the task as it is used and as a fingerprint may have been made of it"
    for spec, part, load in ((run.source, 'source', source_data), (run.task, 'target', target_data)):
        if spec: yield spec, part, [load(run)[0], *_variants(run, spec, part)]
    for spec in filter(None, run.others.split(';')): yield spec, 'target', _variants(run, spec, 'target')


def _variants(run, spec, part):
    whole = create_task(spec, part)
    return [whole, whole.subset(**QUICK)] if run.quick else [whole]


# ---- lists of videos

def _list_file(out, fingerprint): return Path(out)/'data'/f'{fingerprint}.json'


def _write_list(file, spec, part, task):
    if file.exists(): return
    file.parent.mkdir(parents=True, exist_ok=True)
    store.write_json(file, dict(spec=spec, part=part, videos=task.inventory))


def _read_list(out, spec, part, expected):
    "The videos that the run was made with; `None` if they were not listed"
    for fingerprint in expected:
        try: found = store.read_json(_list_file(out, fingerprint))
        except (FileNotFoundError, Damaged): continue
        if (found['spec'], found['part']) == (spec, part): return [tuple(video) for video in found['videos']]
    return None


def _difference(out, spec, part, seen, expected):
    "The message about a task whose videos differ"
    what = f'{spec}: this process sees other videos than the study was made with'
    remedy = 'make all of them visible here, or use another --out for a study of these videos'
    videos = _read_list(out, spec, part, expected)
    if videos is None: return f'{what}; {remedy}'
    # the task that is compared is the one with the most videos in common, so that splits do not count as differences
    missing, more = min((_compare(videos, task.inventory) for task in seen), key=lambda pair: sum(map(len, pair)))
    known, found = {video[0] for video in missing}, {video[0] for video in more}
    parts = {
        f'of {len(videos)} are missing': [video for video in missing if video[0] not in found],
        'differ in size, label, split or group': [video for video in missing if video[0] in found],
        'are new': [video for video in more if video[0] not in known]}
    texts = [f'{len(listed)} {text} ({_names(listed)})' for text, listed in parts.items() if listed]
    return f'{what}: {"; ".join(texts)}; {remedy}'


def _compare(videos, seen):
    a, b = Counter(videos), Counter(seen)
    return list((a - b).elements()), list((b - a).elements())


def _names(videos):
    "Labels and names of the first videos: names may repeat among classes"
    names = [f'{label}/{name}' for name, _, label, *_ in videos]
    more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
    return ', '.join(names[:SHOWN]) + more
