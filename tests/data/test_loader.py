"Loaders of videos in memory give the batches of any other loader."
import random
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from fastai.callback.progress import ProgressCallback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import TfmdDL
from fastai.data.transforms import IndexSplitter, ItemGetter
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.vision.augment import Flip
from fastcore.basics import noop

from sdfast.data import loader as loader_module
from sdfast.data.block import ClipTransform, VideoBlock
from sdfast.data.cache import decoded_videos
from sdfast.data.indexing import index_video
from sdfast.data.loader import CachedDL
from sdfast.data.task import Task, unlabelled
from sdfast.data.video import VideoError
from sdfast.errors import InputError
from sdfast.models.encoders import create_model
from sdfast.pretext.loaders import video_dls


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


# ---- what would go wrong silently

@pytest.fixture
def learner(clips):
    def learner(dls):
        model = create_model('tiny', 2, width=8)
        learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, lr=.1)
        learn.remove_cb(ProgressCallback)
        learn.logger = noop
        return learn
    return learner


def test_an_epoch_without_a_batch_is_refused(clips, learner):
    task = Task.from_folder(clips).hold_out(.3)
    n = task.count('train')
    paths = [path for path, _ in task.items('train')]
    block = DataBlock((VideoBlock(4, size=24), CategoryBlock), getters=[ItemGetter(0), ItemGetter(1)],
                      splitter=IndexSplitter([0]))
    for dls in (task.dls(4, size=24, bs=n + 1), task.dls(4, size=24, bs=64, workers=1),
                video_dls(paths, frames=4, size=24, bs=n + 1),
                block.dataloaders(task.items('train', 'valid'), num_workers=0)):
        with pytest.raises(InputError, match=r'\d+ clips make no batch of \d+.*of at most \d+') as e:
            learner(dls).fit(1)
        assert '\n' not in str(e.value)
        assert all(len(b[0]) for b in dls.valid)  # only training needs whole batches
    learn = learner(task.dls(4, size=24, bs=n))
    before = [p.clone() for p in learn.model.parameters()]
    learn.fit(1)
    assert not all(map(torch.equal, before, learn.model.parameters()))
    learner(task.dls(4, size=24, bs=n + 1, drop_last=False)).fit(1)


@pytest.mark.parametrize('workers', [0, 1])
def test_predictions_are_beside_their_files(clips, learner, tmp_path, workers):
    dls = Task.from_folder(clips).hold_out(.3).dls(4, size=24, bs=2, workers=workers)
    files = [tmp_path/f'{i}.mp4' for i in range(5)]
    for file, good in zip(files, sorted(clips.rglob('*.mp4'))): shutil.copy(good, file)
    learn = learner(dls)
    whole = learn.get_preds(dl=unlabelled(dls, files))[0]
    assert len(whole) == 5
    assert torch.equal(whole, learn.get_preds(dl=dls.test_dl(files))[0])
    for file in files[1:3]: file.write_bytes(b'no video')
    index_video.cache_clear()
    decoded_videos.clear()
    for make in (lambda: unlabelled(dls, files), lambda: dls.test_dl(files)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            probs = learn.get_preds(dl=make())[0]
        torch.testing.assert_close(probs[[0, 3, 4]], whole[[0, 3, 4]])
        assert probs[[1, 2]].isnan().all()
        named = [str(w.message) for w in caught if 'its row is NaN' in str(w.message)]
        assert len(named) == (0 if workers else 2)  # loading processes print theirs
    with pytest.raises(VideoError, match='1.mp4: cannot be opened.*leave the file out'): learn.predict(files[1])
    labelled = dls.test_dl([(str(file), 'down') for file in files], with_labels=True)
    with pytest.raises(VideoError, match='1.mp4: cannot be opened.*leave the file out') as e:
        learn.get_preds(dl=labelled)
    assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='there are no videos'): unlabelled(dls, [])


def test_predictions_of_the_training_part_are_not_shifted_either(clips, learner, tmp_path):
    root = tmp_path/'some'
    shutil.copytree(clips, root)
    task = Task.from_folder(root).hold_out(.3)
    learn = learner(task.dls(4, size=24, bs=2))
    assert len(learn.get_preds(ds_idx=0)[0]) == task.count('train')
    learn = learner(task.dls(4, size=24, bs=2, workers=1))
    Path(lost := task.items('train')[1][0]).write_bytes(b'no video any more')
    index_video.cache_clear()
    with pytest.raises(VideoError, match=f'^{re.escape(lost)}: cannot be opened.*leave the file out') as e:
        learn.get_preds(ds_idx=0)
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('argument,near', [('frame', 'frames'), ('strid', 'stride'), ('batch_siz', 'batch_size'),
                                           ('num_workers', 'workers'), ('drop_lst', 'drop_last'), ('clip', 'flip')])
def test_arguments_that_do_not_exist(clips, argument, near):
    task = Task.from_folder(clips)
    with pytest.raises(InputError, match=f"Task.dls has no argument '{argument}'; did you mean '{near}'"):
        task.dls(size=24, **{argument: 2})
    if argument == 'clip': return  # `video_dls` has no `flip`
    with pytest.raises(InputError, match=f"video_dls has no argument '{argument}'; did you mean '{near}'"):
        video_dls([path for path, _ in task.items('train')], size=24, **{argument: 2})


def test_arguments_of_fastai_are_passed_on(clips):
    task = Task.from_folder(clips).hold_out(.3)
    dls = task.dls(4, size=24, bs=4, val_bs=3, shuffle=False, device='cpu', drop_last=False, path=clips)
    assert (dls.valid.bs, dls.train.shuffle, dls.path) == (3, False, clips)
    with pytest.raises(InputError, match="no argument 'after_item'"): task.dls(after_item=[])
    with pytest.raises(TypeError): VideoBlock(frame=2)


@pytest.mark.parametrize('kwargs', LOADERS, ids=str)
def test_rows_of_broken_files(clips, tmp_path, kwargs):
    dls = Task.from_folder(clips).hold_out(.3).dls(4, size=24, bs=4, **kwargs)
    files = [*sorted(clips.rglob('*.mp4'))[:4], tmp_path/'none.mp4', sorted(clips.rglob('*.mp4'))[5]]
    with pytest.warns(UserWarning, match='none.mp4: cannot be opened.*its row is NaN'):
        rows = torch.cat([x.as_subclass(torch.Tensor) for x, in dls.test_dl(files)])
    whole = torch.cat([x.as_subclass(torch.Tensor) for x, in dls.test_dl(files[:4] + files[5:])])
    assert rows[4].isnan().all()
    torch.testing.assert_close(rows[[0, 1, 2, 3, 5]], whole, rtol=1e-6, atol=1e-6)


def test_a_forgotten_valid_part_is_warned_of(clips, recwarn):
    "A fit without one would report None"
    task = Task.from_folder(clips, group=r'(p\d)_')
    shape = dict(frames=4, size=24, bs=2)
    with pytest.warns(UserWarning, match=r'so a fit reports None .* call hold_out\(\)'): task.dls(**shape)
    recwarn.clear()
    task.dls(**shape, train_only=True)
    task.hold_out(.3).dls(**shape)
    assert not [w for w in recwarn if 'valid part' in str(w.message)]
