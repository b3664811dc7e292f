"MemDPC: the reference's numbers, its loss written out, blocks of one crop, and what it refuses."
from random import Random

import numpy as np
import pytest
import torch
from pretraining import OneConv, fill, nll, place_video, tiny, waves

from sdfast.data.clips import SampleClips
from sdfast.data.video import VideoError, VideoFile
from sdfast.errors import InputError
from sdfast.pretext.clips import PretextClips
from sdfast.pretext.maps import layer_maps
from sdfast.pretext.memdpc import MemDPC


@pytest.fixture
def small():
    "MemDPC on one convolution with maps of 2x2, and its net"
    method = MemDPC(blocks=5, steps=2, slots=7, layer='conv', channels=6)
    return method, fill(method.build(OneConv(6, (3, 32, 32), (2, 32, 32))), 1.5).eval()


def test_losses_and_gradients_are_those_of_the_reference(small):
    """TengdaHan/MemDPC (d7dbbf0) in eval mode on the same clips and weights, with this convolution as its backbone:
    loss of both directions, and norms of gradients.

    With its own ResNet-18 at 64x64 the losses differed by 1e-6 in eval mode, and not at all in training without
    dropout; gradients were equal."""
    method, net = small
    fill(net.encoder, .05)
    pred = net(waves(2, 5, 5, 3, 64, 64))
    loss = method.loss(pred, None)
    loss.backward()
    each = [nll(p.detach().flatten(0, 2).flatten(1), range(16)) for p in pred]
    assert each == pytest.approx([2.863614797592163, 2.8435232639312744], rel=1e-5)
    assert loss.item() == pytest.approx(5.7071380615234375, rel=1e-5)
    assert net.encoder.conv.weight.grad.norm().item() == pytest.approx(78.4378890991211, rel=1e-4)
    assert net.heads.memory.grad.norm().item() == pytest.approx(.2661276161670685, rel=1e-4)


def sigmoid(v): return 1/(1 + np.exp(-v))


def test_the_loss_written_out_place_by_place(small):
    "In numpy: the GRU, the memory and the cross-entropy over all places, predicted blocks and videos"
    method, net = small
    fill(net.encoder, .05)
    x, heads = waves(3, 5, 5, 3, 64, 64), net.heads
    with torch.no_grad():
        maps = layer_maps(net.encoder, x.flatten(0, 1), ['conv'])['conv'].mean(2).unflatten(0, (3, 5)).numpy()
        found = method.loss(net(x), None).item()
    def affine(layer, v): return layer.weight.detach().numpy()[:, :, 0, 0] @ v + layer.bias.detach().numpy()

    def step(gru, v, state):
        both = np.concatenate([np.maximum(v, 0), state])
        reset, update = sigmoid(affine(gru.reset, both)), sigmoid(affine(gru.update, both))
        new = np.tanh(affine(gru.out, np.concatenate([np.maximum(v, 0), state*reset])))
        return state*(1 - update) + new*update

    total = 0.
    for gru, order in ((heads.forwards, [0, 1, 2, 3, 4]), (heads.backwards, [4, 3, 2, 1, 0])):
        predicted, targets = [], []
        for b in range(3):
            for y in range(2):
                for z in range(2):
                    seen, state = maps[b, order, :, y, z], np.zeros(6)
                    for v in seen[:3]: state = step(gru, v, state)
                    for k in range(2):
                        if k: state = step(gru, predicted[-1], state)
                        a = affine(heads.address[2], np.maximum(affine(heads.address[0], state), 0))
                        a = np.exp(a - a.max())
                        predicted.append((a/a.sum()) @ heads.memory.detach().numpy())
                        targets.append(seen[3 + k])
        logits = np.array(predicted) @ np.array(targets).T
        total += nll(logits, range(24))
    assert found == pytest.approx(total, rel=1e-5)


