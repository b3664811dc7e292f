"fastai's transforms of images in loaders of clips: those of the frames with one draw, or an error of one line."
import inspect
import random

import numpy as np
import pytest
import torch
from fastai.callback.mixup import CutMix, MixUp
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter, IntToFloatTensor, ItemGetter, Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorCategory, TensorImage
from fastai.vision import augment
from fastai.vision.augment import (
    Brightness,
    Contrast,
    CropPad,
    DeterministicFlip,
    Dihedral,
    DihedralItem,
    Flip,
    FlipItem,
    Hue,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    RandomResizedCropGPU,
    RandTransform,
    RatioResize,
    Resize,
    Rotate,
    Saturation,
    Warp,
    Zoom,
    aug_transforms,
)
from fastai.vision.core import PILImage, image2tensor, imagenet_stats
from fasttransform import Pipeline, Transform
from torch import nn
from torchvision.transforms import v2

from sdfast.data.block import VideoBlock
from sdfast.data.clips import TensorVideo
from sdfast.data.images import ClipTransform
from sdfast.data.video import VideoFile
from sdfast.errors import InputError
from sdfast.models.encoders import create_model

OF_BATCHES = [
    Flip(), Dihedral(), Rotate(30, p=1.), Zoom(max_zoom=1.5, p=1.), Warp(p=1.), Flip(size=5), Brightness(p=1.),
    Contrast(p=1.), Saturation(p=1.), Hue(p=1.), RandomErasing(p=1., sh=.8), RandomResizedCropGPU(6, min_scale=.2),
    *aug_transforms(size=6), FlipItem(), DihedralItem()]
OF_ITEMS = [
    Resize(9), Resize((9, 12), method='squish'), Resize(9, method='pad', pad_mode='zeros'), RandomCrop(7), CropPad(60),
    RandomResizedCrop(8), RatioResize(20), FlipItem(), DihedralItem()]


def seed():
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def dls_of(root, size=24, bs=4, **kwargs):
    items = [(str(p), p.parent.name) for p in sorted(root.rglob('*.mp4'))]
    block = DataBlock(blocks=(VideoBlock(frames=4, stride=2, size=size), CategoryBlock),
                      getters=[ItemGetter(0), ItemGetter(1)], splitter=IndexSplitter([0, 1, 8, 9]), **kwargs)
    return block.dataloaders(items, bs=bs, num_workers=0)


def name_of(f): return type(f).__name__


# ---- batches

@pytest.mark.parametrize('split_idx', [0, 1])
@pytest.mark.parametrize('tfm', OF_BATCHES, ids=name_of)
def test_a_batch_transform_does_to_clips_what_it_does_to_each_frame(tfm, split_idx):
    "The frames of a clip, as a batch of images, with the random state set back before each"
    x = torch.rand(5, 4, 3, 8, 10)
    def frame(i):
        seed()
        return tfm(TensorImage(x[:, i].clone()), split_idx=split_idx).as_subclass(torch.Tensor)
    want = torch.stack([frame(i) for i in range(4)], 1)
    seed()
    got = ClipTransform([tfm])(TensorVideo(x.clone()), split_idx=split_idx)
    assert type(got) is TensorVideo
    torch.testing.assert_close(got.as_subclass(torch.Tensor), want)
    seed()
    several = ClipTransform([tfm])(TensorVideo(x[:, None].clone()), split_idx=split_idx)  # one clip of each video
    torch.testing.assert_close(several[:, 0].as_subclass(torch.Tensor), want)


def test_clips_of_a_batch_differ_in_their_draws():
    same = TensorVideo(torch.rand(1, 4, 3, 8, 8).expand(16, -1, -1, -1, -1).clone())
    for tfm in (Flip(), Rotate(30, p=1.), Brightness(p=1.), Hue(p=1., max_hue=.4)):
        y = ClipTransform([tfm])(same, split_idx=0)
        assert (y - y[:1]).flatten(1).abs().amax(1).gt(1e-3).sum() >= 3, tfm


