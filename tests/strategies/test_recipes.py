"What holds for every recipe, and those that freeze against loops written out by hand."
import copy
import random
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from fastai.callback.training import GradientAccumulation
from fastai.learner import load_learner
from fastai.optimizer import SGD, Adam, OptimWrapper
from helpers import data, learner, model, same, state
from strategy_helpers import (
    CPUAutocast,
    Stop,
    assert_close_states,
    clean,
    loop_by_hand,
    needs_peft,
    sgd,
    source,
    source_head,
)
from torch import nn

from sdfast.models.statistics import reestimate_bn
from sdfast.strategies import (
    L2SP,
    LPFT,
    SPD,
    DiGraP,
    EncoderLR,
    FixedTeacher,
    FrozenBN,
    LayerDecay,
    LinearProbe,
    LiNeS,
    LoRA,
    LowerLR,
    Replay,
    WiSEFT,
)

every = pytest.mark.parametrize('make', [
    pytest.param(FrozenBN, id='frozen_bn'),
    pytest.param(lambda: FrozenBN(affine=True), id='frozen_affine'),
    pytest.param(LinearProbe, id='linear_probe'),
    pytest.param(lambda: LPFT(1), id='lp_ft'),
    pytest.param(lambda: LayerDecay(.5), id='layer_decay'),
    pytest.param(lambda: LowerLR(3.), id='lower_lr'),
    pytest.param(lambda: EncoderLR(3.), id='encoder_lr'),
    pytest.param(WiSEFT, id='wise_ft'),
    pytest.param(lambda: WiSEFT(by_depth=True), id='wise_ft_depth'),
    pytest.param(LiNeS, id='lines'),
    pytest.param(lambda: SPD(1.), id='spd'),
    pytest.param(lambda: DiGraP(.3), id='digrap'),
    pytest.param(lambda: Replay(1., source(), source_head()), id='replay'),
    pytest.param(lambda: LoRA(2, 2), id='lora', marks=needs_peft),
])


def all_moved(a, b):
    "Whether all of a state has changed but the bias before batch norm, which subtracts it again"
    return not any(torch.equal(a[k], b[k]) for k in a if not k.endswith('conv.bias'))


@every
def test_validate_get_preds_and_lr_find_change_nothing(make, tmp_path):
    def run(disturb):
        cb = make()
        learn = learner(cb, path=tmp_path)
        learn.create_opt()
        if disturb:
            start = state(learn.model)
            random_state, py = torch.get_rng_state(), random.getstate()
            learn.lr_find(num_it=8, show_plot=False)
            torch.set_rng_state(random_state), random.setstate(py)
            assert same(state(learn.model), start)
            clean(learn)
            assert len(learn.validate()) == 1
            learn.get_preds()
            clean(learn)
        torch.manual_seed(1), random.seed(1)
        if isinstance(cb, Replay): cb.source, cb._random = source(), None  # a trial reads and draws too
        learn.fit(2)
        if disturb:
            start = state(learn.model)
            assert len(learn.validate()) == 1
            assert learn.get_preds()[0].shape == (16, 3)
            assert same(state(learn.model), start)
        torch.manual_seed(2)
        learn.fit(1)
        clean(learn)
        return state(learn.model)
    assert same(run(False), run(True))


@every
@pytest.mark.parametrize('attached', [True, False])
def test_interrupts_leave_nothing_behind(make, attached, tmp_path):
    for error in (KeyboardInterrupt(), CancelFitException()):
        cb = make()
        learn = learner(cb if attached else (), path=tmp_path)
        try: learn.fit(2, cbs=[Stop(error)] if attached else [cb, Stop(error)])
        except KeyboardInterrupt: pass
        if attached: learn.fit(2)
        clean(learn)
        learn.remove_cb(cb)
        learn.fit(1, reset_opt=True)
        clean(learn)
        before = state(learn.model)
        learn.fit(1)
        assert all_moved(before, state(learn.model))  # all of it trains again, statistics too


