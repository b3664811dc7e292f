"What all ways of pre-training share, with `Pace` as the example: clips, labels, heads, columns, held-out loss, checkpoints."
import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.data.transforms import IntToFloatTensor
from fastai.learner import Learner
from fastai.optimizer import SGD, OptimWrapper
from fastai.torch_core import set_seed
from fastai.vision.augment import Flip
from fasttransform import Transform
from helpers import numbered, same, state
from torch import nn
from torchvision.transforms.v2 import functional as tvf

from sdfast.data.block import ClipTransform, MultiClip
from sdfast.data.clips import SampleClips, TensorVideo
from sdfast.data.digits import write_video
from sdfast.data.task import Task, unlabelled
from sdfast.errors import InputError
from sdfast.metrics.retention import Retention
from sdfast.models.encoders import create_encoder, encoder_head_split
from sdfast.models.weights import load_encoder
from sdfast.pretext import (
    ColourJitter,
    Pace,
    Pretext,
    jitter_colours,
    pace_indices,
    read_checkpoint,
    to_grey,
    video_dls,
)
from sdfast.runtime.resume import Resume


def tiny(seed=0):
    torch.manual_seed(seed)
    return create_encoder('tiny', width=2)


def quiet(dls, model, cbs, lr=.05, **kwargs):
    "A silent learner with SGD"
    learn = Learner(dls, model, cbs=cbs, lr=lr, **dict(opt_func=partial(SGD, mom=.9)) | kwargs)
    learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == 'ProgressCallback'])
    learn.logger = lambda *a: None
    return learn


class Seed(Callback):
    "Each epoch a function of its number"
    order = 100
    def before_train(self):
        set_seed(self.learn.epoch)
        self.learn.dl.rng = random.Random(self.learn.epoch)


@pytest.fixture
def dls(clips):
    "12-frame videos, clips of 4 frames"
    return Task.from_folder(clips, test_frac=.25).hold_out(.25).dls(frames=4, size=24, bs=4)


@pytest.fixture(scope='module')
def counted(tmp_path_factory):
    "Videos of 20 frames whose level tells the frame"
    root = tmp_path_factory.mktemp('counted')
    for i in range(6): write_video(root/f'v{i}.mp4', numbered(20))
    return sorted(root.glob('*.mp4'))


def frames(x): return (x.float().mean((-3, -2, -1))/6).round().long()


def inside(**kwargs): return Pace(paces=(1, 2, 3), restart=False, **kwargs)


# what the callback does to a learner

@pytest.mark.parametrize('head', [False, True])
def test_trains_the_encoder_and_gives_the_model_back(dls, head):
    encoder = tiny()
    model = nn.Sequential(encoder, nn.Linear(24, 7)) if head else encoder
    before, loss = state(model), nn.CrossEntropyLoss()
    learn = quiet(dls, model, inside(), loss_func=loss, splitter=encoder_head_split if head else lambda m: list(m.parameters()), wd=.1)
    learn.fit(2)
    assert learn.model is model and learn.loss_func is loss and not learn.metrics and [type(c).__name__ for c in learn.cbs if 'Leave' in type(c).__name__] == []
    after = state(model)
    changed = {k for k in after if not torch.equal(before[k], after[k])}
    assert {k for k in changed if k.startswith('1.')} == set()  # a head that the model has is left alone, weight decay and all
    assert all(k in changed for k, _ in encoder.named_parameters(prefix='0' if head else ''))
    assert learn.recorder.metric_names == ['epoch', 'train_loss', 'valid_loss', 'train_pace_acc', 'pace_acc', 'time']


@pytest.mark.parametrize('opt', [partial(SGD, mom=.9), partial(OptimWrapper, opt=torch.optim.SGD)])
def test_heads_train_in_the_last_group_of_the_optimizer(dls, opt):
    pace = inside()
    learn = quiet(dls, nn.Sequential(tiny(), nn.Linear(24, 7)), pace, splitter=encoder_head_split, opt_func=opt)
    class First(Callback):
        order = 5
        def before_fit(self): self.heads = state(self.learn.model.heads)
    learn.fit(1, slice(.1, .5), cbs=(first := First()))
    heads = list(pace.pretext_net.heads.parameters())
    assert [any(p is q for q in learn.opt.param_lists[-1]) for p in heads] == [True, True] and not any(p is q for p in heads for q in learn.opt.param_lists[0])
    assert not any(torch.equal(a, b) for a, b in zip(first.heads.values(), state(pace.pretext_net.heads).values()))
    n, kept = len(learn.opt.param_lists[-1]), pace.pretext_net.heads
    learn.fit(1)
    assert len(learn.opt.param_lists[-1]) == n and pace.pretext_net.heads is kept  # a second fit goes on with them


