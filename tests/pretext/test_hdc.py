"HDC: InfoNCE by hand at each depth, views that differ in space or in time only, and what it refuses."
import math
from random import Random

import pytest
import torch
import torch.nn.functional as F
from pretraining import random_clips, tiny

from sdfast.data.clips import SampleClips
from sdfast.data.video import VideoError, VideoFile
from sdfast.errors import InputError
from sdfast.pretext.clips import PretextClips
from sdfast.pretext.hdc import HDC
from sdfast.pretext.maps import layer_maps

LAYERS, CHANNELS = ('body.0', 'body.3'), (2, 24)


def made(**options):
    method = HDC(layers=LAYERS, channels=CHANNELS, dim=5, **options)
    return method, method.build(tiny()).eval()


def test_the_loss_by_hand():
    "Minus log of a softmax over the views of all videos, at two depths with their weights, for space and for time"
    method, net = made(weights=(.5, 2.))
    x = random_clips(b=4, k=3)
    with torch.no_grad():
        pred = net(x)
        views = [layer_maps(net.encoder, x[:, i], LAYERS) for i in range(3)]
    total = 0.
    for i, (layer, weight) in enumerate(zip(LAYERS, (.5, 2.))):
        for kind, view in (('spatial', views[1]), ('temporal', views[2])):
            head = net.heads[f'{kind}{i}']
            def unit(maps): return F.normalize(head(maps[layer].mean((2, 3, 4))), dim=1).tolist()
            anchors, others = unit(views[0]), unit(view)
            for b in range(4):
                e = [math.exp(sum(p*q for p, q in zip(anchors[b], other))/.07) for other in others]
                total -= weight*math.log(e[b]/sum(e))/4
    assert method.loss(pred, None).item() == pytest.approx(total, rel=1e-4)
    equal = [HDC(layers=LAYERS, weights=w).loss(pred, None).item() for w in (None, (1., 1.))]
    assert equal[0] == equal[1] != method.loss(pred, None).item()


def test_all_depths_and_heads_learn():
    method, net = made()
    method.loss(net.train()(random_clips(b=4, k=3)), None).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_scores_are_those_of_the_deepest_layer():
    worst, right = torch.eye(2).flip(0), torch.eye(2)
    own = torch.arange(2)
    scores = HDC().scores((worst, worst, right, worst, own), None)
    assert scores['spatial_acc'].tolist() == [True, True]
    assert scores['temporal_acc'].tolist() == [False, False]


@pytest.fixture
def read(monkeypatch):
    "Reads views of a video of 12 frames; red is the frame's number, green the row and blue the column of a pixel"
    monkeypatch.setattr(VideoFile, 'index', type('Index', (), dict(n=12)))
    monkeypatch.setattr('sdfast.pretext.clips.cached_frames', lambda video, side, cache: None)
    def frames(self, idx, size=None):
        t, r, c = torch.meshgrid(torch.as_tensor(list(idx)), torch.arange(40), torch.arange(48), indexing='ij')
        return torch.stack([t, r, c], 1).to(torch.uint8)
    monkeypatch.setattr(VideoFile, 'read', frames)
    def draw(train):
        clips = PretextClips(HDC(), SampleClips(3, 2, 20))
        return clips((VideoFile('v.mp4'),), 0 if train else 1)[0].as_subclass(torch.Tensor)
    return draw


@pytest.mark.parametrize('train', [True, False])
def test_views_differ_in_space_or_in_time(read, train):
    places = set()
    for _ in range(20):
        clip, spatial, temporal = read(train)
        times = [v[:, 0, 0, 0].tolist() for v in (clip, spatial, temporal)]
        assert all(b - a == 2 for v in times for a, b in zip(v, v[1:]))
        assert times[0] == times[1] != times[2]
        assert torch.equal(clip[:, 1:], temporal[:, 1:])
        assert not torch.equal(clip[:, 1:], spatial[:, 1:])
        places.add(tuple(spatial[0, 1:, 0, 0].tolist()))
    assert len(places) > 5 if train else len(places) == 1  # outside training it depends on the video's name only


def test_depths_are_the_last_stages():
    method = HDC(depths=2)
    method.measure(tiny(), torch.zeros(1, 8, 3, 40, 40))
    assert (method.layers, method.channels) == (('body.1', 'body.3'), (4, 24))
    with pytest.raises(InputError, match='has 3 stages'): HDC(depths=4).measure(tiny(), torch.zeros(1, 8, 3, 40, 40))
    named = HDC(layers=('body.2',))
    named.measure(tiny(), torch.zeros(1, 8, 3, 40, 40))
    assert (named.depths, named.channels) == (1, (12,))


def test_starts_differ_and_short_videos_are_skipped():
    rnd = Random(0)
    found = [HDC().sample(6, 4, 1, rnd)[0] for _ in range(60)]
    assert {(a[0], b[0]) for a, b in found} == {(a, b) for a in range(3) for b in range(3) if a != b}
    with pytest.raises(VideoError, match='two clips of 4 frames take 5'): HDC().sample(4, 4, 1, rnd)


@pytest.mark.parametrize('options,why', [
    (dict(depths=0), 'depths and dim'), (dict(weights=(1.,)), '3 numbers'), (dict(weights=(1., 1., -1.)), '3 numbers'),
])
def test_what_it_refuses(options, why):
    with pytest.raises(InputError, match=why): HDC(**options)


def test_heads_without_layers_are_refused():
    with pytest.raises(InputError, match='pass their names and channels'): HDC().build(tiny())
