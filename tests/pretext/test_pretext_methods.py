"RSPNet and clip order prediction: losses against independent computations, clips and labels as in the references, shortcuts, checkpoints."
import math
import os
import random
import socket
from itertools import permutations

import fastai.distributed  # noqa: F401 (patches `distrib_ctx` into `Learner`)
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from fastai.callback.core import Callback
from helpers import same, state
from test_pretext import Seed, counted, frames, quiet, tiny  # noqa: F401 (a fixture)
from torch import nn

from sdfast.errors import InputError
from sdfast.models.encoders import c3d, r2plus1d
from sdfast.models.weights import load_encoder
from sdfast.pretext import (
    CVRL,
    ClipOrder,
    InterIntra,
    Pace,
    RSPNet,
    avid_loss,
    order_label,
    read_checkpoint,
    read_rspnet,
    rsp_loss,
    save_rspnet,
    trim_queue,
    video_dls,
)
from sdfast.runtime.distributed import ShardedDL


def small(**kwargs): return RSPNet(**dict(queue=8, dim=6) | kwargs)


@pytest.fixture
def dls(counted): return video_dls(counted[:4], counted[4:], frames=4, size=24, bs=2)  # noqa: F811


def clips(b=4, k=2, t=8, seed=0): return torch.randn(b, k, t, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


# RSPNet

def test_rsp_loss_by_hand():
    "A cosine gap of .14 at temperature .07 is the margin of 2"
    assert rsp_loss(torch.tensor([1.])/.07, torch.tensor([.86])/.07).item() == pytest.approx(0, abs=1e-5)
    assert rsp_loss(torch.tensor([1., .5])/.07, torch.tensor([.93, .64])/.07).item() == pytest.approx((1. + 4.)/2, abs=1e-4)
    same, other = torch.randn(9), torch.randn(9)
    theirs = nn.MarginRankingLoss(2.)(same, other, torch.ones(9))
    torch.testing.assert_close(rsp_loss(same, other), theirs)


def test_avid_loss_written_out():
    same, other, queue = torch.randn(5), torch.randn(5), torch.randn(5, 7)
    by_hand = np.mean([sum(-math.log(math.exp(p)/(math.exp(p) + sum(math.exp(v) for v in row))) for p in (s, o)) for s, o, row in zip(same.tolist(), other.tolist(), queue.tolist())])
    assert avid_loss(same, other, queue).item() == pytest.approx(by_hand, rel=1e-5)


def test_queue_is_trimmed_to_a_multiple_of_the_global_batch():
    assert trim_queue(16384, 192) == 16320 and trim_queue(8, 4) == 8
    with pytest.raises(InputError, match='shorter than the global batch'): trim_queue(3, 4)


def test_speeds_of_a_window_follow_the_reference():
    "Of 32 frames: speed 1 is 0 to 15, speed 2 is 0, 2, ... 30; the negative key is the same clip at the other speed"
    x = torch.arange(32.).view(1, 1, 32, 1, 1, 1).repeat(2, 2, 1, 3, 1, 1)
    x[:, 1] += 100
    q, same, other = (c[..., 0, 0, 0].tolist() for c in RSPNet().speeds(x, torch.tensor([False, True])))
    slow, fast = list(range(16)), list(range(0, 32, 2))
    assert q == [slow, fast]
    assert same == [[100 + i for i in slow], [100 + i for i in fast]] and other == [[100 + i for i in fast], [100 + i for i in slow]]
    four = RSPNet(speed=4).speeds(x, torch.tensor([False, True]))[0][..., 0, 0, 0].tolist()
    assert four == [list(range(8)), list(range(0, 32, 4))]


def test_windows_start_on_their_own_anywhere_and_wrap_in_short_videos():
    rnd, m = random.Random(0), RSPNet()
    drawn = np.array([[w[0] for w in m.sample(40, 16, 1, rnd)[0]] for _ in range(3000)])
    assert np.abs(np.bincount(drawn.ravel(), minlength=9)/6000 - 1/9).max() < .02 and len(np.bincount(drawn.ravel())) == 9
    assert abs(np.corrcoef(drawn.T)[0, 1]) < .06
    assert all(w.tolist() == list(range(s, s + 32)) for w in m.sample(40, 16, 1, rnd)[0] for s in [w[0]])
    assert m.sample(29, 16, 1, rnd)[0][0].tolist() == [*range(29), 0, 1, 2]


@pytest.mark.parametrize('training', [True, False])
def test_rspnet_on_a_batch_equals_an_independent_computation(training):
    "Loss, and with training the moved keys and the queue, from the formulas written out"
    torch.manual_seed(0)
    m = small(momentum=.9)
    net = m.build(tiny())
    with torch.no_grad():
        for p in net.heads.keys.parameters(): p += .1*torch.randn_like(p)  # keys and queries differ
    net.train(training)
    x, y = clips(), torch.zeros(4, dtype=torch.long)
    before = {k:v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(5)
    loss = m.loss(net(x), y)
    torch.manual_seed(5)
    fast = [bool(i % 2) for i in (torch.randperm(4) if training else range(4))]
    assert sum(fast) == 2
    # a second net from the weights before, its parts called one by one
    q, k = tiny(), tiny()
    q.load_state_dict({n[8:]:v for n, v in before.items() if n.startswith('encoder.')})
    key = {n[11:]:v for n, v in before.items() if n.startswith('heads.keys.')}
    moved = {n:(.9*v + .1*before[(n if n.startswith('encoder.') else f'heads.{n}')] if training and 'running' not in n and 'num_batches' not in n else v) for n, v in key.items()}
    k.load_state_dict({n[8:]:v for n, v in moved.items() if n.startswith('encoder.')})
    q.train(training), k.train(training)
    def unit(f, w, b): return torch.stack([row/row.square().sum().sqrt() for row in f @ w.T + b])
    slow_fast = [[x[i, j, :4] for i in range(4)] if not s else [x[i, j, ::2] for i in range(4)] for j, s in ((0, 0), (0, 1), (1, 0), (1, 1))]
    def pick(j, flip): return torch.stack([slow_fast[2*j + (fast[i] != flip)][i] for i in range(4)])
    with torch.no_grad():
        fq, fs, fo = q(pick(0, False)), k(pick(1, False)), k(pick(1, True))
        a, mo = (unit(fq, before[f'heads.{h}.weight'], before[f'heads.{h}.bias']) for h in ('appearance', 'motion'))
        (sa, sm), (oa, om) = ([unit(f, moved[f'{h}.weight'], moved[f'{h}.bias']) for h in ('appearance', 'motion')] for f in (fs, fo))
        total = 0.
        for i in range(4):
            total += max(0., 2 - ((mo[i]*sm[i]).sum() - (mo[i]*om[i]).sum()).item()/.07)/4
            negatives = (before['heads.queue'].T @ a[i]/.07).tolist()
            for keys in (sa, oa):
                p = (a[i]*keys[i]).sum().item()/.07
                total += (math.log(sum(math.exp(v - p) for v in negatives) + 1))/4
    assert loss.item() == pytest.approx(total, rel=1e-4)
    after = net.state_dict()
    if training:
        for n, v in moved.items():
            if 'running' not in n and 'num_batches' not in n: torch.testing.assert_close(after[f'heads.keys.{n}'], v)
        torch.testing.assert_close(after['heads.queue'][:, :4].T, oa)  # the other-speed keys
        assert torch.equal(after['heads.queue'][:, 4:], before['heads.queue'][:, 4:]) and after['heads.queue_ptr'].item() == 4
        torch.testing.assert_close({n:v for n, v in after.items() if n.startswith('heads.keys.encoder') and 'running' in n}, {f'heads.keys.encoder.{n}':v for n, v in k.state_dict().items() if 'running' in n})
    else: assert all(torch.equal(after[n], v) for n, v in before.items())
    loss.backward()
    assert all(p.grad is None for p in net.heads.keys.parameters()) and all(p.grad is not None for p in [*net.encoder.parameters(), net.heads.motion.weight, net.heads.appearance.weight])


def test_the_queue_goes_round():
    m = small(queue=6)
    heads = m.build(tiny()).heads
    for i in range(5): heads.enqueue(torch.full((2, 6), float(i)))
    assert heads.queue[0].tolist() == [3., 3., 4., 4., 2., 2.] and heads.queue_ptr.item() == 4
    heads.enqueue(torch.full((3, 6), 9.))  # a batch from which a broken video is missing
    assert heads.queue[0].tolist() == [9., 3., 4., 4., 9., 9.]


def test_rspnet_trains_and_its_keys_follow(dls):
    learn = quiet(dls, enc := tiny(), m := small(momentum=.5))
    learn.fit(2)
    assert m.queue == 8 and learn.recorder.metric_names[3:-1] == ['train_rsp_acc', 'train_avid_acc', 'rsp_acc', 'avid_acc']
    key = m.pretext_net.heads.keys.encoder
    first = next(iter(dict(key.named_parameters())))
    assert not torch.equal(dict(key.named_parameters())[first], dict(tiny().named_parameters())[first])
    assert not any(any(p is q for q in key.parameters()) for pg in learn.opt.param_lists for p in pg)
    assert m.held_out(dls.valid)(enc) == pytest.approx(learn.validate()[0], rel=1e-5)


def test_neither_half_of_the_batch_tells_the_speed():
    "Who plays fast is drawn, half of the batch"
    m, seen = small(), []
    m.speeds = lambda x, fast: (seen.append(fast.tolist()), RSPNet.speeds(m, x, fast))[1]
    net = m.build(tiny()).train()
    for _ in range(20): net(clips(b=6))
    assert all(sum(f) == 3 for f in seen) and len({tuple(f) for f in seen}) > 5


@pytest.mark.parametrize('make,arch,entries', [(c3d, 'c3d', 56), (r2plus1d, 'r2plus1d-vcop', 144)])
def test_rspnets_own_layout_round_trip(make, arch, entries, tmp_path):
    torch.manual_seed(1)
    m = RSPNet(queue=4)
    net = m.build(make())
    with torch.no_grad():
        for p in net.heads.keys.parameters(): p += 1
    save_rspnet(m, tmp_path/'r.pth.tar', arch, 3)
    file = torch.load(tmp_path/'r.pth.tar', weights_only=True)
    model = file['model']
    assert file['arch'] == arch and file['epoch'] == 3 and len(model) == 2*(entries + 2 + 4) + 2
    assert model['queue'].shape == (128, 4) and model['queue_ptr'].shape == (1,) and model['encoder_q.encoder.linear.weight'].shape == (1, 512)
    assert model['encoder_k.fc1.2.weight'].shape == (128, 512) and model['encoder_q.fc2.2.bias'].shape == (128,)
    names = 'conv1.weight bn5b.running_var' if arch == 'c3d' else 'conv1.spatial_conv.weight conv5.block1.downsampleconv.temporal_conv.weight conv3.block1.downsamplebn.bias bn1.weight'
    assert all(f'encoder_{n}.encoder.{k}' in model for k in names.split() for n in 'qk')
    assert same(state(load_encoder(make(), tmp_path/'r.pth.tar')), state(net.encoder))  # strict: all of it, exactly
    enc = make()
    back = read_rspnet(tmp_path/'r.pth.tar', enc)
    assert same(state(back.pretext_net), state(net)) and back.queue == 4
    # what RSPNet's fine-tuning keeps: names behind encoder_q., without those that begin with a head's
    kept = [k[10:] for k in model if k.startswith('encoder_q.')]
    assert not [k for k in kept if not k.startswith(('encoder.', 'fc1.2.', 'fc2.2.'))]
    with pytest.raises(InputError, match='not of this encoder'): read_rspnet(tmp_path/'r.pth.tar', tiny())


@pytest.mark.parametrize('method', [lambda: small(), lambda: ClipOrder(gap=2, hidden=4), lambda: Pace(paces=(1, 2))])
def test_our_checkpoints_load_exactly_and_measure_the_same(dls, method, tmp_path):
    learn = quiet(dls, enc := tiny(), m := method())
    learn.fit(1)
    m.save(tmp_path/'x.safetensors')
    assert same(state(load_encoder(tiny(7), tmp_path/'x.safetensors')), state(enc))
    other = tiny(8)
    back = read_checkpoint(tmp_path/'x.safetensors', other)
    assert back.config.keys() == m.config.keys() and same(state(back.pretext_net), state(m.pretext_net))
    assert back.held_out(dls.valid)(other) == m.held_out(dls.valid)(enc)


# two processes

class Plain(nn.Module):
    "An encoder with batch norm or without"
    def __init__(self, norm):
        super().__init__()
        self.conv, self.bn, self.num_features = nn.Conv3d(3, 6, 3, stride=2), nn.BatchNorm3d(6) if norm else nn.Identity(), 6
    def forward(self, x): return self.bn(self.conv(x.transpose(1, 2))).relu().mean((2, 3, 4))


def keys_net(norm):
    torch.manual_seed(0)
    return small().build(Plain(norm)).train()


def cvrl_step(x, wrap=lambda net: net):
    torch.manual_seed(0)
    m = CVRL(layers=0, dim=4)
    net = m.build(Plain(False)).train()
    wrapped = wrap(net)  # DDP adds gradients up while it lives
    m.loss(wrapped(x), None).backward()
    return {n:p.grad for n, p in net.named_parameters()}


def banks_moved(part):
    torch.manual_seed(0)
    banks = InterIntra(videos=6).heads(4)
    f, index = torch.randn(3, 5, 4), torch.tensor([5, 0, 3, 1, 2])
    banks.update(f[:, part], index[part], .5)
    return banks.rows


def work(rank, port, folder, videos):
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2')
    torch.set_num_threads(1)
    dist.init_process_group('gloo', rank=rank, world_size=2)
    class DDP(Callback):
        order = 11
        def before_fit(self): self.learn.model = nn.parallel.DistributedDataParallel(self.learn.model)
        def after_fit(self): self.learn.model = self.learn.model.module
    x, out = clips(b=8, t=4)[:, 0], {}
    mine = x[4*rank:4*rank + 4]
    for norm in (False, True):
        torch.manual_seed(1 + rank)
        out[norm] = keys_net(norm).heads.keys(mine)
    net = keys_net(False)
    net.heads.enqueue(torch.full((2, 6), 1. + rank))
    out['queue'] = net.heads.queue
    out['cvrl step'] = cvrl_step(clips(b=8, t=4)[4*rank:4*rank + 4], nn.parallel.DistributedDataParallel)
    out['banks'] = banks_moved(slice(3*rank, 3 + 2*rank))
    for name, m in dict(rspnet=small(queue=9), pace=Pace(paces=(1, 2)), order=ClipOrder(gap=2, hidden=4), cvrl=CVRL(hidden=4, dim=4), iic=InterIntra(negatives=2)).items():
        learn = quiet(video_dls(videos[3*rank:3*rank + 3], videos[:2], frames=4, size=24, bs=2), enc := tiny(rank), m)
        torch.manual_seed(rank), random.seed(rank)
        learn.fit(2, cbs=DDP())
        out[name] = {**state(enc), **{f'heads.{k}':v for k, v in state(m.pretext_net.heads).items()}}
        if name == 'rspnet': out['trimmed'] = m.queue
        out[f'{name}.columns'] = list(learn.recorder.values[-1])[2:]
        assert type(learn.model) is type(enc)
    # as `torchrun` and fastai's own trainer do it: one set of videos, dealt out
    learn = quiet(video_dls(videos, videos[:2], frames=4, size=24, bs=1), enc := tiny(rank), m := small(queue=9))
    seen = []
    class See(Callback):
        order = 50
        def before_batch(self): seen.append((self.learn.training, len(self.learn.x)))
    with learn.distrib_ctx(sync_bn=False, cpu=True):
        learn.distributed_trainer._wrap_dl = lambda dl: dl if isinstance(dl, ShardedDL) else ShardedDL(dl, device=torch.device('cpu'))
        learn.fit(2, cbs=[Seed(), See()])
    out['dealt'] = {**state(enc), **{f'heads.{k}':v for k, v in state(m.pretext_net.heads).items()}}
    out['seen'], out['dealt.columns'] = seen, list(learn.recorder.values[-1])[2:]
    torch.save(out, f'{folder}/{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def two(tmp_path_factory, counted):  # noqa: F811
    folder = tmp_path_factory.mktemp('ddp')
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    mp.spawn(work, args=(port, folder, counted), nprocs=2)
    return [torch.load(folder/f'{r}.pt') for r in range(2)]


def test_shuffled_keys_come_back_to_their_clips(two):
    "Without batch norm the order in which clips are normalised does not matter: keys are those of one process"
    x = clips(b=8, t=4)[:, 0]
    alone = keys_net(False).heads.keys(x)
    torch.testing.assert_close(torch.cat([two[0][False], two[1][False]], 1), alone)


def test_shuffled_keys_are_normalised_with_clips_of_the_other_process(two):
    x = clips(b=8, t=4)[:, 0]
    unshuffled = torch.cat([keys_net(True).heads.keys(x[:4]), keys_net(True).heads.keys(x[4:])], 1)
    shuffled = torch.cat([two[0][True], two[1][True]], 1)
    assert not torch.allclose(shuffled, unshuffled, atol=1e-3)
    # it is one of the ways to deal eight clips to two processes
    def dealt(order):
        parts = torch.cat([keys_net(True).heads.keys(x[list(order[:4])]), keys_net(True).heads.keys(x[list(order[4:])])], 1)
        return parts[:, torch.tensor(order).argsort()]
    from itertools import combinations
    ways = [c + tuple(i for i in range(8) if i not in c) for c in combinations(range(8), 4)]
    assert any(torch.allclose(dealt(w), shuffled, atol=1e-5) for w in ways)


def test_queues_take_the_keys_of_all_processes_and_stay_equal(two):
    assert two[0]['queue'][0, :4].tolist() == [1., 1., 2., 2.] and torch.equal(two[0]['queue'], two[1]['queue'])
    assert two[0]['trimmed'] == 8  # 9, for two processes with batches of two


def test_cvrl_contrasts_with_the_clips_of_all_processes(two):
    "Gradients of two processes with four videos each are those of one with eight"
    alone = cvrl_step(clips(b=8, t=4))
    for t in two: torch.testing.assert_close(t['cvrl step'], alone, rtol=1e-4, atol=1e-6)


def test_banks_take_the_features_of_all_processes(two):
    "Three of one process, two of the other"
    for t in two: torch.testing.assert_close(t['banks'], banks_moved(slice(0, 5)))


@pytest.mark.parametrize('name', ['rspnet', 'pace', 'order', 'cvrl', 'iic', 'dealt'])
def test_two_processes_train_one_net(two, name):
    "Encoders, heads, queue; batch norm's own statistics are each process's, as DDP leaves them"
    a, b = ({k:v for k, v in t[name].items() if 'running' not in k and 'num_batches' not in k} for t in two)
    assert same(a, b) and all(torch.isfinite(v).all() for v in a.values())
    assert two[0][f'{name}.columns'] == two[1][f'{name}.columns'] or np.allclose(two[0][f'{name}.columns'], two[1][f'{name}.columns'], equal_nan=True)

    if name == 'dealt': assert two[0]['seen'] == [(True, 1)]*3 + [(False, 1)] + [(True, 1)]*3 + [(False, 1)]  # six videos to train on and two to validate, dealt to two


# clip order

@pytest.mark.parametrize('clips_', [2, 3])
def test_order_labels_are_lexicographic(clips_):
    assert [order_label(p) for p in sorted(permutations(range(clips_)))] == list(range(math.factorial(clips_)))
    if clips_ == 3: assert [order_label(p) for p in ((0, 1, 2), (0, 2, 1), (2, 1, 0))] == [0, 1, 5]


def test_clips_lie_as_in_the_reference():
    "Three clips of 16 with gaps of 8 take 64 frames; a shorter video is left out; starts and orders are uniform"
    m, rnd = ClipOrder(), random.Random(0)
    idx, label = m.sample(64, 16, 1, rnd)
    order = list(permutations(range(3)))[label]
    assert [c.tolist() for c in idx] == [list(range(24*i, 24*i + 16)) for i in order]
    from sdfast.data.video import VideoError
    with pytest.raises(VideoError, match='take 64'): m.sample(63, 16, 1, rnd)
    drawn = [m.sample(70, 16, 1, rnd) for _ in range(6000)]
    assert np.abs(np.bincount([y for _, y in drawn])/6000 - 1/6).max() < .02
    firsts = np.bincount([i.min() for i, _ in drawn])
    assert len(firsts) == 7 and np.abs(firsts/6000 - 1/7).max() < .02
    strided, label = m.sample(200, 4, 2, rnd)
    s = strided[np.argsort(list(permutations(range(3)))[label])]
    assert (np.diff(s, axis=1) == 2).all() and (s[1:, 0] - s[:-1, 0] == 24).all()


def test_the_label_says_where_the_clips_stand(counted):  # noqa: F811
    dls = video_dls(counted[:4], counted[4:], frames=3, size=24, bs=2)
    m = ClipOrder(gap=2)
    for dl in (dls.train, dls.valid):
        for x, y in m.loader(dl):
            levels = frames(dl.after_batch.decode((x,))[0])
            for v, label in zip(levels, y):
                order = v[:, 0].argsort().argsort()
                assert order_label(order.tolist()) == label and (v.diff(dim=1) == 1).all() and (v[:, 0].sort().values.diff() == 5).all()


class Pixels(nn.Module):
    "Features that differ much from clip to clip, as those of a net without training do not"
    num_features = 24
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4*3*16*16, 24)
    def forward(self, x): return 3*self.lin(x.flatten(1))


def test_order_loss_equals_an_independent_computation():
    torch.manual_seed(0)
    m = ClipOrder(hidden=5)
    net, x, y = m.build(Pixels()).eval(), clips(k=3, t=4), torch.tensor([0, 5, 3, 1])
    with torch.no_grad():
        loss = m.loss(net(x), y)
        f = [net.encoder(x[:, i]) for i in range(3)]
        w, b, W, B = (p for layer in (net.heads.pair, net.heads.out) for p in (layer.weight, layer.bias))
        h = [np.maximum((np.concatenate([f[i].numpy(), f[j].numpy()], 1) @ w.numpy().T + b.numpy()), 0) for i, j in ((0, 1), (0, 2), (1, 2))]
        z = np.concatenate(h, 1) @ W.numpy().T + B.numpy()
    by_hand = np.mean([-math.log(math.exp(r[i])/np.exp(r).sum()) for r, i in zip(z, y.tolist())])
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    net.train()
    assert not torch.equal(net.heads(torch.ones(1, 3, 24)), net.heads(torch.ones(1, 3, 24)))  # dropout


def test_order_is_guarded_against_edges_and_places():
    "Gaps, and crops of their own: see `test_training_crops_are_drawn_for_each_clip_and_validation_crops_are_central`"
    assert ClipOrder().gap == 8 and ClipOrder().zoom > 1 and not ClipOrder().flip
    with pytest.raises(InputError, match='between 2 and 5'): ClipOrder(clips=6)