def test_weight_decay_leaves_out_biases_of_heads_as_of_models(dls):
    learn = quiet(dls, tiny(), pace := inside())
    learn.fit(1)
    head = pace.pretext_net.heads
    assert learn.opt.state[head.bias]['do_wd'] is False and learn.opt.state[head.weight].get('do_wd', True)


def test_a_step_is_that_of_plain_torch(dls):
    "One step of SGD on encoder and head equals a hand-written one on the same batch"
    learn = quiet(dls, tiny(), pace := inside(jitter=(0, 0, 0, 0)), opt_func=SGD, lr=.1)
    seen = []
    class Spy(Callback):
        order = 50
        def before_fit(self): self.learn.start = {k:v.clone() for k, v in self.learn.model.state_dict().items()}
        def before_batch(self): seen.append((self.learn.x.clone(), self.learn.y.clone()))
        def after_step(self): raise CancelFitException  # a second step would blow up the last digits
    learn.fit(1, cbs=Spy())
    encoder = tiny()
    head = nn.Linear(24, 3)
    encoder.load_state_dict({k[8:]:v for k, v in learn.start.items() if k.startswith('encoder.')}), head.load_state_dict({k[6:]:v for k, v in learn.start.items() if k.startswith('heads.')})
    for x, y in seen:
        z = head(encoder(x.as_subclass(torch.Tensor)[:, 0]))
        loss = -(z - z.exp().sum(1, keepdim=True).log())[range(len(y)), y].mean()  # cross-entropy written out
        grads = torch.autograd.grad(loss, [*encoder.parameters(), *head.parameters()])
        with torch.no_grad():
            for p, g in zip([*encoder.parameters(), *head.parameters()], grads): p -= .1*g
    torch.testing.assert_close(state(encoder), state(learn.model), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(state(head), state(pace.pretext_net.heads), rtol=1e-4, atol=1e-6)
    assert len(seen) == 1


def test_columns_are_accuracies_of_the_batches_seen(dls):
    hits = {True: [], False: []}
    class Count(Callback):
        order = 50
        def after_loss(self): hits[self.learn.training] += (self.learn.pred.argmax(1) == self.learn.y).tolist()
    learn = quiet(dls, tiny(), inside())
    learn.fit(1, cbs=Count())
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert row['train_pace_acc'] == np.mean(hits[True]) and row['pace_acc'] == np.mean(hits[False]) and len(hits[False]) == len(dls.valid_ds)


def test_validate_and_nested_validate(dls):
    learn = quiet(dls, tiny(), pace := inside())
    learn.fit(1)
    loss, *more = learn.validate()
    assert not more and loss == pytest.approx(pace.held_out(dls.valid)(learn.model), rel=1e-5)
    class Nested(Callback):
        order = 70
        def after_epoch(self):
            if not self.learn.lock.locked(): self.found = self.learn.validate()[0]
    learn.fit(1, cbs=(nested := Nested()))
    assert nested.found == pytest.approx(pace.held_out(dls.valid)(learn.model), rel=1e-5)
    assert type(learn.model).__name__ == 'SpaceTimeEncoder'
    preds, y = learn.get_preds()
    assert preds.shape == (len(dls.valid_ds), 3) and set(y.tolist()) <= {0, 1, 2}


def test_errors_and_cancels_give_the_model_back(dls):
    learn = quiet(dls, enc := tiny(), inside())
    class Boom(Callback):
        def after_step(self): raise RuntimeError('boom')
    with pytest.raises(RuntimeError, match='boom'): learn.fit(1, cbs=Boom())
    assert learn.model is enc and not learn.metrics
    learn.fit(1)
    assert learn.model is enc


def test_lr_find_leaves_encoder_and_heads_as_they_were(dls, tmp_path):
    learn = quiet(dls, tiny(), pace := inside(), path=tmp_path)
    learn.fit(1)
    before, heads = state(learn.model), state(pace.pretext_net.heads)
    learn.lr_find(num_it=6, show_plot=False)
    assert same(before, state(learn.model)) and same(heads, state(pace.pretext_net.heads))


def test_multi_clip_and_loaders_without_clips_are_refused(dls):
    with pytest.raises(InputError, match='MultiClip'): quiet(dls, tiny(), [inside(), MultiClip()]).fit(1)
    from helpers import data
    with pytest.raises(InputError, match='SampleClips'): quiet(data(), tiny(), inside(), loss_func=F.cross_entropy).fit(1)


def test_encoder_without_num_features_is_counted(dls):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 5)
        def forward(self, x): return self.lin(x.mean((1, 3, 4)))
    learn = quiet(dls, Mean(), pace := inside())
    learn.fit(1)
    assert pace.pretext_net.heads.weight.shape == (3, 5)


