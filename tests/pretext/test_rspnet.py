"RSPNet: losses against independent computations, windows and speeds as in the reference, keys and queue."
import math
import random

import numpy as np
import pytest
import torch
from pretraining import quiet, random_clips, tiny
from torch import nn

from sdfast.errors import InputError
from sdfast.pretext.rspnet import RSPNet, avid_loss, rsp_loss, trim_queue


def small(**kwargs): return RSPNet(**dict(queue=8, dim=6) | kwargs)


def test_rsp_loss_by_hand():
    "A cosine gap of .14 at temperature .07 is the margin of 2"
    assert rsp_loss(torch.tensor([1.])/.07, torch.tensor([.86])/.07).item() == pytest.approx(0, abs=1e-5)
    found = rsp_loss(torch.tensor([1., .5])/.07, torch.tensor([.93, .64])/.07)
    assert found.item() == pytest.approx((1. + 4.)/2, abs=1e-4)


def test_rsp_loss_equals_torchs():
    same, other = torch.randn(9), torch.randn(9)
    torch.testing.assert_close(rsp_loss(same, other), nn.MarginRankingLoss(2.)(same, other, torch.ones(9)))


def test_avid_loss_written_out():
    same, other, queue = torch.randn(5), torch.randn(5), torch.randn(5, 7)
    total = 0.
    for s, o, row in zip(same.tolist(), other.tolist(), queue.tolist()):
        negatives = sum(math.exp(v) for v in row)
        for positive in (s, o): total -= math.log(math.exp(positive)/(math.exp(positive) + negatives))
    assert avid_loss(same, other, queue).item() == pytest.approx(total/5, rel=1e-5)


def test_queue_is_trimmed_to_a_multiple_of_the_global_batch():
    assert trim_queue(16384, 192) == 16320
    assert trim_queue(8, 4) == 8
    with pytest.raises(InputError, match='shorter than the global batch'): trim_queue(3, 4)


def test_speeds_of_a_window_follow_the_reference():
    "Of 32 frames: speed 1 is 0 to 15, speed 2 is 0, 2, ... 30; the negative key is the same clip at the other speed"
    x = torch.arange(32.).view(1, 1, 32, 1, 1, 1).repeat(2, 2, 1, 3, 1, 1)
    x[:, 1] += 100
    query, same, other = (c[..., 0, 0, 0].tolist() for c in RSPNet().speeds(x, torch.tensor([False, True])))
    slow, fast = list(range(16)), list(range(0, 32, 2))
    slow_key, fast_key = [100 + i for i in slow], [100 + i for i in fast]
    assert query == [slow, fast]
    assert same == [slow_key, fast_key]
    assert other == [fast_key, slow_key]


def test_other_speeds():
    x = torch.arange(32.).view(1, 1, 32, 1, 1, 1).repeat(2, 2, 1, 3, 1, 1)
    query = RSPNet(speed=4).speeds(x, torch.tensor([False, True]))[0][..., 0, 0, 0].tolist()
    assert query == [list(range(8)), list(range(0, 32, 4))]


def test_windows_start_independently_anywhere():
    rnd, m = random.Random(0), RSPNet()
    windows = [m.sample(40, 16, 1, rnd)[0] for _ in range(3000)]
    starts = np.array([[w[0] for w in pair] for pair in windows])
    counts = np.bincount(starts.ravel())
    assert len(counts) == 9
    assert np.abs(counts/6000 - 1/9).max() < .02
    assert abs(np.corrcoef(starts.T)[0, 1]) < .06
    assert all(w.tolist() == list(range(w[0], w[0] + 32)) for w in windows[0])


def test_windows_wrap_in_short_videos():
    window = RSPNet().sample(29, 16, 1, random.Random(0))[0][0]
    assert window.tolist() == [*range(29), 0, 1, 2]


def by_hand(net, x, fast, before, keys, training):
    "RSPNet's loss from the formulas, by nets with the weights `before` of queries and `keys`; and the negative keys"
    query_net, key_net = tiny(), tiny()
    for module, weights in ((query_net, before), (key_net, keys)):
        module.load_state_dict({n.removeprefix('encoder.'):v for n, v in weights.items() if n.startswith('encoder.')})
        module.train(training)
    slow, quick = x[:, :, :4], x[:, :, ::2]
    def pick(window, flip): return torch.stack([(quick if fast[i] != flip else slow)[i, window] for i in range(len(x))])
    def project(f, weights, head):
        out = f @ weights[f'{head}.weight'].T + weights[f'{head}.bias']
        return torch.stack([row/row.square().sum().sqrt() for row in out])
    fq, fs, fo = query_net(pick(0, False)), key_net(pick(1, False)), key_net(pick(1, True))
    a, same_a, other_a = (project(f, w, 'appearance') for f, w in ((fq, before), (fs, keys), (fo, keys)))
    m, same_m, other_m = (project(f, w, 'motion') for f, w in ((fq, before), (fs, keys), (fo, keys)))
    total = 0.
    for i in range(4):
        gap = ((m[i]*same_m[i]).sum() - (m[i]*other_m[i]).sum()).item()/.07
        total += max(0., 2 - gap)/4
        negatives = (before['queue'].T @ a[i]/.07).tolist()
        for positive in (same_a, other_a):
            p = (a[i]*positive[i]).sum().item()/.07
            total += (math.log(sum(math.exp(v - p) for v in negatives) + 1))/4
    return total, other_a, key_net


