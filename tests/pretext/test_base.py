"What all methods of pre-training share, with `Pace` as the example: a fit, columns, held-out loss, resuming."
import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.learner import Learner, load_learner
from fastai.optimizer import SGD, OptimWrapper
from fastai.torch_core import set_seed
from helpers import data, same, state
from pretraining import Seed, quiet, tiny
from torch import nn

from sdfast.data.block import MultiClip
from sdfast.data.task import Task, unlabelled
from sdfast.errors import InputError
from sdfast.metrics.retention import Retention
from sdfast.models.encoders import encoder_head_split
from sdfast.pretext.base import Pretext
from sdfast.pretext.loaders import video_dls
from sdfast.pretext.pace import Pace
from sdfast.runtime.resume import Resume


@pytest.fixture
def dls(clips):
    "Labelled videos of 12 frames, clips of 4"
    return Task.from_folder(clips, test_frac=.25).hold_out(.25).dls(frames=4, size=24, bs=4)


def inside(**kwargs): return Pace(paces=(1, 2, 3), restart=False, **kwargs)


@pytest.fixture
def trained(dls):
    "An encoder after two epochs, and the method"
    learn = quiet(dls, tiny(), pace := inside())
    learn.fit(2)
    return learn.model, pace


# a fit

@pytest.mark.parametrize('head', [False, True])
def test_trains_the_encoder_and_gives_the_model_back(dls, head):
    encoder, loss = tiny(), nn.CrossEntropyLoss()
    model = nn.Sequential(encoder, nn.Linear(24, 7)) if head else encoder
    splitter = encoder_head_split if head else lambda m: list(m.parameters())
    before = state(model)
    learn = quiet(dls, model, inside(), loss_func=loss, splitter=splitter, wd=.1)
    learn.fit(2)
    assert learn.model is model
    assert learn.loss_func is loss
    assert not learn.metrics
    assert not [c for c in learn.cbs if 'Leave' in type(c).__name__]
    changed = {k for k, v in state(model).items() if not torch.equal(before[k], v)}
    assert not {k for k in changed if k.startswith('1.')}  # the model's own head, in spite of weight decay
    assert changed >= {k for k, _ in encoder.named_parameters(prefix='0' if head else '')}
    columns = ['epoch', 'train_loss', 'valid_loss', 'train_pace_acc', 'pace_acc', 'time']
    assert learn.recorder.metric_names == columns


@pytest.mark.parametrize('opt', [partial(SGD, mom=.9), partial(OptimWrapper, opt=torch.optim.SGD)])
def test_heads_train_in_the_last_group_of_the_optimizer(dls, opt):
    pace = inside()
    model = nn.Sequential(tiny(), nn.Linear(24, 7))
    learn = quiet(dls, model, pace, splitter=encoder_head_split, opt_func=opt)
    class First(Callback):
        order = 5
        def before_fit(self): self.heads = state(self.learn.model.heads)
    learn.fit(1, slice(.1, .5), cbs=(first := First()))
    first_group, last_group = ({id(p) for p in learn.opt.param_lists[i]} for i in (0, -1))
    heads = {id(p) for p in pace.pretext_net.heads.parameters()}
    assert len(heads) == 2
    assert heads <= last_group
    assert not heads & first_group
    trained = state(pace.pretext_net.heads)
    assert not any(torch.equal(v, trained[k]) for k, v in first.heads.items())


def test_a_second_fit_continues_with_the_heads(dls):
    pace = inside()
    learn = quiet(dls, nn.Sequential(tiny(), nn.Linear(24, 7)), pace, splitter=encoder_head_split)
    learn.fit(1)
    n, heads = len(learn.opt.param_lists[-1]), pace.pretext_net.heads
    learn.fit(1)
    assert len(learn.opt.param_lists[-1]) == n
    assert pace.pretext_net.heads is heads


def test_weight_decay_leaves_out_biases_of_heads_as_of_models(dls):
    learn = quiet(dls, tiny(), pace := inside())
    learn.fit(1)
    head = pace.pretext_net.heads
    assert learn.opt.state[head.bias]['do_wd'] is False
    assert learn.opt.state[head.weight].get('do_wd', True)


