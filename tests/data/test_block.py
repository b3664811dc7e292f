"Clips in fastai: batches, augmentation, several clips of each video, film strips."
import shutil

import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter, IntToFloatTensor, ItemGetter
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import Brightness, Flip
from fastai.vision.core import imagenet_stats
from fasttransform import Pipeline, Transform
from torch import nn

from sdfast.data.block import ClipTransform, MultiClip, NormalizeClips, VideoBlock, normalize_video
from sdfast.data.clips import TensorVideo
from sdfast.data.indexing import index_video
from sdfast.data.task import Task
from sdfast.data.video import VideoError
from sdfast.errors import InputError


def test_one_draw_a_clip_shared_by_its_frames():
    x = TensorVideo(torch.rand(6, 6, 3, 8, 8))  # as many clips as frames: where image transforms go wrong silently
    grey = TensorVideo(torch.full((6, 6, 3, 8, 8), .5))
    y = ClipTransform([Brightness(max_lighting=.8, p=1., draw=None)])(grey, split_idx=0)
    level = y.mean((2, 3, 4))
    assert level.std(1).max() < 1e-6
    assert level.std(0).min() > 1e-2
    torch.manual_seed(0)
    y = ClipTransform([Flip(p=.5)])(x, split_idx=0)
    flipped = [torch.allclose(b, a.flip(-1), atol=1e-5) for a, b in zip(x, y)]
    assert all(f or torch.allclose(a, b, atol=1e-5) for f, a, b in zip(flipped, x, y))
    assert 0 < sum(flipped) < 6
    torch.testing.assert_close(ClipTransform([Flip(p=1.)])(x, split_idx=1), x)  # not outside training


def block(root, **kwargs):
    items = [(str(p), p.parent.name) for p in sorted(root.rglob('*.mp4'))]
    d = DataBlock(
        blocks=(VideoBlock(frames=4, stride=2, size=24, **kwargs), CategoryBlock),
        getters=[ItemGetter(0), ItemGetter(1)], splitter=IndexSplitter([0, 1, 8, 9]), batch_tfms=[normalize_video()])
    return d.dataloaders(items, bs=4, num_workers=0)


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))
        self.seen = []
    def forward(self, x):
        self.seen.append(x.shape)
        return torch.stack([x.mean((1, 2, 3, 4)), x.amax((1, 2, 3, 4))], 1)*self.w


def test_batches_predictions_and_export(clips, tmp_path):
    dls = block(clips)
    x, y = dls.one_batch()
    assert type(x) is TensorVideo
    assert x.shape == (4, 4, 3, 24, 24)
    assert x.dtype == torch.float32
    learn = Learner(dls, Mean(), loss_func=CrossEntropyLossFlat(), path=tmp_path)
    name, _, probs = learn.predict(str(next(clips.rglob('*.mp4'))))
    assert name in ('right', 'down')
    assert len(probs) == 2
    learn.export()
    from fastai.learner import load_learner
    loaded = load_learner(tmp_path/'export.pkl')
    test = loaded.dls.test_dl([str(p) for p in sorted(clips.rglob('*.mp4'))][:3])
    assert loaded.get_preds(dl=test)[0].shape == (3, 2)


@pytest.mark.parametrize('workers', [0, 1])
def test_one_batch_of_bytes_crosses_to_the_device(clips, workers):
    "What turns them into floats runs on the batch, after the transfer"
    seen, device = [], torch.device('cpu')
    class Look(Transform):
        order = -100
        def encodes(self, x:TensorVideo):
            seen.append((x.dtype, x.is_contiguous(), x.clone()))
            return x
    items = [(str(p), p.parent.name) for p in sorted(clips.rglob('*.mp4'))]
    d = DataBlock(
        blocks=(VideoBlock(frames=4, stride=2, size=24), CategoryBlock), getters=[ItemGetter(0), ItemGetter(1)],
        splitter=IndexSplitter([0, 1]), batch_tfms=[Look(), normalize_video()])
    dl = d.dataloaders(items, bs=4, num_workers=workers, device=device).train
    seen.clear()
    x, _ = next(iter(dl))
    (dtype, contiguous, raw), = seen
    assert dtype == torch.uint8
    assert contiguous
    assert raw.shape == x.shape == (4, 4, 3, 24, 24)
    mean, std = (torch.tensor(v)[:, None, None] for v in imagenet_stats)
    torch.testing.assert_close(x.as_subclass(torch.Tensor), (raw.as_subclass(torch.Tensor)/255 - mean)/std)


