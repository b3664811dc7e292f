"Augmentation of clips against torchvision and scipy, and what it is drawn for."
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torchvision.transforms.v2 import functional as tvf

from sdfast.data.clips import TensorVideo
from sdfast.errors import InputError
from sdfast.pretext.augment import Blur, ColourJitter, Solarise, blur, jitter_colours, to_grey


def test_jitter_equals_torchvisions():
    x = torch.rand(2, 3, 3, 8, 8)
    factor = torch.tensor([.6, 1.3]).view(2, 1, 1, 1, 1)
    turn = torch.tensor([-.2, .15]).view(2, 1, 1, 1, 1)
    ours = jitter_colours(x, factor, factor, factor, turn, (3, 1, 0, 2))
    for i in range(2):
        f, theirs = factor[i].item(), tvf.adjust_hue(x[i], turn[i].item())
        for adjust in (tvf.adjust_contrast, tvf.adjust_brightness, tvf.adjust_saturation): theirs = adjust(theirs, f)
        torch.testing.assert_close(ours[i], theirs, rtol=1e-3, atol=2e-4)


def test_grey_equals_torchvisions():
    x = torch.rand(2, 3, 3, 8, 8)
    torch.testing.assert_close(to_grey(x), tvf.rgb_to_grayscale(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('each_frame', [True, False])
def test_jitter_is_drawn_for_frames_or_clips_in_training(each_frame):
    x = TensorVideo(torch.full((3, 2, 4, 3, 5, 5), .5))
    jitter = ColourJitter(.8, each_frame=each_frame)
    level = jitter(x, split_idx=0).as_subclass(torch.Tensor)[..., 0, 0, 0]
    assert len(level.unique()) == (24 if each_frame else 6)
    assert each_frame or (level == level[..., :1]).all()
    assert torch.equal(jitter(x, split_idx=1), x)


def test_some_clips_become_grey():
    x = ColourJitter(grey=.5)(TensorVideo(torch.rand(200, 1, 2, 3, 4, 4)), split_idx=0).as_subclass(torch.Tensor)
    grey = (x[:, :, :, 0] == x[:, :, :, 2]).flatten(1).all(1)
    assert .3 < grey.float().mean() < .7


def test_jitter_out_of_range_is_refused():
    with pytest.raises(InputError, match='hue at most .5'): ColourJitter(hue=.6)
    with pytest.raises(InputError, match='at least 0'): ColourJitter(-1.)


def test_blur_equals_scipys():
    x, sigma = torch.rand(2, 3, 4, 3, 21, 18), torch.rand(2, 3)*1.9 + .1
    ours = blur(x, sigma, 3)
    for i in range(2):
        for j in range(3):
            s, v = sigma[i, j].item(), x[i, j].numpy().astype(float)
            theirs = gaussian_filter(v, (0, 0, s, s), mode='constant', radius=(0, 0, 3, 3))
            np.testing.assert_allclose(ours[i, j], theirs, atol=1e-5)


@pytest.fixture
def many():
    "200 videos of two clips"
    return TensorVideo(torch.rand(200, 2, 2, 3, 20, 20))


def changed(tfm, x):
    "Share of first and second clips that a transform changes"
    return (tfm(x, split_idx=0) != x).as_subclass(torch.Tensor).flatten(2).any(2).float().mean(0)


def test_blur_is_drawn_by_the_place_of_the_clip(many):
    first, second = changed(Blur((1., .1)), many)
    assert first > .9  # a width of .1 pixel changes nothing
    assert .02 < second < .2


def test_solarisation_is_drawn_by_the_place_of_the_clip(many):
    first, second = changed(Solarise((0., .2)), many)
    assert first == 0
    assert .1 < second < .3


def test_solarisation_inverts_bright_pixels(many):
    y, x = Solarise((1., 1.))(many, split_idx=0).as_subclass(torch.Tensor), many.as_subclass(torch.Tensor)
    assert torch.equal(y, torch.where(x < .5, x, 1 - x))


@pytest.mark.parametrize('tfm', [Blur((1., 1.)), Solarise((1., 1.))], ids=['blur', 'solarise'])
def test_validation_clips_stay(many, tfm): assert torch.equal(tfm(many, split_idx=1), many)