# clips and labels

def test_validation_clips_are_the_same_each_time_and_training_clips_are_not(dls):
    pace = Pace(paces=(1, 2, 3), restart=True)
    def read(dl): return [(x.clone(), y.clone()) for x, y in pace.loader(dl)]
    def equal(a, b): return all(torch.equal(x, v) and torch.equal(y, w) for (x, y), (v, w) in zip(a, b))
    assert pace.loader(dls.valid) is pace.loader(dls.valid)
    again = Pace(paces=(1, 2, 3), restart=True)
    random.seed(9)
    assert equal(read(dls.valid), read(dls.valid)) and equal(read(dls.valid), [(x, y) for x, y in again.loader(dls.valid)])
    assert not equal(read(dls.train), read(dls.train))


@pytest.mark.parametrize('restart', [True, False])
def test_the_label_is_the_pace_of_the_frames(counted, restart):
    dls = video_dls(counted[:4], counted[4:], frames=5, size=24, bs=2)
    pace = Pace(restart=restart, jitter=(0, 0, 0, 0))
    seen = set()
    for _ in range(12):
        for x, y in pace.loader(dls.train):
            levels = frames(dls.train.after_batch.decode((x,))[0])
            for v, label in zip(levels[:, 0], y):
                steps, p = v.diff(), int(label) + 1
                seen.add(int(label))
                assert v.tolist() == pace_indices(20, 5, p, int(v[0]))
                if not restart: assert (steps == p).all()
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize('n,frames_,pace,start', [(29, 16, 2, 20), (10, 16, 4, 9), (175, 16, 1, 174), (3, 5, 4, 1)])
def test_pace_indices_follow_the_reference(n, frames_, pace, start):
    "Counted from 1 as there: append, step, and back to frame 1 when the number exceeds the length"
    ref, i = [], start + 1
    while len(ref) < frames_:
        if i > n: i = 1
        ref.append(i - 1)
        i += pace
    assert pace_indices(n, frames_, pace, start) == ref


def test_pace_indices_by_hand(): assert pace_indices(29, 16, 2, 20) == [20, 22, 24, 26, 28, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]


def test_paces_and_starts_are_uniform():
    rnd, pace = random.Random(0), Pace()
    drawn = [pace.sample(50, 16, 1, rnd) for _ in range(8000)]
    assert np.abs(np.bincount([y for _, y in drawn])/8000 - .25).max() < .02
    assert np.abs(np.bincount([i[0][0] for i, _ in drawn], minlength=50)/8000 - .02).max() < .008


def test_videos_too_short_for_the_fastest_pace_are_left_out(counted):
    "Without a restart every clip that is cut would be a fast one; with too long clips no video is left"
    dls = video_dls(counted, counted, frames=8, size=24, bs=2)
    with pytest.raises(InputError, match='no video could be used'), pytest.warns(UserWarning, match='take 22'): quiet(dls, tiny(), inside()).fit(1)
    with pytest.raises(InputError, match='no held-out video'), pytest.warns(UserWarning):
        m = inside()
        m.build(tiny())
        m.held_out(dls.valid)(tiny())


def test_training_crops_are_drawn_for_each_clip_and_validation_crops_are_central(counted):
    class Two(Pace):
        def sample(self, n, frames, stride, rnd): return [[0, 1], [0, 1]], 0
    from sdfast.data.video import VideoFile
    from sdfast.pretext import PretextClips
    clips = PretextClips(Two(), SampleClips(2, size=24))
    ramp = torch.arange(28)[None, None, None, :].expand(20, 3, 28, 28).to(torch.uint8)
    clips.cache, clips.side = lambda path, side: ramp, 28
    video = VideoFile(counted[0])
    drawn = [clips((video,), split_idx=0)[0] for _ in range(30)]
    middle = clips((video,), split_idx=1)[0]
    assert {l for d in drawn for l in (int(d[0].min()), int(d[1].min()))} == set(range(5))
    assert any(int(d[0].min()) != int(d[1].min()) for d in drawn) and all(torch.equal(c[0], c[1]) for d in drawn for c in d)  # one crop for all frames
    assert int(middle.min()) == 2 and torch.equal(middle[0], middle[1])