def test_scores_compare_with_another_video_and_another_block():
    "Own maps score 2 for video 0, whose neighbour scores 1 and whose other block 3; everything is equal for video 1"
    same = torch.zeros(2, 2, 4, 2, 2, 4)
    for s in range(2):
        for p in range(4):
            same[0, s, p, 0, s, p] = 2
            same[0, s, p, 1, s, p] = 1
            same[0, s, p, 0, 1 - s, p] = 3
    scores = MemDPC().scores((same, same), None)
    assert scores['video_acc'].tolist() == [1, .5]
    assert scores['step_acc'].tolist() == [0, .5]


def test_blocks_follow_each_other_and_start_anywhere():
    method, rnd = MemDPC(blocks=3, steps=1), Random(0)
    drawn = np.array([method.sample(20, 2, 3, rnd)[0] for _ in range(200)])
    assert drawn.shape == (200, 3, 2)
    assert (np.diff(drawn.reshape(200, 6)) == 3).all()
    assert set(drawn[:, 0, 0]) == set(range(5))  # 16 frames of 20
    with pytest.raises(VideoError, match='3 blocks of 2 frames at stride 3 take 16'): method.sample(15, 2, 3, rnd)


def test_blocks_share_a_crop_and_a_flip(monkeypatch):
    place_video(monkeypatch, 12, 40)
    monkeypatch.setattr(VideoFile, 'index', type('Index', (), dict(n=12)))
    monkeypatch.setattr('sdfast.pretext.clips.cached_frames', lambda video, side, cache: None)
    monkeypatch.setattr(VideoFile, 'read', lambda self, idx, size=None: frames_at(idx, 40))
    method = MemDPC(blocks=3, steps=1)
    read = PretextClips(method, SampleClips(2, 2, 20))
    corners = set()
    for _ in range(20):
        x, label = read((VideoFile('v.mp4'),), 0)
        x = x.as_subclass(torch.Tensor)
        assert x.shape == (3, 2, 3, 20, 20)
        times = x[:, :, 0, 0, 0].flatten().tolist()
        assert np.diff(times).tolist() == [2]*5
        assert (x[:, :, 1:] == x[:1, :1, 1:]).all()
        corners.add(tuple(x[0, 0, 1:, 0, 0].tolist()))
    assert len(corners) > 5


def frames_at(idx, side):
    "Frames whose red is the number, green the row and blue the column"
    t, r, c = torch.meshgrid(torch.as_tensor(list(idx)), torch.arange(side), torch.arange(side), indexing='ij')
    return torch.stack([t, r, c], 1).to(torch.uint8)


def test_its_augmentation_is_that_of_the_reference():
    method = MemDPC()
    channel, colours = method.batch_tfms
    assert (method.area, method.flip, channel.p) == ((.5, 1.), True, .25)
    assert (colours.factors, colours.hue, colours.p, colours.grey) == ((.5, .5, .5), .25, 1., 0.)
    assert colours.each_frame
    assert channel.order < colours.order


def test_weights_start_as_in_the_reference():
    "Gates and addresses orthogonal with gain .1, biases 0, slots from a normal distribution"
    heads = MemDPC(slots=50, layer='x', channels=8).heads(8)
    for layer in (heads.forwards.out, heads.backwards.reset, heads.address[0]):
        w = layer.weight.detach()[:, :, 0, 0]
        torch.testing.assert_close(w @ w.T, .01*torch.eye(8), rtol=1e-4, atol=1e-6)
        assert not layer.bias.any()
    assert heads.memory.std().item() == pytest.approx(1, abs=.2)


@pytest.mark.parametrize('options', [dict(steps=8), dict(steps=0), dict(slots=0), dict(dropout=1.)])
def test_what_it_refuses(options):
    with pytest.raises(InputError, match='steps must be at least 1'): MemDPC(**options)


def test_heads_without_sizes_are_refused():
    with pytest.raises(InputError, match='pass its name and channels'): MemDPC().build(tiny())
