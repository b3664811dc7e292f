"DoGo: the reference's numbers, KL by hand, clips for both encoders, and peers that differ."
import math
from random import Random

import pytest
import torch
import torch.nn.functional as F
from helpers import same, state
from pretraining import Pixels, random_clips, tiny, waves

from sdfast.errors import InputError
from sdfast.models.encoders import create_encoder
from sdfast.models.weights import load_encoder
from sdfast.pretext.dogo import DoGo, similarity_kl


def test_losses_are_those_of_the_reference():
    "NeurAI-Lab/DoGo (branch dogo, b947d67): NT-Xent of both peers and both KL terms, of the same vectors"
    z = [F.normalize(waves(6, 8 + k)[:, :8], dim=1) for k in range(4)]
    method = DoGo()
    pred = method._compare(z[0], z[1], True), method._compare(z[2], z[3], True)
    def only(*weights): return DoGo(weights=weights).loss(pred, None).item()
    found = [only(1, 0, 0, 0), only(0, 1, 0, 0), only(0, 0, 1, 0), only(0, 0, 0, 1)]
    assert found == pytest.approx(
        [2.3490307331085205, 2.361694097518921, 1.7517762184143066, 1.4429748058319092], rel=1e-5)
    assert method.loss(pred, None).item() == pytest.approx(181.33132934570312, rel=1e-5)


def test_kl_by_hand():
    student, teacher = waves(3, 4), waves(3, 4).flip(0)
    total = 0.
    for s, t in zip(student.tolist(), teacher.tolist()):
        q, p = ([math.exp(v/.1) for v in row] for row in (s, t))
        total += sum(b/sum(p)*(math.log(b/sum(p)) - math.log(a/sum(q))) for a, b in zip(q, p))
    assert similarity_kl(student, teacher).item() == pytest.approx(total/12, rel=1e-5)


def test_no_peer_learns_by_teaching():
    "The KL of the encoder gives the peer no gradient, nor that of the peer the encoder"
    method = DoGo(weights=(0, 0, 1, 0), hidden=6, dim=4)
    net = method.build(Pixels()).train()
    method.loss(net(random_clips(k=4, t=4)), None).backward()
    assert net.encoder.lin.weight.grad.abs().sum() > 0
    assert not any(p.grad is not None and p.grad.any() for p in net.heads.peer.parameters())


def test_each_encoder_sees_both_clips_with_its_own_augmentation():
    method, rnd = DoGo(), Random(0)
    for _ in range(20):
        a, b, c, d = method.sample(40, 4, 2, rnd)[0]
        assert (a, b) == (c, d)
    blur = method.batch_tfms[1]
    assert blur.p == (.5,)*4
    assert method.area == (.3, 1.)

    method = DoGo(hidden=6, dim=4)
    net, x = method.build(Pixels()).eval(), random_clips(k=4, t=4)
    other = x.clone()
    other[:, 2:] = 0
    one, two = net(x), net(other)
    assert torch.equal(one[0][2], two[0][2])
    assert not torch.equal(one[1][2], two[1][2])


def test_the_peer_starts_elsewhere_and_is_saved_apart(tmp_path):
    method = DoGo(hidden=6, dim=4)
    encoder = tiny()
    before = state(encoder)
    net = method.build(encoder)
    assert same(before, state(encoder))
    convs = [n for n, p in encoder.named_parameters() if p.ndim > 1]
    peer = dict(net.heads.peer.named_parameters())
    assert convs
    assert all(not torch.equal(peer[n], before[n]) for n in convs)
    assert all(p.requires_grad for p in peer.values())
    method.save(tmp_path/'x.safetensors')
    assert same(state(load_encoder(tiny(3), tmp_path/'x.safetensors')), before)


def test_another_net_as_peer():
    method = DoGo(hidden=6, dim=4, peer='tiny', peer_args='width=3')
    net = method.build(tiny())
    assert net.heads.peer.num_features == 36
    x = random_clips(k=4)
    assert torch.isfinite(method.loss(net(x), None))
    assert method.scores(net(x), None).keys() == method.chances.keys()


def test_the_head_is_that_of_the_reference():
    head = DoGo().heads(7)
    assert [type(m).__name__ for m in head] == ['Linear', 'BatchNorm1d', 'ReLU', 'Linear']
    assert head[0].weight.shape == (512, 7)
    assert head[0].bias is None
    assert head[3].weight.shape == (128, 512)


@pytest.mark.parametrize('options', [dict(weights=(1, 1)), dict(weights=(1, 1, -1, 1)), dict(kl_temperature=0)])
def test_what_it_refuses(options):
    with pytest.raises(InputError, match='weights must be four numbers'): DoGo(**options)


def test_an_unknown_peer_is_refused():
    with pytest.raises(InputError, match='unknown model'): DoGo(peer='nope').build(create_encoder('tiny', width=2))
