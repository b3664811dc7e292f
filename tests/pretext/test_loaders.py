"Loaders of a method: augmentation sees floats in [0, 1] whatever the loader is made of."
import pytest
import torch
from fastai.data.transforms import IntToFloatTensor
from fastai.vision.augment import Flip
from fasttransform import Transform
from pretraining import quiet, tiny

from sdfast.data.block import ClipTransform
from sdfast.data.clips import TensorVideo
from sdfast.data.task import Task
from sdfast.errors import InputError
from sdfast.pretext.loaders import video_dls
from sdfast.pretext.pace import Pace


@pytest.mark.parametrize('kind', ['unlabelled', 'task', 'floats'])
def test_augmentation_sees_floats(dls, clips, kind):
    seen = []
    class Look(Transform):
        order = 50
        def encodes(self, x:TensorVideo):
            seen.append((x.dtype, float(x.min()), float(x.max())))
            return x
    task = Task.from_folder(clips, test_frac=.25).hold_out(.25)
    if kind == 'task': dls = task.dls(frames=4, size=24, bs=4)
    if kind == 'floats': dls = task.dls(frames=4, size=24, bs=4, tfms=[ClipTransform([Flip()])])
    assert any(isinstance(f, IntToFloatTensor) for f in dls.train.after_batch) == (kind == 'floats')
    method = Pace(paces=(1, 2, 3), restart=False)
    method.batch_tfms = Look(),
    quiet(dls, tiny(), method).fit(1)
    assert seen
    assert all(dtype == torch.float32 for dtype, _, _ in seen)
    assert all(0 <= low < high <= 1 for _, low, high in seen)


def test_videos_are_needed():
    with pytest.raises(InputError, match='no training videos'): video_dls([])