@pytest.mark.parametrize('make', [LinearProbe, pytest.param(lambda: LoRA(2), marks=needs_peft)])
def test_an_optimizer_made_while_the_encoder_was_frozen_is_completed(make):
    learn = learner(make())
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=Stop(KeyboardInterrupt()))
    learn.fit(1, lr=.05, wd=.2, reset_opt=True)
    clean(learn)
    assert learn.opt.hypers[0]['lr'] == .05 and learn.opt.hypers[0]['wd'] == .2


@every
def test_export_and_save_carry_nothing_extra(make, tmp_path):
    plain, learn = learner(path=tmp_path), learner(make(), path=tmp_path)
    plain.fit(2), learn.fit(2)
    plain.export('plain.pkl'), learn.export('x.pkl')
    assert (tmp_path/'x.pkl').stat().st_size < (tmp_path/'plain.pkl').stat().st_size + 1500
    loaded = load_learner(tmp_path/'x.pkl')
    assert same(state(loaded.model), state(learn.model))
    loaded.dls, loaded.logger = data(), lambda *a: None
    if isinstance(learn.cbs[-1], (SPD, DiGraP, WiSEFT, Replay)):
        with pytest.raises(ValueError, match='does not carry'): loaded.fit(1)
    else:
        loaded.fit(2)
        clean(loaded)
    learn.save('m', with_opt=False)
    assert torch.load(tmp_path/'models/m.pth').keys() == model().state_dict().keys()


@every
def test_composes_with_penalties_mixed_precision_and_accumulation(make):
    def run(*cbs):
        learn = learner([make(), *cbs], opt_func=partial(SGD, mom=.9, wd=0.))
        before = state(learn.model)
        learn.fit(2)
        clean(learn)
        assert all(v.isfinite().all() for v in state(learn.model).values())
        return before, state(learn.model)
    run(FixedTeacher(1.), L2SP(.1)), run(GradientAccumulation(24))
    (before, full), (_, low) = run(), run(CPUAutocast('bf16'))
    # bfloat16 rounds by little compared with what training changes, and what does not train is equal bit for bit
    weights = [k for k in full if 'bn.' not in k and k != '0.conv.bias']  # batch norm takes that bias off again
    assert [k for k in weights if torch.equal(full[k], before[k])] == [k for k in weights
        if torch.equal(low[k], before[k])]
    apart, moved = ((sum((a[k] - b[k]).square().sum() for k in weights))**.5 for a, b in ((low, full), (full, before)))
    assert 0 < apart < .1*moved


@every
def test_batch_norm_of_a_recipe(make):
    """With lr 0 nothing learns: only statistics move, as in plain fine-tuning, or not at all for a recipe that keeps
    them."""
    cb = make()
    ours, plain = learner(cb, lr=0.), learner(lr=0.)
    ours.fit(2), plain.fit(1 if isinstance(cb, LPFT) else 2)  # it probes in the first
    still = isinstance(cb, (FrozenBN, LinearProbe, LoRA)) and not isinstance(cb, LPFT)
    if isinstance(cb, WiSEFT): want = reestimate_bn(model(), data().train)
    else: want = model() if still else plain.model
    assert same(state(ours.model), state(want)) and not same(state(model()), state(plain.model))


@pytest.mark.parametrize('make', [
    pytest.param(lambda: LayerDecay(.5), id='layer_decay'),
    pytest.param(lambda: LowerLR(2.), id='lower_lr'),
    pytest.param(lambda: EncoderLR(2.), id='encoder_lr'),
    pytest.param(lambda: LPFT(1), id='lp_ft'),
    pytest.param(lambda: Replay(1., data(seed=5).valid, source_head()), id='replay'),
    pytest.param(FrozenBN, id='frozen_bn'),
    pytest.param(LinearProbe, id='linear_probe'),
    pytest.param(WiSEFT, id='wise_ft'),
    pytest.param(lambda: WiSEFT(by_depth=True), id='wise_ft_depth'),
    pytest.param(LiNeS, id='lines'),
    pytest.param(lambda: LoRA(2, 2), id='lora', marks=needs_peft),
])
def test_accumulation_equals_one_big_batch(make):
    net = model()
    # batch norm itself depends on the micro-batch, unless it is frozen
    if make not in (FrozenBN, LinearProbe): net[0].bn = nn.GroupNorm(2, 4)
    def run(bs, cbs):
        cb = make()
        if isinstance(cb, Replay): cb.source = data(n=16, bs=16, seed=5).train
        learn = learner([cb, *cbs], dls=data(bs=bs), net=copy.deepcopy(net))
        learn.fit(2)
        return state(learn.model)
    assert_close_states(run(24, []), run(8, [GradientAccumulation(24)]), rtol=1e-4)