@pytest.mark.parametrize('training', [True, False])
def test_a_batch_equals_an_independent_computation(training):
    "The loss, and in training the moved keys and the queue"
    torch.manual_seed(0)
    m = small(momentum=.9)
    net = m.build(tiny())
    with torch.no_grad():
        for p in net.heads.keys.parameters(): p += .1*torch.randn_like(p)  # keys and queries differ
    net.train(training)
    before = {k:v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(5)
    loss = m.loss(net(random_clips()), torch.zeros(4, dtype=torch.long))
    torch.manual_seed(5)
    order = torch.randperm(4) if training else range(4)
    fast = [bool(i % 2) for i in order]
    assert sum(fast) == 2

    def is_statistic(name): return 'running' in name or 'num_batches' in name
    queries = {k.removeprefix('heads.'):v for k, v in before.items()}
    keys = {k.removeprefix('heads.keys.'):v for k, v in before.items() if k.startswith('heads.keys.')}
    if training: keys = {k:v if is_statistic(k) else .9*v + .1*queries[k] for k, v in keys.items()}
    with torch.no_grad(): total, other_a, key_net = by_hand(net, random_clips(), fast, queries, keys, training)
    assert loss.item() == pytest.approx(total, rel=1e-4)

    after = net.state_dict()
    if not training: assert all(torch.equal(after[n], v) for n, v in before.items())
    else:
        for n, v in keys.items():
            if not is_statistic(n): torch.testing.assert_close(after[f'heads.keys.{n}'], v)
        torch.testing.assert_close(after['heads.queue'][:, :4].T, other_a)  # the keys at the other speed
        assert torch.equal(after['heads.queue'][:, 4:], before['heads.queue'][:, 4:])
        assert after['heads.queue_ptr'].item() == 4
        for n, v in key_net.state_dict().items():
            if 'running' in n: torch.testing.assert_close(after[f'heads.keys.encoder.{n}'], v)

    loss.backward()
    assert all(p.grad is None for p in net.heads.keys.parameters())
    trained = [*net.encoder.parameters(), net.heads.motion.weight, net.heads.appearance.weight]
    assert all(p.grad is not None for p in trained)


def test_the_queue_goes_round():
    heads = small(queue=6).build(tiny()).heads
    for i in range(5): heads.enqueue(torch.full((2, 6), float(i)))
    assert heads.queue[0].tolist() == [3., 3., 4., 4., 2., 2.]
    assert heads.queue_ptr.item() == 4
    heads.enqueue(torch.full((3, 6), 9.))  # a batch without its broken video
    assert heads.queue[0].tolist() == [9., 3., 4., 4., 9., 9.]


def test_it_trains_and_its_keys_follow(dls):
    learn = quiet(dls, encoder := tiny(), m := small(momentum=.5))
    learn.fit(2)
    assert m.queue == 8
    assert learn.recorder.metric_names[3:-1] == ['train_rsp_acc', 'train_avid_acc', 'rsp_acc', 'avid_acc']
    keys = m.pretext_net.heads.keys.encoder
    assert not torch.equal(next(keys.parameters()), next(tiny().parameters()))
    optimised = {id(p) for group in learn.opt.param_lists for p in group}
    assert not optimised & {id(p) for p in keys.parameters()}
    assert m.held_out(dls.valid)(encoder) == pytest.approx(learn.validate()[0], rel=1e-5)


def test_the_place_in_the_batch_does_not_reveal_the_speed():
    "Which half of the batch is fast is drawn"
    m, seen = small(), []
    def speeds(x, fast):
        seen.append(fast.tolist())
        return RSPNet.speeds(m, x, fast)
    m.speeds = speeds
    net = m.build(tiny()).train()
    for _ in range(20): net(random_clips(b=6))
    assert all(sum(fast) == 3 for fast in seen)
    assert len({tuple(fast) for fast in seen}) > 5