def test_unlabelled_videos_train(counted):
    learn = quiet(video_dls(counted[:4], counted[4:], frames=4, size=24, bs=2), tiny(), inside())
    learn.fit(1)
    assert np.isfinite(learn.recorder.values[-1]).all()


@pytest.mark.parametrize('kind', ['unlabelled', 'task', 'floats'])
def test_augmentation_sees_floats_whatever_the_loader_leaves(counted, dls, clips, kind):
    seen = []
    class Look(Transform):
        order = 50
        def encodes(self, x:TensorVideo):
            seen.append((x.dtype, float(x.min()), float(x.max())))
            return x
    floats = Task.from_folder(clips, test_frac=.25).hold_out(.25).dls(frames=4, size=24, bs=4, tfms=[ClipTransform([Flip()])])
    method, loaders = inside(), dict(unlabelled=video_dls(counted[:4], counted[4:], frames=4, size=24, bs=2), task=dls, floats=floats)[kind]
    assert any(isinstance(f, IntToFloatTensor) for f in loaders.train.after_batch) == (kind == 'floats')
    method.batch_tfms = Look(),
    quiet(loaders, tiny(), method).fit(1)
    assert seen and all(dtype == torch.float32 and 0 <= low < high <= 1 for dtype, low, high in seen)


# colours