@pytest.mark.parametrize('affine', [False, True])
def test_frozen_bn_equals_a_hand_written_loop(affine):
    net = model()
    net[0].bn.running_mean.fill_(.3)
    hand = copy.deepcopy(net)
    for p in hand[0].bn.parameters(): p.requires_grad_(not affine)
    want = loop_by_hand(hand, 2, sgd(hand), mode=lambda net, e: net[0].bn.eval())
    class Train(Callback):
        "Another callback switches modes in the middle of the epoch"
        order, run_valid = -7, False
        def before_batch(self): self.learn.model.train()
    learn = learner([FrozenBN(affine), Train()], net=copy.deepcopy(net))
    learn.fit(2)
    assert_close_states(state(learn.model), want)
    assert same(state(learn.model[0].bn), state(net[0].bn)) == affine


def test_linear_probe_is_a_linear_model_on_fixed_features():
    net = model(dropout=.5)
    head = copy.deepcopy(net[1])
    learn = learner(LinearProbe(), net=net, opt_func=partial(SGD, mom=.9, wd=.1))
    # as an earlier fit leaves them: momentum and decay would still act
    for p in net.parameters(): p.grad = torch.zeros_like(p)
    before = state(net[0])
    learn.fit(2)
    assert same(before, state(net[0]))
    net[0].eval()
    opt = torch.optim.SGD(head.parameters(), lr=.1, momentum=.9)
    for _ in range(2):
        for x, y in data().train:
            with torch.no_grad(): f = net[0](x)
            opt.zero_grad()
            F.cross_entropy(head(f), y).backward()
            head.weight.data.mul_(1 - .1*.1)  # fastai decays first, and no biases
            opt.step()
    assert_close_states(state(head), state(net[1]))
    clean(learn)


def test_the_probe_after_a_fit_moves_nothing_either():
    for opt in (partial(SGD, mom=.9, wd=.1), Adam, partial(OptimWrapper,
                                                           opt=partial(torch.optim.AdamW, weight_decay=.1))):
        learn = learner(opt_func=opt)
        learn.fit(1)
        before = state(learn.model)
        learn.fit(1, cbs=LinearProbe())
        after = state(learn.model)
        assert all(torch.equal(before[k], after[k]) == k.startswith('0.') for k in before)
        learn.fit(1)
        assert all_moved(after, state(learn.model))


def test_lpft_equals_a_hand_written_loop():
    net = model()
    hand = copy.deepcopy(net)
    def mode(net, e):
        net[0].requires_grad_(e >= 2)
        if e < 2: net[0].eval()
    want = loop_by_hand(hand, 4, sgd(hand), mode=mode)
    seen = []
    class Spy(Callback):
        def before_train(self):
            seen.append([bool(self.opt.state[p]) for p in self.learn.model[0].parameters()
                         if 'grad_avg' in self.opt.state[p]])
    learn = learner([LPFT(2), Spy()], net=net)
    learn.fit(4)
    assert_close_states(state(net), want)
    assert [len(s) for s in seen] == [0, 0, 0, 6]  # no momentum from the probe


def test_lpft_that_starts_late():
    def run(epoch):
        learn = learner(LPFT(2))
        before = state(learn.model[0])
        learn.fit(3, start_epoch=epoch)
        return before, state(learn.model[0]), learn
    before, after, learn = run(2)
    assert all_moved(before, after)
    plain = learner()
    plain.fit(1)
    assert same(state(plain.model), state(learn.model))
    with pytest.warns(UserWarning, match='never trains the encoder'): learner(LPFT(2)).fit(2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learner(LPFT(2)).fit(3)


@pytest.mark.parametrize('epochs', [-1, 1.5, True])
def test_epochs_of_a_probe_are_whole_numbers(epochs):
    with pytest.raises(ValueError, match='whole number'): LPFT(epochs)