def test_a_transform_that_counts_its_calls_counts_clips():
    x = TensorVideo(torch.rand(2, 5, 3, 4, 4))
    tfm = ClipTransform([DeterministicFlip()])
    torch.testing.assert_close(tfm(x, split_idx=0), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(tfm(x, split_idx=0), TensorVideo(x.flip(-1)), atol=1e-5, rtol=0)


def test_aug_transforms_in_a_block(clips):
    "Floats in [0, 1] reach them, whoever normalises; clips for validation are only resized"
    norm = Normalize.from_stats(*imagenet_stats)
    by_hand = dls_of(clips, batch_tfms=[*aug_transforms(size=16), norm])
    given = DataBlock(blocks=(VideoBlock(4, 2, 24, stats=imagenet_stats), CategoryBlock), getters=[ItemGetter(0),
                      ItemGetter(1)], splitter=IndexSplitter([0, 1, 8, 9]), batch_tfms=aug_transforms(size=16))
    items = [(str(p), p.parent.name) for p in sorted(clips.rglob('*.mp4'))]
    by_block = given.dataloaders(items, bs=4, num_workers=0)
    for dls in (by_hand, by_block):
        x, y = dls.one_batch()
        assert x.shape == (4, 4, 3, 16, 16)
        assert type(y) is TensorCategory
        assert (x[:, 0] - x[:, -1]).abs().max() > .1
    torch.testing.assert_close(next(iter(by_hand.valid))[0], next(iter(by_block.valid))[0])
    raw = next(iter(dls_of(clips).valid))[0]
    resized = norm(TensorImage(Flip(size=16)(TensorImage(raw.flatten(1, 2)), split_idx=1)).view(4, 4, 3, 16, 16))
    torch.testing.assert_close(next(iter(by_hand.valid))[0], TensorVideo(resized))


def test_added_transforms_are_adapted_too(clips):
    dls = dls_of(clips)
    dls.add_tfms([Flip(p=1.)], 'after_batch')
    assert dls.one_batch()[0].shape == (4, 4, 3, 24, 24)
    assert any(isinstance(f, ClipTransform) for f in dls.train.after_batch.fs)


def test_statistics_are_measured_for_each_channel(clips):
    dls = dls_of(clips, batch_tfms=Normalize())
    norm, = [f for f in dls.train.after_batch.fs if isinstance(f, Normalize)]
    assert norm.mean.shape == norm.std.shape == (1, 1, 3, 1, 1)
    assert dls.one_batch()[0].shape == (4, 4, 3, 24, 24)


# ---- items

@pytest.mark.parametrize('split_idx', [0, 1])
@pytest.mark.parametrize('tfm', OF_ITEMS, ids=str)
def test_an_item_transform_does_to_clips_what_it_does_to_each_frame(clips, tfm, split_idx):
    dls = dls_of(clips, size=None, item_tfms=tfm)
    path = str(next(clips.rglob('*.mp4')))
    pipeline = Pipeline(dls.train.after_item.fs, split_idx=split_idx)
    random.seed(3)
    cut = pipeline[0](VideoFile(path), split_idx=split_idx)
    state = random.getstate()
    def frame(x):
        random.setstate(state)
        return image2tensor(tfm(PILImage.create(x.permute(1, 2, 0).numpy()), split_idx=split_idx))
    want = torch.stack([frame(x) for x in cut.as_subclass(torch.Tensor)])
    random.seed(3)
    got = pipeline(VideoFile(path))
    assert type(got) is TensorVideo
    assert torch.equal(got.as_subclass(torch.Tensor), want)


def test_resize_replaces_the_crop_that_nobody_asked_for(clips):
    block = dict(getters=[ItemGetter(0), ItemGetter(1)], splitter=IndexSplitter([0, 1]))
    items = [(str(p), p.parent.name) for p in sorted(clips.rglob('*.mp4'))]
    def shape(video, **kwargs):
        dls = DataBlock(blocks=(video, CategoryBlock), **block, **kwargs).dataloaders(items, bs=4, num_workers=0)
        return dls.valid.after_item.fs[0].size, dls.one_batch()[0].shape[-2:]
    assert shape(VideoBlock) == (64, (64, 64))
    assert shape(VideoBlock, item_tfms=FlipItem()) == (64, (64, 64))
    assert shape(VideoBlock, item_tfms=Resize(40)) == (None, (40, 40))
    assert shape(VideoBlock(size=48), item_tfms=RandomCrop(32)) == (48, (32, 32))  # scaled to 48, then cropped
    with pytest.raises(InputError, match='Resize makes frames of 40x40 pixels of clips that .* cropped to 32: .*None'):
        shape(VideoBlock(size=32), item_tfms=Resize(40))


# ---- what would be ignored

class OfTexts(Transform):
    def encodes(self, x:bytes): return x


class OfLabels(Transform):
    def encodes(self, y:TensorCategory): return TensorCategory(1 - y)


class OfClips(Transform):
    def encodes(self, x:TensorVideo): return TensorVideo(255 - x)


class OfPictures(Transform):
    def encodes(self, x:TensorImage): return x.flip(-1)


@pytest.mark.parametrize('where,tfm,match', [
    ('item_tfms', Flip(), 'Flip works on batches: pass it in batch_tfms'),
    ('item_tfms', Hue(), 'Hue works on batches'), ('item_tfms', RandomErasing(), 'RandomErasing works on batches'),
    ('batch_tfms', Resize(8), 'Resize works on single videos: pass it in item_tfms'),
    ('item_tfms', OfTexts(), 'OfTexts would change neither clips nor labels: it takes bytes'),
    ('batch_tfms', OfTexts(), 'OfTexts would change neither clips nor labels: it takes bytes'),
    ('batch_tfms', v2.RandomHorizontalFlip(), 'RandomHorizontalFlip is a module'),
    ('item_tfms', v2.Resize(8), 'Resize is a module')], ids=str)
def test_what_would_be_ignored_is_refused(clips, where, tfm, match):
    with pytest.raises(InputError, match=match) as e: dls_of(clips, **{where:tfm})
    assert '\n' not in str(e.value)


def test_normalising_twice_is_refused(clips):
    items = [(str(p), p.parent.name) for p in sorted(clips.rglob('*.mp4'))]
    block = DataBlock(blocks=(VideoBlock(4, size=24, stats=imagenet_stats), CategoryBlock),
                      getters=[ItemGetter(0), ItemGetter(1)], batch_tfms=Normalize.from_stats(*imagenet_stats))
    with pytest.raises(InputError, match='normalised twice, by NormalizeClips and Normalize: leave out'):
        block.dataloaders(items, bs=2, num_workers=0)


@pytest.mark.parametrize('where', ['item_tfms', 'batch_tfms'])
def test_transforms_of_ones_own(clips, where):
    "Of clips, of images, and of labels: all are applied, wherever their order would have put them"
    plain = dls_of(clips).valid.new(shuffle=False)
    x, y = next(iter(plain))
    flipped = next(iter(dls_of(clips, **{where:OfPictures()}).valid))
    torch.testing.assert_close(flipped[0], TensorVideo(x.flip(-1)))
    inverse = next(iter(dls_of(clips, **{where:OfClips()}).valid))
    torch.testing.assert_close(inverse[0], TensorVideo(1 - x))
    swapped = next(iter(dls_of(clips, **{where:OfLabels()}).valid))
    assert torch.equal(swapped[1], 1 - y)


def test_every_transform_of_images_in_fastai_has_an_answer(clips):
    "None of `fastai.vision.augment` is skipped without a word, as an item transform or as a batch transform"
    made = dict(OldRandomCrop=None, AffineCoordTfm=Flip(), SpaceTfm=Hue(), LightingTfm=Brightness(), HSVTfm=Hue())
    size = dict(CropPad=8, RandomCrop=8, Resize=8, RandomResizedCrop=8, RatioResize=8, RandomResizedCropGPU=8)
    kinds = [o for name, o in vars(augment).items() if inspect.isclass(o) and issubclass(o, Transform)
             and o.__module__ == augment.__name__ and o is not RandTransform and made.get(name, o) is not None]
    assert len(kinds) > 20
    raw = next(iter(dls_of(clips).valid))[0]
    for kind in kinds:
        name = kind.__name__
        tfm = made[name] if name in made else kind(size[name]) if name in size else kind()
        answers = []
        for where in ('item_tfms', 'batch_tfms'):
            try: dls = dls_of(clips, **{where:tfm})
            except InputError as e:
                assert 'pass it in' in str(e), name
                continue
            changed = [not torch.equal(x, raw) if x.shape == raw.shape else True for x in
                       (next(iter(dls.train.new(shuffle=False, drop_last=False)))[0] for _ in range(8))]
            assert any(changed), name
            answers.append(where)
        assert answers, name


def test_clips_that_differ_in_size_are_refused_in_one_line(clips, tmp_path, write):
    for label in 'ab':
        for i in range(2):
            (tmp_path/label).mkdir(exist_ok=True)
            write(tmp_path/label/f'{i}.mp4', np.zeros((8, 32 + 16*i, 48), np.uint8))
    items = [(str(p), p.parent.name) for p in sorted(tmp_path.rglob('*.mp4'))]
    block = DataBlock(blocks=(VideoBlock(4, size=None), CategoryBlock), getters=[ItemGetter(0), ItemGetter(1)],
                      splitter=IndexSplitter([0, 1]))
    for workers in (0, 1):
        dls = block.dataloaders(items, bs=2, num_workers=workers)
        with pytest.raises(InputError, match=r'clips of a batch differ in shape, .*: give VideoBlock a size') as e:
            list(dls.train)
        assert '\n' not in str(e.value)


# ---- mixing clips

@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixing_clips_is_mixing_each_frame(mix):
    x, y = torch.rand(6, 4, 3, 8, 8), torch.arange(6) % 2
    def mixed(xb):
        seed()
        cb = mix(.7)
        learn = Learner(None, nn.Linear(1, 1), loss_func=nn.CrossEntropyLoss(), path='.')
        learn.add_cb(cb)
        learn.xb, learn.yb, cb.stack_y = (xb.clone(),), (y,), True
        cb.before_batch()
        return learn.xb[0].as_subclass(torch.Tensor), cb.lam
    got, lam = mixed(TensorVideo(x))
    frames = [mixed(TensorImage(x[:, i])) for i in range(4)]
    assert torch.equal(got, torch.stack([f for f, _ in frames], 1))
    assert all(torch.equal(torch.as_tensor(lam), torch.as_tensor(other)) for _, other in frames)
    assert not torch.equal(got, x)


@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixing_in_a_fit(clips, mix):
    learn = Learner(dls_of(clips), create_model('tiny', 2, width=8), loss_func=CrossEntropyLossFlat(), cbs=mix())
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert np.isfinite(learn.recorder.values[-1]).all()


def test_bytes_stay_bytes_until_they_are_converted(clips):
    fs = dls_of(clips, item_tfms=Resize(8)).train.after_batch.fs
    assert [type(f) for f in fs] == [IntToFloatTensor]