def test_jitter_equals_torchvision():
    x = torch.rand(2, 3, 3, 8, 8)
    f = torch.tensor([.6, 1.3]).view(2, 1, 1, 1, 1)
    h = torch.tensor([-.2, .15]).view(2, 1, 1, 1, 1)
    ours = jitter_colours(x, f, f, f, h, (3, 1, 0, 2))
    for i in range(2):
        v = f[i].item()
        theirs = tvf.adjust_saturation(tvf.adjust_brightness(tvf.adjust_contrast(tvf.adjust_hue(x[i], h[i].item()), v), v), v)
        torch.testing.assert_close(ours[i], theirs, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(to_grey(x), tvf.rgb_to_grayscale(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('each_frame', [True, False])
def test_jitter_is_drawn_for_frames_or_clips_and_for_training_alone(each_frame):
    from sdfast.data.clips import TensorVideo
    x = TensorVideo(torch.full((3, 2, 4, 3, 5, 5), .5))
    jitter = ColourJitter(.8, each_frame=each_frame)
    y = jitter(x, split_idx=0).as_subclass(torch.Tensor)[..., 0, 0, 0]
    assert len(y.unique()) == (24 if each_frame else 6) and (each_frame or (y == y[..., :1]).all())
    assert torch.equal(jitter(x, split_idx=1), x)
    grey = ColourJitter(grey=.5)(TensorVideo(torch.rand(200, 1, 2, 3, 4, 4)), split_idx=0).as_subclass(torch.Tensor)
    is_grey = (grey[:, :, :, 0] == grey[:, :, :, 2]).flatten(1).all(1)
    assert .3 < is_grey.float().mean() < .7


def test_jitter_of_frames_hides_the_pace_that_brightness_would_tell(counted):
    "In videos that only grow brighter the slope of a clip's brightness is its pace, and no longer so when frames are jittered one by one"
    dls = video_dls(counted, counted[:1], frames=4, size=24, bs=6)
    def told(jitter):
        pace, slopes, labels = Pace(paces=(1, 3), restart=False, jitter=jitter), [], []
        for _ in range(20):
            for x, y in pace.loader(dls.train):
                level = dls.train.after_batch.decode((x,))[0].as_subclass(torch.Tensor).float().mean((-3, -2, -1))[:, 0]
                slopes += (level[:, -1] - level[:, 0]).tolist()
                labels += y.tolist()
        fast, slow = ([s for s, l in zip(slopes, labels) if l == k] for k in (1, 0))
        return np.mean([f > s for f in fast for s in slow])
    assert told((0, 0, 0, 0)) == 1 and told(Pace().jitter) < .85


# held out, checkpoints, resume

@pytest.fixture
def trained(dls):
    learn = quiet(dls, tiny(), pace := inside())
    learn.fit(2)
    return learn.model, pace


def test_held_out_loss_is_the_mean_over_videos_and_stays_when_heads_go_on(dls, trained):
    encoder, pace = trained
    loss = pace.held_out(dls.valid)
    with torch.no_grad():
        encoder.eval()
        each = torch.cat([F.cross_entropy(pace.pretext_net.heads(encoder(x.as_subclass(torch.Tensor)[:, 0])), y, reduction='none') for x, y in pace.loader(dls.valid)])
        encoder.train()
    found = loss(encoder)
    assert found == pytest.approx(each.mean().item(), rel=1e-5) and encoder.training
    with torch.no_grad(): pace.pretext_net.heads.weight.zero_()
    assert loss(encoder) == found
    with pytest.raises(InputError, match='neither shuffles'): pace.held_out(dls.train)


def test_retention_takes_it(dls, trained):
    encoder, pace = trained
    paths = [p for p, _ in dls.valid.items]
    kept = Retention(nn.Sequential(encoder, nn.Linear(24, 2)), clips=unlabelled(dls, paths), pretext=pace.held_out(unlabelled(dls, paths)))
    assert kept.reference.pretext == pytest.approx(pace.held_out(dls.valid)(encoder), rel=1e-5) and kept.change(encoder)['pretext'] == 0
    assert kept.change(tiny(5))['pretext'] != 0


def test_checkpoints_load_exactly(trained, dls, tmp_path):
    encoder, pace = trained
    pace.save(tmp_path/'p.safetensors')
    assert [f.name for f in tmp_path.iterdir()] == ['p.safetensors']
    assert same(state(load_encoder(tiny(3), tmp_path/'p.safetensors')), state(encoder))
    other = tiny(4)
    method = read_checkpoint(tmp_path/'p.safetensors', other)
    assert same(state(other), state(encoder)) and same(state(method.pretext_net.heads), state(pace.pretext_net.heads))
    assert type(method) is Pace and list(method.paces) == [1, 2, 3] and method.restart is False
    assert method.held_out(dls.valid)(other) == pace.held_out(dls.valid)(encoder)
    with pytest.raises(InputError, match='not of this encoder'): read_checkpoint(tmp_path/'p.safetensors', create_encoder('tiny', width=3))
    (tmp_path/'bad').write_text('x')
    with pytest.raises(InputError, match='cannot be read'): read_checkpoint(tmp_path/'bad', tiny())


@pytest.mark.parametrize('seeded', [True, False])
def test_resumed_training_ends_with_the_same_weights(dls, tmp_path, seeded):
    def fit(folder, n, stop=None):
        set_seed(3)
        learn = quiet(dls, tiny(), pace := inside())
        class Stop(Callback):
            order = 90
            def after_batch(self):
                if self.learn.training and stop is not None and self.learn.epoch == stop and self.learn.iter == 1: raise KeyboardInterrupt
        try: learn.fit(n, cbs=[Resume(folder), Stop(), *([Seed()] if seeded else [])])
        except KeyboardInterrupt: pass
        return state(learn.model), state(pace.pretext_net.heads), [list(v) for v in learn.recorder.values]
    for dl in dls: dl.rng = random.Random(4)
    whole = fit(tmp_path/'a', 4)
    for dl in dls: dl.rng = random.Random(4)
    fit(tmp_path/'b', 4, stop=2)
    for dl in dls: dl.rng = random.Random(5)  # another process draws others
    rest = fit(tmp_path/'b', 4)
    assert same(whole[0], rest[0]) and same(whole[1], rest[1]) and whole[2] == rest[2] and len(rest[2]) == 4


def test_an_exported_learner_loads_without_heads(trained, dls, tmp_path):
    from fastai.learner import load_learner
    learn = quiet(dls, trained[0], trained[1], path=tmp_path)
    learn.remove_cb(trained[1])
    learn = Learner(dls, trained[0], cbs=trained[1], path=tmp_path)
    learn.export('x.pkl')
    assert same(state(load_learner(tmp_path/'x.pkl').model), state(trained[0]))


def test_methods_must_be_complete(dls):
    class Half(Pretext): pass
    with pytest.raises(NotImplementedError, match='must define'): quiet(dls, tiny(), Half()).fit(1)
