"A miniature UCF101 and HMDB51: official names, folders and list formats, tiny generated videos."
import numpy as np

from sdfast.data.digits import write_video

# Classes with their numbers in classInd.txt, which Python would sort otherwise
UCF = {35: 'Hammering', 36: 'HammerThrow', 37: 'HandstandPushups'}
# Lines of the official lists of split 1: a class whose name begins another's, names that patterns and shells stumble
# over, an unused clip of each class
HMDB = dict(
    chew=[
        '#2_Gum_chew_h_nm_np1_fr_med_0.avi 1',
        '#2_Gum_chew_h_nm_np1_fr_med_1.avi 0',
        '#2_Gum_chew_h_nm_np1_fr_med_2.avi 1',
        'Blowing_Bubbles!_chew_h_nm_np1_fr_goo_2.avi 1',
        'Bubble_blowing_3!_chew_h_nm_np1_le_bad_0.avi 2'],
    climb=[
        '(HQ)_Rock_Climbing_-_Free_Solo_Speed_Climb_-_Dan_Osman_climb_f_cm_np1_ba_med_0.avi 1',
        'Amazing_Wall_Climber_(Must_be_Seen_to_Be_Believed!)_climb_f_cm_np1_ri_bad_0.avi 2',
        'Climbing_roof_in_TCA_climb_f_cm_np1_ba_med_0.avi 1',
        'Climbing_roof_in_TCA_climb_f_cm_np1_ba_med_1.avi 0',
        'Climbing_roof_in_TCA_climb_f_cm_np1_ba_med_2.avi 1'],
    climb_stairs=[
        'Fellowship_6_climb_stairs_f_cm_np1_ba_med_3.avi 1',
        'Fellowship_6_climb_stairs_f_nm_np1_ba_bad_4.avi 1',
        'Just_Say_NO_to_AQUA_DOTS!_climb_stairs_l_nm_np1_ba_med_0.avi 1',
        'Running_Up_Stairs_climb_stairs_l_nm_np1_ba_med_2.avi 0',
        'treppensteigen_1_climb_stairs_f_cm_np2_fr_med_0.avi 2'],
    fencing=[
        'AHF_Rapier_fencing_f_cm_np2_le_bad_0.avi 1',
        'Die_Another_Day_-_Fencing_Scene_Part_1_[HD]_avi_fencing_f_cm_np2_le_goo_0.avi 1',
        'Die_Another_Day_-_Fencing_Scene_Part_1_[HD]_avi_fencing_u_cm_np2_ba_goo_1.avi 1',
        'Die_Another_Day_-_Fencing_Scene_Part_1_[HD]_avi_fencing_u_cm_np2_fr_goo_3.avi 0',
        'Die_Another_Day_-_Fencing_Scene_Part_1_[HD]_fencing_f_cm_np2_le_goo_0.avi 2'])


def video(path, kind, seed, frames=20):
    "A bright square that moves right, down or to and fro"
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 40, (frames, 24, 32)).astype(np.uint8)
    for t in range(frames):
        r, c = [(8, t % 24), (t % 16, 12), (4 + 8*(t//2 % 2), 4 + 8*(t//2 % 2))][kind % 3]
        x[t, r:r + 8, c:c + 8] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, x)


def write_ucf(root, per_group=2):
    """Train groups g08, g09, g15 and test groups g01, g02 of three classes; in fold 2 groups g08 and g09 are for test.

    One file is transcoded to mp4, and one class's files are named in another case."""
    lists = root/'ucfTrainTestlist'
    lists.mkdir(parents=True)
    def text(lines): return ''.join(f'{l}\r\n' for l in lines).encode()
    (lists/'classInd.txt').write_bytes(text(f'{i} {c}' for i, c in UCF.items()) + b'\r\n')
    for fold, test in ((1, (1, 2)), (2, (8, 9))):
        rows = dict(train=[], test=[])
        for i, c in UCF.items():
            for g in (1, 2, 8, 9, 15):
                for k in range(per_group):
                    split = 'test' if g in test else 'train'
                    name = f'v_{c.replace("stand", "Stand") if i == 37 else c}_g{g:02}_c{k + 1:02}.avi'
                    rows[split].append(f'{c}/{name}' + (f' {i}' if split == 'train' else ''))
                    suffix = '.mp4' if (g, k, i) == (8, 0, 35) else '.avi'
                    if fold == 1: video((root/'UCF-101'/c/name).with_suffix(suffix), i, g*10 + k)
        for split, r in rows.items(): (lists/f'{split}list{fold:02}.txt').write_bytes(text(r))
    return root


def write_hmdb(root):
    """Three train clips of two recordings and a test clip of each class.

    The unused clips have no video; the first clip of each class has 10 frames, the others have 20."""
    lists = root/'testTrainMulti_7030_splits'
    lists.mkdir(parents=True)
    for n, (c, lines) in enumerate(HMDB.items()):
        (lists/f'{c}_test_split1.txt').write_text(''.join(f'{l} \n' for l in lines))
        for j, l in enumerate(lines):
            if l[-1] != '0': video(root/'hmdb51'/c/l[:-2], n, 100*n + j, frames=10 if j == 0 else 20)
    return root
