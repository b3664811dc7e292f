"A miniature UCF101 and HMDB51: official names, folders and list formats, tiny generated videos."
import numpy as np

from sdfast.digits import _write

UCF = {35: 'Hammering', 36: 'HammerThrow', 37: 'HandstandPushups'}  # as in classInd.txt, which Python would sort otherwise
# names from the official lists; the class is a prefix of another, names that patterns and shells choke on
HMDB = dict(climb=['20060723sfjffbabyclimbing_climb_f_cm_np1_ba_bad_{}.avi', 'BIG_WALL_CLIMBING_climb_f_cm_np1_le_med_{}.avi', 'Climbing_up_a_[25m]_wall;_(1&2)!_climb_f_cm_np10_fr_bad_{}.avi'],
            climb_stairs=['Blade_Of_Fury_-_Scene_1_climb_stairs_f_cm_np1_ba_med_{}.avi', "#2_Walking_climb_stairs_h_nm_np1_fr_goo_{}.avi", 'TrumanShow_climb_stairs_f_cm_np1_le_goo_{}.avi'])


def video(path, kind, seed, frames=20):
    "A bright square that moves right, down or to and fro"
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 40, (frames, 24, 32)).astype(np.uint8)
    for t in range(frames):
        r, c = [(8, t % 24), (t % 16, 12), (4 + 8*(t//2 % 2), 4 + 8*(t//2 % 2))][kind % 3]
        x[t, r:r + 8, c:c + 8] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, x)


def write_ucf(root, per_group=2):
    "Train groups g08 to g10 and test groups g01, g02 of three classes; one file transcoded to mp4, one class's files named in another case"
    lists = root/'ucfTrainTestlist'
    lists.mkdir(parents=True)
    def text(lines): return ''.join(f'{l}\r\n' for l in lines).encode()
    (lists/'classInd.txt').write_bytes(text(f'{i} {c}' for i, c in UCF.items()) + b'\r\n')
    for fold, test in ((1, (1, 2)), (2, (8, 9))):
        rows = dict(train=[], test=[])
        for i, c in UCF.items():
            for g in (1, 2, 8, 9, 10):
                for k in range(per_group):
                    split = 'test' if g in test else 'train'
                    name = f'v_{c.replace("stand", "Stand") if i == 37 else c}_g{g:02}_c{k + 1:02}.avi'
                    rows[split].append(f'{c}/{name}' + (f' {i}' if split == 'train' else ''))
                    if fold == 1: video((root/'UCF-101'/c/name).with_suffix('.mp4' if (g, k, i) == (8, 0, 35) else '.avi'), i, g*10 + k)
        for split, r in rows.items(): (lists/f'{split}list{fold:02}.txt').write_bytes(text(r))
    return root


def write_hmdb(root):
    "Two train recordings and one test recording a class, two clips each, and an unused clip that is not there; one video has 10 frames"
    lists = root/'testTrainMulti_7030_splits'
    lists.mkdir(parents=True)
    for n, (c, names) in enumerate(HMDB.items()):
        lines = [(name.format(k), 2 if i == 2 else 1) for i, name in enumerate(names) for k in range(2)] + [(names[0].format(9), 0)]
        (lists/f'{c}_test_split1.txt').write_text(''.join(f'{f} {tag} \n' for f, tag in lines))
        for j, (f, tag) in enumerate(lines):
            if tag: video(root/'hmdb51'/c/f, n, 100*n + j, frames=10 if j == 0 else 20)
    return root