def test_a_step_is_that_of_plain_torch(dls):
    "One step of SGD on encoder and head equals a hand-written one on the same batch"
    learn = quiet(dls, tiny(), pace := inside(jitter=(0, 0, 0, 0)), opt_func=SGD, lr=.1)
    seen = []
    class Spy(Callback):
        order = 50
        def before_fit(self): self.learn.start = state(self.learn.model)
        def before_batch(self): seen.append((self.learn.x.clone(), self.learn.y.clone()))
        def after_step(self): raise CancelFitException  # a second step would blow up the last digits
    learn.fit(1, cbs=Spy())
    encoder, head = tiny(), nn.Linear(24, 3)
    for module, prefix in ((encoder, 'encoder.'), (head, 'heads.')):
        module.load_state_dict({k.removeprefix(prefix):v for k, v in learn.start.items() if k.startswith(prefix)})
    (x, y), = seen
    z = head(encoder(x.as_subclass(torch.Tensor)[:, 0]))
    log_p = z - z.exp().sum(1, keepdim=True).log()
    loss = -log_p[range(len(y)), y].mean()
    parameters = [*encoder.parameters(), *head.parameters()]
    grads = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for p, g in zip(parameters, grads): p -= .1*g
    torch.testing.assert_close(state(encoder), state(learn.model), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(state(head), state(pace.pretext_net.heads), rtol=1e-4, atol=1e-6)


def test_columns_are_accuracies_of_the_batches_seen(dls):
    hits = {True: [], False: []}
    class Count(Callback):
        order = 50
        def after_loss(self): hits[self.learn.training] += (self.learn.pred.argmax(1) == self.learn.y).tolist()
    learn = quiet(dls, tiny(), inside())
    learn.fit(1, cbs=Count())
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert row['train_pace_acc'] == np.mean(hits[True])
    assert row['pace_acc'] == np.mean(hits[False])
    assert len(hits[False]) == len(dls.valid_ds)


def test_validate_gives_the_held_out_loss(dls):
    learn = quiet(dls, tiny(), pace := inside())
    learn.fit(1)
    loss, *more = learn.validate()
    assert not more
    assert loss == pytest.approx(pace.held_out(dls.valid)(learn.model), rel=1e-5)


def test_validate_inside_a_fit(dls):
    learn = quiet(dls, tiny(), pace := inside())
    class Nested(Callback):
        order = 70
        def after_epoch(self):
            if not self.learn.lock.locked(): self.found = self.learn.validate()[0]
    learn.fit(1, cbs=(nested := Nested()))
    assert nested.found == pytest.approx(pace.held_out(dls.valid)(learn.model), rel=1e-5)
    assert type(learn.model).__name__ == 'SpaceTimeEncoder'


def test_predictions(dls):
    learn = quiet(dls, tiny(), inside())
    learn.fit(1)
    preds, y = learn.get_preds()
    assert preds.shape == (len(dls.valid_ds), 3)
    assert set(y.tolist()) <= {0, 1, 2}


def test_errors_give_the_model_back(dls):
    learn = quiet(dls, encoder := tiny(), inside())
    class Boom(Callback):
        def after_step(self): raise RuntimeError('boom')
    with pytest.raises(RuntimeError, match='boom'): learn.fit(1, cbs=Boom())
    assert learn.model is encoder
    assert not learn.metrics
    learn.fit(1)
    assert learn.model is encoder


def test_lr_find_leaves_encoder_and_heads_as_they_were(dls, tmp_path):
    learn = quiet(dls, tiny(), pace := inside(), path=tmp_path)
    learn.fit(1)
    before, heads = state(learn.model), state(pace.pretext_net.heads)
    learn.lr_find(num_it=6, show_plot=False)
    assert same(before, state(learn.model))
    assert same(heads, state(pace.pretext_net.heads))


def test_unlabelled_videos_train(counted):
    learn = quiet(video_dls(counted[:4], counted[4:], frames=4, size=24, bs=2), tiny(), inside())
    learn.fit(1)
    assert np.isfinite(learn.recorder.values[-1]).all()


def test_features_of_an_encoder_without_num_features_are_counted(dls):
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 5)
        def forward(self, x): return self.lin(x.mean((1, 3, 4)))
    learn = quiet(dls, Mean(), pace := inside())
    learn.fit(1)
    assert pace.pretext_net.heads.weight.shape == (3, 5)


