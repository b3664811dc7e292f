"Loaders of videos in memory give the batches of any other loader."
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
from fastai.data.core import TfmdDL
from fastai.vision.augment import Flip

from sdfast.data import loader as loader_module
from sdfast.data.block import ClipTransform
from sdfast.data.loader import CachedDL
from sdfast.data.task import Task


def test_loaders_keep_only_what_does_not_change(clips):
    task = Task.from_folder(clips, group=r'(p\d)_').hold_out(.3)
    dls = task.dls(frames=4, size=24, bs=4)
    assert dls.train.after_item[0].cache
    first = lambda dl: next(iter(dl))[0]
    assert not (first(dls.train) == first(dls.train)).all()
    assert (first(dls.valid) == first(dls.valid)).all()
    test = task.dl(dls, 'test')
    assert len(test.dataset) == task.count('test')
    assert dls.valid._batches is not None
    assert test._batches is None  # kept batches are not passed on
    assert not task.dls(frames=4, size=24, bs=4, workers=1).train.after_item[0].cache


LOADERS = [dict(), dict(flip=True, area=(.3, 1.)), dict(k=2), dict(tfms=[ClipTransform([Flip()])])]


@pytest.mark.parametrize('kwargs', LOADERS, ids=str)
def test_videos_in_memory_are_the_batches_of_any_loader(clips, kwargs, monkeypatch):
    "`CachedDL` makes items in its own way; fastai's way makes the same, draw by draw"
    task = Task.from_folder(clips, group=r'(p\d)_').hold_out(.3)
    def batches(dls):
        random.seed(1)
        torch.manual_seed(1)
        dls.train.rng = random.Random(2)
        found = [b for _ in range(2) for dl in dls.loaders for b in dl]
        return [(type(x), type(y), x.as_subclass(torch.Tensor).clone(), y.as_subclass(torch.Tensor)) for x, y in found]
    ours = batches(task.dls(frames=4, size=24, bs=4, **kwargs))
    monkeypatch.setattr(CachedDL, 'do_item', TfmdDL.do_item)
    theirs = batches(task.dls(frames=4, size=24, bs=4, **kwargs))
    assert len(ours) == len(theirs) > 4
    for a, b in zip(ours, theirs):
        assert a[:2] == b[:2]
        assert torch.equal(a[2], b[2])
        assert torch.equal(a[3], b[3])


def test_batches_are_kept_up_to_a_bound(clips, monkeypatch):
    "Several clips of each video can take more than the videos; such batches are made each time, and are the same"
    dls = Task.from_folder(clips, group=r'(p\d)_').hold_out(.3).dls(frames=4, size=24, bs=2, k=3)
    kept = [x.clone() for x, _ in dls.valid]
    assert dls.valid._batches is not None
    assert len(kept) > 1
    monkeypatch.setattr(loader_module, 'MAX_TASK_BYTES', dls.valid._batches[0][0].nbytes*len(kept) - 1)
    again = dls.valid.new()
    found = [[x for x, _ in again] for _ in range(2)]
    assert again._batches is None
    assert all(len(f) == len(kept) and all(torch.equal(a, b) for a, b in zip(f, kept)) for f in found)
    monkeypatch.setattr(loader_module, 'MAX_TASK_BYTES', loader_module.MAX_TASK_BYTES + 1)
    list(again)
    assert len(again._batches) == len(kept)


def test_a_video_that_breaks_later_is_skipped_from_memory_too(clips, tmp_path):
    root = tmp_path/'some'
    shutil.copytree(clips, root)
    task = Task.from_folder(root, group=r'(p\d)_').hold_out(.3)
    Path(lost := task.items('train')[-1][0]).write_bytes(b'no video any more')
    assert (dls := task.dls(frames=4, size=24, bs=2)).train.after_item[0].cache
    with pytest.warns(UserWarning, match=f'skipped {re.escape(lost)}'): n = sum(len(y) for _, y in dls.train)
    assert n in (task.count('train') - 1, task.count('train') - 2)  # a last batch of one is dropped
