"""The file of an audit, `audit.json`, version 1: JSON without NaN, `null` where there is no value.

    format, version        'sdfast audit' and 1
    sdfast, command        the version of sdfast that wrote it, and the command
    settings               of the audit: clips, bootstrap
    before                 the untouched encoder: name, weights (a hash)
    measures               name -> title, about, share, more_is_better, compares
    results                a list, for each fine-tuned encoder and task:
      after, weights       name of the checkpoint and a hash
      task, clips, groups  the task's spec, how many test clips it has, in how many groups
      grouped, train_clips, n_classes, chance
      head                 'checkpoint', 'probe' (fitted on the untouched encoder's features), or null
      notes                what is doubtful
      measures             name -> before, after, change: each value, low, high
      classes              class -> clips, groups and measures
      layers               layer -> cka_unbiased, procrustes, drift, weight_distance
      flips                by the old head: lost and gained, lists of clips

Shares are from 0 to 1. `low` and `high` are the ends of the interval. A measure that `compares` is one of both
encoders, such as drift; of all others, `change` is after minus before. This module imports nothing that takes time."""
import json
from pathlib import Path

from ..errors import InputError

__all__ = ['read_audit']

FORMAT, VERSION = 'sdfast audit', 1
KEYS = 'before', 'measures', 'results'
OF_RESULT = 'after', 'task', 'clips', 'measures', 'classes'


def read_audit(
    path:str|Path, # `audit.json`, or its folder
)->dict: # Its content
    "Read an audit. Raises `InputError` for any other file, or one of a later version"
    path = Path(path)
    if path.is_dir(): path = path/'audit.json'
    try: content = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError: raise InputError(f'{path} does not exist: sdfast audit writes it') from None
    except (ValueError, RecursionError) as e: raise InputError(f'{path} is not JSON: {e}') from None
    if not isinstance(content, dict) or content.get('format') != FORMAT:
        raise InputError(f'{path} is not an audit: expected the audit.json that sdfast audit writes')
    if content.get('version') != VERSION:
        raise InputError(f'{path} has version {content.get("version")}, and this sdfast reads {VERSION}: audit again')
    missing = [k for k in KEYS if not content.get(k)]
    if not missing: missing = [k for r in content['results'] for k in OF_RESULT if k not in r]
    if missing: raise InputError(f'{path} is incomplete, it has no {missing[0]}: audit again')
    return content
