"""Files of the model before fine-tuning, in `out/source/KEY`.

    source.json             written last: seconds, hash of the encoder, versions, digests of the next three
    encoder.safetensors, head.safetensors
    path.safetensors        how much each weight lowered the loss, for SI; only if the source was trained
    scores.csv              class probabilities of the source's test videos before fine-tuning
    reference-HASH.json     retention scores of the untouched encoder, one file for each choice of measures
    fisher-*, mas-*         importances of the weights, named by their digest
    features/               outputs of the untouched encoder, see `Retention`"""
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save

from ..data.task import Task
from ..errors import Damaged
from ..metrics.retention import RetentionScores
from ..runtime import store
from ..runtime.progress import Progress
from ..strategies.importance import Importance
from .config import Run, hash_fields
from .folder import read_sealed, write_answers

__all__ = ['source_folder']


def source_folder(
    run:Run, # Only its `source_key` matters
    out:str|Path, # Folder of the study
)->Path: # A folder that need not exist
    "The folder of the model that a run starts from"
    return Path(out)/'source'/run.source_key


# ---- scores of the untouched encoder

def reference_file(run:Run, out:str|Path)->Path:
    extra = dict(extra=run.extra) if run.extra else {}  # without it, the name is that of earlier versions
    measured = hash_fields(dict(others=run.others, barrier=run.with_barrier) | extra)
    return source_folder(run, out)/f'reference-{measured}.json'


def read_reference(run:Run, out:str|Path, progress:Progress=Progress())->dict|None:
    "Read the encoder's `id` and its `reference` scores; `None` if they are missing, damaged or of an older version"
    file = reference_file(run, out)
    sealed = read_sealed(file.parent, file.name, progress, 'measured again')
    if sealed and 'source_clips' not in sealed['reference']:
        progress.say(f'{file} is measured again: it has the biased estimate of CKA, and no number of clips')
        return None
    return sealed and dict(id=sealed['id'], reference=sealed['reference'])


def write_reference(run:Run, out:str|Path, id:str, reference:RetentionScores, task:Task)->None:
    "Store the scores of the untouched encoder, sealed with its answers on the source's test videos"
    file = reference_file(run, out)
    answers = file.parent/'scores.csv'
    # keep the answers if another reference is sealed with them: other numbers of threads may change their last digits
    if not any(_seals(f, answers.name) for f in file.parent.glob('reference-*.json')):
        assert reference.answers is not None  # a source task has a head
        write_answers(reference.answers, task, answers)
    files = {answers.name:store.digest(answers)}
    store.write_json(file, dict(id=id, reference=reference.recorded, files=files))


def _seals(file, name):
    "Whether an undamaged sealed file lists the file `name`, and all that it lists is undamaged"
    try:
        files = store.read_json(file)['files']
        store.verify(file.parent, files)
    except (Damaged, OSError): return False
    return name in files


# ---- importances

def dump_importance(imp:Importance)->bytes:
    parts = ((part, getattr(imp, part)) for part in ('diag', 'anchor'))
    tensors = {f'{part}.{k}':v.detach().cpu().contiguous() for part, values in parts for k, v in values.items()}
    return save(tensors, dict(n=str(imp.n)))


def load_importance(file:Path)->Importance:
    tensors = load_file(file)
    with safe_open(file, 'pt') as f: n = int((f.metadata() or {}).get('n', 0))

    def part(name): return {k.removeprefix(f'{name}.'):v for k, v in tensors.items() if k.startswith(f'{name}.')}
    return Importance(part('diag'), part('anchor'), n)


def write_path_integral(imp:Importance, folder:Path)->None:
    store.write(folder/'path.safetensors', dump_importance(imp))


def load_path_integral(folder:Path)->Importance|None:
    "Read SI's importance; `None` if the source was not trained"
    file = folder/'path.safetensors'
    return load_importance(file) if file.exists() else None
