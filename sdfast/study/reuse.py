"Results in the folder of a study that an earlier command left: which versions they are of, and doing them again."
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from ..errors import Busy, Damaged
from ..runtime import store
from ..runtime.launcher import Launcher
from ..runtime.progress import Progress
from .config import hash_fields
from .folder import versions

__all__ = ['version_notes']

MARK = 'fresh.json'  # in the folder of a study, from the start of --fresh until the study is finished


def possible_threads(
    launcher:Launcher|None=None, # Where runs are done; `None`: in this process
)->set[int]|None: # `None` if it is not known, in jobs of Slurm
    "The numbers of threads that runs of this command may have: local workers share those of this process"
    n = torch.get_num_threads()
    if launcher is None or launcher.inside: return {n}
    return {max(1, n//k) for k in range(1, launcher.jobs + 1)} if launcher.cluster == 'local' else None


def version_notes(
    folders:Iterable, # Of the study's runs or stages, and of its source model
    launcher:Launcher|None=None, # Where runs are done; `None`: in this process
)->list[str]: # One sentence, or none if all are of these versions
    "Say how many results are of other versions of sdfast, torch, fastai and av, or of another number of threads"
    now, threads = versions()['versions'], possible_threads(launcher)
    kinds: Counter[str] = Counter()
    n = 0
    for folder in map(Path, folders):
        result = _read(folder)
        if result is None or 'versions' not in result: continue
        n += 1
        differs = result['versions'] != now or threads is not None and result.get('threads') not in threads
        if differs: kinds[_kind(result['versions'], result.get('threads'))] += 1
    if not kinds: return []
    found = '; '.join(f'{k} of {kind}' for kind, k in kinds.most_common())
    here = ' or '.join(map(str, sorted(threads))) if threads else 'any number of'
    return [f'{sum(kinds.values())} of {n} results, the source model included, were made earlier: {found}. This is '
            f'{_kind(now, here)}. Their numbers may differ in the last digits; --fresh makes them again.']


def _kind(versions, threads):
    return ', '.join([*(f'{name} {version}' for name, version in versions.items()), f'{threads} threads'])


def _read(folder):
    "The sealed file of a run, stage or source model; `None` if it has none"
    for name in ('result.json', 'source.json'):
        try: return store.read_json(folder/name, checked=False)
        except (FileNotFoundError, Damaged): pass
    return None


# ---- doing them again

def clear_once(
    folders:Sequence, # All that the study may have: runs or stages, and the source model
    out:str|Path, # Folder of the study
    progress:Progress=Progress(), # Progress listener
)->None:
    """Remove the content of folders, once until `end_fresh` is called.

    A study that was stopped in between continues, unless versions have changed: what it has done since is kept.
    Folders that another process works on are left to it."""
    out = Path(out)
    folders = sorted({Path(f) for f in folders})
    identity = hash_fields([sorted(f.name for f in folders), versions()['versions']])
    if _marked(out) == dict(study=identity, cleared=True):
        progress.say('--fresh: continues the study that was stopped; what it has done since it began is kept')
        return
    out.mkdir(parents=True, exist_ok=True)
    # if the process dies while it clears, it clears again: nothing has been done yet
    store.write_json(out/MARK, dict(study=identity, cleared=False))
    present = [f for f in folders if f.exists()]
    n = sum(_clear(f) for f in present)
    store.write_json(out/MARK, dict(study=identity, cleared=True))
    progress.say(f'--fresh: {n} results of this study in {out} are removed and made again')


def _marked(out):
    try: return store.read_json(out/MARK)
    except (FileNotFoundError, Damaged): return None


def _clear(folder):
    "Remove all files in a folder, the sealed one first; returns whether it had one"
    try:
        with store.claim(folder, wait=False):
            sealed = [f for f in (folder/'result.json', folder/'source.json') if f.exists()]
            others = sorted((f for f in folder.rglob('*') if not f.is_dir()), key=lambda f: f.name)
            for f in [*sealed, *others]:
                if f.name not in (store.LOCK, store.OWNER): f.unlink(missing_ok=True)
            return bool(sealed)
    except Busy: return False


def end_fresh(
    out:str|Path, # Folder of the study
)->None:
    "Forget that a study with --fresh was under way, as it is finished: the next one clears again"
    (Path(out)/MARK).unlink(missing_ok=True)
