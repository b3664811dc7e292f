"Tables of videos for tests: random ones without files, and csv files of the fixture `clips`."
import shutil

import pandas as pd
from hypothesis import strategies as st

# (class, group, number of clips) of some rows
ROWS = st.lists(
    st.tuples(st.sampled_from('abcd'), st.integers(0, 7), st.sampled_from([1, 1, 1, 2, 9])), min_size=2, max_size=20)
# Class names that are allowed, and that files, formulas, Markdown, HTML or TeX could take for something else
ODD_CLASSES = ['<script>alert(1)</script>', '../x', 'a/b', '/etc/passwd', '-1', '+1.5', r'$\frac{', 'a|b, "c"']
# Clips of each part of `moving_digits`, fewer than it has
FEW_DIGITS = dict(
    source=dict(train=120, test=60, valid=60), target=dict(train=16, valid=8, test=16),
    motion=dict(train=12, valid=6, test=12), digit=dict(train=20, valid=10, test=20))


def frame(rows):
    "A table with label and group of clips, and whether each class has two groups"
    clips = [(label, f'g{group}') for label, group, n in rows for _ in range(n)]
    df = pd.DataFrame(clips, columns=['label', 'group'])
    df.insert(0, 'path', [f'/{i}.mp4' for i in range(len(df))])
    groups = {label:{g for l, g in clips if l == label} for label in set(df.label)}
    return df, min(map(len, groups.values())) > 1


def groups_of(task, split): return set(task.df.group[task.df.split == split])


def write_class_csv(clips, folder, labels, path=lambda p: p, split='test'):
    "Copy the clips and list two of each class, one to train and one to test; `path` changes the paths"
    files = [f.relative_to(clips) for f in sorted(clips.rglob('*.mp4'))]
    shutil.copytree(clips, folder, dirs_exist_ok=True)
    rows = [('path', 'label', 'split')]
    for i, label in enumerate(labels):
        rows.append((path(str(files[2*i])), label, 'train'))
        rows.append((path(str(files[2*i + 1])), label, split))
    file = folder/'t.csv'
    quoted = [','.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]  # csv refuses NUL on 3.10
    file.write_bytes('\r\n'.join([*quoted, '']).encode())
    return file
