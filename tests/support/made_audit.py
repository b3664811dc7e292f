"The folder of an audit with hostile names, made by hand."
import json

import pandas as pd
from made_study import CLASSES, EVIL

from sdfast.report.audit_file import FORMAT, VERSION

ROWS = dict(
    source_acc=('old head', True, False), source_probe=('new probe', True, False), drift=('drift', False, True),
    kl=('KL', False, True))


def part(value, width=0.): return dict(value=value, low=value - width, high=value + width)


def measures(lost):
    accuracy = dict(before=part(.9, .05), after=part(.9 - lost, .05), change=part(-lost, .04))
    drift = dict(before=part(0.), after=part(.3, .1), change=part(.3))
    return dict(source_acc=accuracy, source_probe=accuracy, drift=drift,
                kl=dict(before=part(0.), after=dict(value=None, low=None, high=None), change=part(0.)))


def make_audit(folder, videos=()):
    "Two fine-tuned encoders on a task with labels, and one on videos without"
    flips = [{'path':str(v), 'label':CLASSES[i % 4], 'answer.before':CLASSES[i % 4], 'answer.after':EVIL,
              'probability.before':.9, 'probability.after':.1} for i, v in enumerate(videos)]
    layers = {f'layer{i}.{EVIL}':dict(drift=.1*i, weight_distance=.2*i) for i in range(30)}
    def result(after, task, classes, lost):
        return dict(after=after, weights='ab'*8, task=task, groups=9, clips=12, grouped=True, train_clips=30,
                    n_classes=len(classes), chance=.3, head='probe' if classes else None, notes=[EVIL],
                    measures=measures(lost), layers=layers, flips=dict(lost=flips[:3], gained=flips[3:]) if classes else
                    dict(lost=[], gained=[]),
                    classes={c:dict(clips=3, groups=3, measures=measures(lost*i)) for i, c in enumerate(classes)})
    columns = 'title', 'share', 'compares'
    rows = {m:dict(zip(columns, row), about=EVIL, more_is_better=m.startswith('source')) for m, row in ROWS.items()}
    many = [*CLASSES, *(f'class {i}' for i in range(20))]
    results = [result(EVIL, 'folder:/x/clips', many, .1), result('runs/b/tuned.pth', 'folder:/x/clips', many, 0.),
               result('runs/b/tuned.pth', f'videos:{EVIL}', [], .1)]
    content = dict(format=FORMAT, version=VERSION, sdfast='0', command=f'sdfast audit {EVIL}', settings=dict(level=.95),
                   before=dict(name='runs/a/base.pth', weights='cd'*8), measures=rows, results=results)
    folder.mkdir(parents=True)
    (folder/'audit.json').write_text(json.dumps(content))
    clips = pd.DataFrame(dict(after='runs/b/tuned.pth', task=f'videos:{EVIL}', path=list(map(str, videos)), drift=.5))
    clips.to_csv(folder/'clips.csv', index=False)
    return content