def test_bytes_become_normalised_floats_in_one_pass(clips):
    "Equal to dividing, subtracting and dividing in float64; decoded as by fastai's two transforms"
    x = torch.arange(256, dtype=torch.uint8).expand(3, 256).reshape(1, 1, 3, 16, 16)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in imagenet_stats)
    norm, exact = NormalizeClips.from_stats(*imagenet_stats, dim=2, ndim=5), (x.double()/255 - mean)/std
    for k in (x, x[:, None].expand(2, 3, 1, 3, 16, 16)):
        y = norm(TensorVideo(k))
        assert type(y) is TensorVideo
        assert y.dtype == torch.float32
        assert y.shape == k.shape
        torch.testing.assert_close(y.as_subclass(torch.Tensor).double(), exact.expand(k.shape), rtol=1e-6, atol=1e-6)
    two = Pipeline([IntToFloatTensor(), normalize_video()])
    assert torch.equal(norm.decode(two(TensorVideo(x))), two.decode(two(TensorVideo(x))))
    assert norm.decode(y).dtype == torch.int64
    assert (norm.decode(y) - k).abs().max() <= 1  # fastai's rounds down
    with pytest.raises(InputError, match='takes bytes, not torch.float32'): norm(TensorVideo(x/255))


def test_tasks_normalise_bytes_unless_other_transforms_need_floats(clips):
    class Look(Transform): order = 30
    task = Task.from_folder(clips, group=r'(p\d)_').hold_out(.3)
    plain, looked = task.dls(frames=4, size=24, bs=4), task.dls(frames=4, size=24, bs=4, tfms=[Look()])
    assert [type(f).__name__ for f in plain.train.after_batch] == ['NormalizeClips']
    assert [type(f).__name__ for f in looked.train.after_batch] == ['IntToFloatTensor', 'Look', 'Normalize']
    torch.testing.assert_close(next(iter(plain.valid))[0], next(iter(looked.valid))[0], rtol=1e-6, atol=1e-6)
    plain.show_batch(max_n=1)


def test_multi_clip_averages_logits_of_a_video(clips):
    net = Mean()
    learn = Learner(block(clips, k=3), net, loss_func=CrossEntropyLossFlat(), cbs=MultiClip())
    from fastcore.basics import noop
    logits, y = learn.get_preds(act=noop)
    assert net.seen[0] == (12, 4, 3, 24, 24)
    assert logits.shape == (4, 2)
    x, _ = learn.dls.valid.one_batch()
    by_hand = torch.stack([net(x[:, i].as_subclass(torch.Tensor)) for i in range(3)]).mean(0)
    torch.testing.assert_close(logits.as_subclass(torch.Tensor), by_hand.detach())


def test_a_file_that_breaks_later_is_skipped_in_training_and_refused_where_rows_would_shift(clips, tmp_path):
    root = tmp_path/'c'
    shutil.copytree(clips, root)
    dls = block(root)
    (root/'down'/'p0_1.mp4').write_bytes(b'')
    (root/'right'/'p3_7.mp4').write_bytes(b'')
    index_video.cache_clear()
    with pytest.warns(UserWarning, match='p3_7.mp4: cannot be opened'): n = sum(len(x) for x, _ in dls.train)
    assert n == 8  # of 12 videos 11, without the incomplete batch
    for dl in (dls.valid, dls.test_dl([(str(root/'right/p3_7.mp4'), 'right')], with_labels=True)):
        with pytest.raises(VideoError, match=r'p\d_\d.mp4: cannot be opened.*leave the file out'): list(dl)
    unshuffled = dls.train.new(shuffle=False, drop_last=False)
    with pytest.raises(VideoError, match='p3_7.mp4: .*leave the file out'), pytest.warns(): list(unshuffled)


def test_film_strips(clips):
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot as plt
    dls = block(clips)
    dls.show_batch(max_n=3)
    image = plt.gcf().axes[0].images[0].get_array()
    assert image.shape[:2] == (24, 4*24)
    assert len([a for a in plt.gcf().axes if a.images]) == 3
    assert 0 <= image.min()
    assert 200 < image.max() <= 255  # decoded back from the normalised batch
    Learner(dls, Mean(), loss_func=CrossEntropyLossFlat()).show_results(max_n=2)
    titles = [a.get_title() for a in plt.gcf().axes if a.images]
    assert len(titles) == 2
    assert all(t.split(',')[0] in ('right', 'down') for t in titles)
    ax = TensorVideo(torch.zeros(2, 9, 3, 8, 8, dtype=torch.uint8)).show(n=3)
    assert ax.images[0].get_array().shape[:2] == (16, 24)
    plt.close('all')


def test_titles_with_dollars_are_drawn_as_they_are(class_csv):
    import matplotlib
    matplotlib.use('Agg')
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    from matplotlib import pyplot as plt

    from sdfast.models.encoders import create_model
    task = Task.from_csv(class_csv([r'$\frac{$', r'$\nope$ <b>']))
    dls = task.dls(frames=4, size=24, bs=2)
    dls.show_batch(max_n=2)
    plt.gcf().canvas.draw()
    assert {a.get_title() for a in plt.gcf().axes if a.images} == set(task.vocab)
    learn = Learner(dls, create_model('tiny', 2), loss_func=CrossEntropyLossFlat())
    learn.show_results(dl=task.dl(dls, 'test'), max_n=2)
    plt.gcf().canvas.draw()
    assert all(a.get_title().startswith('$') for a in plt.gcf().axes if a.images)
    plt.close('all')
