"""The videos of `moving_photos`: photographs of a folder of classes that move over others, in colour.

As in `digits`, the class of a video is that of its photograph and a motion. Source and target have different classes of
photographs."""
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from ..errors import InputError
from ..runtime.progress import track
from .digits import MOTIONS, places, write_video

__all__ = ['PHOTO_PARTS', 'PHOTO_CLIPS', 'find_photos', 'photos_id', 'write_moving_photos']

SUFFIXES = '.jpg', '.jpeg', '.png'
PHOTO_PARTS = 'source', 'target'  # a part's position seeds its random numbers
# Number of clips of each split, which are drawn in this order
PHOTO_CLIPS = dict(source=dict(train=9000, valid=720, test=1440), target=dict(train=192, valid=192, test=960))
OF_SOURCE = .6  # share of the classes that are the source's
OF_VALID = .1  # share of a class's train photographs that only valid shows
FRAMES, SIZE, PHOTO = 8, 48, 24  # a photograph is scaled to 24x24 and moves over 48x48


def find_photos(
    folder:str|Path, # With `train/CLASS` and `test/CLASS`, as `sdfast get-data cifar10` makes it
)->dict[str, dict[str, list[Path]]]: # Split -> class -> photographs, in the order of their names
    "Find the photographs of all classes. Raises `InputError` for a folder that has not both splits of at least 4"
    folder = Path(folder).expanduser()
    found = {split:_of_split(folder/split) for split in ('train', 'test')}
    classes = [sorted(photos) for photos in found.values()]
    if classes[0] != classes[1] or len(classes[0]) < 4:
        raise InputError(f'{folder} must have photographs in train/CLASS and test/CLASS for the same classes, at least '
                         f'4, not {len(classes[0])} and {len(classes[1])}; sdfast get-data cifar10 makes such a folder')
    few = [c for c, photos in found['train'].items() if len(photos) < 2]
    if few: raise InputError(f'{folder/"train"/few[0]} has one photograph; expected at least 2, for train and valid')
    valid = {c:photos[len(photos) - max(1, round(OF_VALID*len(photos))):] for c, photos in found['train'].items()}
    train = {c:photos[:len(photos) - len(valid[c])] for c, photos in found['train'].items()}
    return dict(train=train, valid=valid, test=found['test'])


def _of_split(folder):
    if not folder.is_dir(): return {}
    photos = {c.name:sorted(f for f in c.iterdir() if f.suffix.lower() in SUFFIXES)
              for c in sorted(folder.iterdir()) if c.is_dir()}
    return {name:files for name, files in photos.items() if files}


def photos_id(
    photos:dict, # From `find_photos`
)->str: # Sixteen hex digits
    "Hash of the photographs' names, sizes and times, by which a folder of videos belongs to them"
    files = [f for classes in photos.values() for of_class in classes.values() for f in of_class]
    facts = [(f.parts[-3:], f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def photo_classes(photos:dict, part:str)->dict[str, tuple[str, str]]:
    "Class of videos -> class of photographs, and motion"
    names = list(photos['train'])
    n = round(OF_SOURCE*len(names))
    of_part = names[:n] if part == 'source' else names[n:]
    return {f'{name}_{motion}':(name, motion) for name in of_part for motion in MOTIONS}


def _pixels(file, size, blur=0.):
    "A photograph as float `(size, size, 3)`, from 0 to 1"
    with Image.open(file) as opened: photo = opened.convert('RGB').resize((size, size), Image.Resampling.BICUBIC)
    if blur: photo = photo.filter(ImageFilter.GaussianBlur(blur))
    return np.asarray(photo, np.float32)/255


def _draw(rng, photo, background, motion):
    "Draw uint8 `(FRAMES, SIZE, SIZE, 3)`: a photograph that moves over another, blurred and darkened one"
    x = np.repeat(.6*_pixels(background, SIZE, 2.)[None], FRAMES, 0)
    top = _pixels(photo, PHOTO)
    for frame, (r, c) in zip(x, places(rng, motion, FRAMES, SIZE, PHOTO)): frame[r:r + PHOTO, c:c + PHOTO] = top
    return ((x + rng.normal(0, .03, x.shape)).clip(0, 1)*255).astype(np.uint8)


def write_moving_photos(
    root:Path, # Folder to create
    photos:dict, # From `find_photos`
    part:str, # One of `PHOTO_PARTS`
)->None:
    "Write the videos of a part and their `manifest.csv`"
    classes = photo_classes(photos, part)
    rng = np.random.default_rng([2026, PHOTO_PARTS.index(part)])
    rows = []
    for split, n in PHOTO_CLIPS[part].items():
        everything = [f for of_class in photos[split].values() for f in of_class]
        for i in track(range(n), f'writing the videos of moving_photos, {part}: {split}'):
            label = list(classes)[i % len(classes)]
            name, motion = classes[label]
            photo = photos[split][name][rng.integers(len(photos[split][name]))]
            background = everything[rng.integers(len(everything))]
            file = root/split/label/f'{i:05d}.mp4'
            file.parent.mkdir(parents=True, exist_ok=True)
            try: frames = _draw(rng, photo, background, motion)
            except OSError as e: raise InputError(f'{photo} or {background} cannot be read: {e}') from None
            write_video(file, frames)
            rows.append((file.relative_to(root), label, split, f'{name}/{photo.stem}'))
    pd.DataFrame(rows, columns=['path', 'label', 'split', 'group']).to_csv(root/'manifest.csv', index=False)