def test_what_it_refuses(dls):
    with pytest.raises(InputError, match='MultiClip'): quiet(dls, tiny(), [inside(), MultiClip()]).fit(1)
    images = quiet(data(), tiny(), inside(), loss_func=F.cross_entropy)
    with pytest.raises(InputError, match='SampleClips'): images.fit(1)


def test_methods_must_be_complete(dls):
    class Half(Pretext): pass
    with pytest.raises(NotImplementedError, match='must define'): quiet(dls, tiny(), Half()).fit(1)


# held-out loss

def test_held_out_loss_is_the_mean_over_videos(dls, trained):
    encoder, pace = trained
    found = pace.held_out(dls.valid)(encoder.train())
    assert encoder.training
    encoder.eval()
    heads, each = pace.pretext_net.heads, []
    with torch.no_grad():
        for x, y in pace.loader(dls.valid):
            logits = heads(encoder(x.as_subclass(torch.Tensor)[:, 0]))
            each += F.cross_entropy(logits, y, reduction='none').tolist()
    assert found == pytest.approx(np.mean(each), rel=1e-5)


def test_held_out_loss_keeps_the_heads_of_its_time(dls, trained):
    encoder, pace = trained
    loss = pace.held_out(dls.valid)
    found = loss(encoder)
    with torch.no_grad(): pace.pretext_net.heads.weight.zero_()
    assert loss(encoder) == found


def test_held_out_loss_refuses_training_loaders(dls, trained):
    with pytest.raises(InputError, match='neither shuffles'): trained[1].held_out(dls.train)


def test_retention_takes_the_held_out_loss(dls, trained):
    encoder, pace = trained
    loader = unlabelled(dls, [p for p, _ in dls.valid.items])
    model = nn.Sequential(encoder, nn.Linear(24, 2))
    kept = Retention(model, clips=loader, pretext=pace.held_out(loader))
    assert kept.reference.pretext == pytest.approx(pace.held_out(dls.valid)(encoder), rel=1e-5)
    assert kept.change(encoder)['pretext'] == 0
    assert kept.change(tiny(5))['pretext'] != 0


# resuming and exporting

@pytest.mark.parametrize('seeded', [True, False])
def test_resumed_training_ends_with_the_same_weights(dls, tmp_path, seeded):
    class Stop(Callback):
        order = 90
        def __init__(self, epoch): self.at = epoch
        def after_batch(self):
            if self.learn.training and self.learn.epoch == self.at and self.learn.iter == 1: raise KeyboardInterrupt

    def fit(folder, loader_seed, stop=None):
        for dl in dls: dl.rng = random.Random(loader_seed)
        set_seed(3)
        learn = quiet(dls, tiny(), pace := inside())
        try: learn.fit(4, cbs=[Resume(folder), Stop(stop), *([Seed()] if seeded else [])])
        except KeyboardInterrupt: pass
        return state(learn.model), state(pace.pretext_net.heads), [list(v) for v in learn.recorder.values]

    encoder, heads, values = fit(tmp_path/'a', 4)
    fit(tmp_path/'b', 4, stop=2)
    again = fit(tmp_path/'b', 5)  # another process draws others
    assert same(encoder, again[0])
    assert same(heads, again[1])
    assert values == again[2]
    assert len(values) == 4


def test_an_exported_learner_loads_without_heads(trained, dls, tmp_path):
    encoder, pace = trained
    quiet(dls, encoder, pace, path=tmp_path).remove_cb(pace)
    learn = Learner(dls, encoder, cbs=pace, path=tmp_path)
    learn.export('x.pkl')
    assert same(state(load_learner(tmp_path/'x.pkl').model), state(encoder))
