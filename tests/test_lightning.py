"Strategies in Lightning: the weights of fastai and of a plain loop, and nothing else disturbed."
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import Source, data, learner, make, model, same, state
from strategy_helpers import needs_peft
from torch import nn
from torch.utils.data import DataLoader
from trainers import (
    OWN_PASSES,
    SIZES,
    Stateful,
    assert_same,
    half_loader,
    in_two,
    lightning,
    lightning_module,
    lightning_trainer,
    loader,
    plainly,
    rows,
    sgd,
    smooth_net,
)

from sdfast.errors import InputError
from sdfast.metrics import Retention, RetentionCurve
from sdfast.strategies import (
    BYOT,
    L2SP,
    PSKD,
    R3F,
    STRATEGIES,
    EMATeacher,
    FixedTeacher,
    FrozenBN,
    LayerDecay,
    LinearProbe,
    LoRA,
    LowerLR,
    PathIntegral,
    SelfDistill,
    WiSEFT,
)

L = lightning()
from sdfast.lightning import StrategyCallback  # noqa: E402

NAMES = [pytest.param(n, marks=needs_peft) if n == 'lora' else n for n in STRATEGIES]


def fit(net, strategies, dl=None, module=None, ckpt_path=None, **options):
    keys = ('model', 'encoder', 'targets', 'criterion', 'epochs', 'split', 'batches')
    callback = StrategyCallback(*strategies, **{k:options.pop(k) for k in keys if k in options})
    trainer = lightning_trainer(callback, *options.pop('callbacks', ()), **options)
    trainer.fit(module or lightning_module(net), dl or loader(), ckpt_path=ckpt_path)
    return net


@pytest.mark.parametrize('name', NAMES)
def test_it_equals_fastai(name):
    net, lam = model(), SIZES.get(name, .3)
    learn = learner(make(name, lam, net), net=net)
    torch.manual_seed(1)
    learn.fit(2)
    other = model()
    trainer = lightning_trainer(StrategyCallback(make(name, lam, other)), late=name == 'lora')
    trainer.fit(module := lightning_module(other), loader(), loader(part='valid'))
    assert_same(net, other)
    assert max((a - b).abs().max() for a, b in zip(net.parameters(), model().parameters())) > 1e-3
    found = {k:float(v) for k, v in trainer.callback_metrics.items()}
    names, values = learn.recorder.metric_names[1:-1], learn.recorder.values[-1]
    assert found == pytest.approx({n:v for n, v in zip(names, values) if n != 'train_loss'}
                                  | dict(train_loss=found['train_loss']), rel=1e-5)
    assert not {'training_step', 'optimizer_step'} & vars(module).keys()
    assert not other._forward_hooks and not other._forward_pre_hooks
    assert all(m.training for m in other.modules())


def test_the_logged_loss_is_the_task_loss():
    other = model()
    trainer = lightning_trainer(StrategyCallback(FixedTeacher(100.)), max_epochs=1, limit_train_batches=2)
    trainer.fit(lightning_module(other), loader())
    net, want = model(), []
    penalty, opt = FixedTeacher(100.).attach(net, o := sgd(net)), o
    penalty.start_epoch()
    for x, y in list(loader())[:2]:
        loss = F.cross_entropy(net(x), y)
        want.append(loss.item())
        (loss + penalty.loss()).backward()
        opt.step()
        opt.zero_grad()
    assert float(trainer.callback_metrics['train_loss']) == pytest.approx(sum(want)/2)
    assert float(trainer.callback_metrics['fixed_teacher']) == pytest.approx(penalty.mean_term())


def several(): return [SelfDistill(3.), EMATeacher(3.), L2SP(.1, decoupled=True), PSKD(.5), BYOT(.3)]


SITUATIONS = dict(accumulate=3, clip=.05, half=True)
OPTIONS = dict(accumulate='accumulate_grad_batches', clip='gradient_clip_val', half='precision')


@pytest.mark.parametrize('what', [*SITUATIONS, 'all'])
def test_accumulation_clipping_and_bfloat16_equal_a_plain_loop(what):
    chosen = SITUATIONS if what == 'all' else {what:SITUATIONS[what]}
    want = plainly(model(), several(), **chosen)
    options = {OPTIONS[k]:'bf16-mixed' if k == 'half' else v for k, v in chosen.items()}
    assert_same(want, fit(model(), several(), **options))


@pytest.mark.nightly
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('what', [*SITUATIONS, 'all'])
def test_every_strategy_in_every_situation(name, what):
    chosen, lam = SITUATIONS if what == 'all' else {what:SITUATIONS[what]}, SIZES.get(name, .3)
    options = {OPTIONS[k]:'bf16-mixed' if k == 'half' else v for k, v in chosen.items()}
    want, net = model(), model()
    plainly(want, make(name, lam, want), apart=name in OWN_PASSES, **chosen)
    assert_same(want, fit(net, make(name, lam, net), late=name == 'lora', **options))


def test_a_skipped_step_is_no_step():
    "An infinite loss in one batch: the scaler skips its step, and the average of the teacher does, too"
    from lightning.pytorch.plugins import MixedPrecision
    def step(module, batch):
        loss = F.cross_entropy(module.net(batch[0]).float(), batch[1])
        return loss*float('inf') if module.trainer.global_step == 0 and module.first else loss
    averages = []
    class Look(L.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            averages.append(state(teacher.teacher))
            module.first = False
    teacher, module = EMATeacher(1.), lightning_module(model(), step)
    module.first = True
    plugin = MixedPrecision('16-mixed', 'cpu', torch.amp.GradScaler('cpu', init_scale=8.))
    fit(None, [teacher, BYOT(1., ['conv'])], module=module, callbacks=[Look()], plugins=[plugin], max_epochs=1)
    assert same(averages[0], state(model()[0]))
    assert not same(averages[1], averages[0])


def test_the_path_integral_is_that_of_a_plain_loop():
    want, found = PathIntegral(), PathIntegral()
    plainly(net := model(), [want])
    fit(other := model(), [found])
    assert found.steps == want.steps == 12
    for k, v in want.integral.items(): torch.testing.assert_close(found.integral[k], v)
    assert_same(net, other)


# ---- the model and the targets

class WithForward(L.LightningModule):
    "A module whose `forward` is another function than what `training_step` calls"
    def __init__(self, call):
        super().__init__()
        self.net, self.call = model(), call

    def forward(self, x): return self.net(x).softmax(1)
    def configure_optimizers(self): return sgd(self)


class CallsNet(WithForward):
    def training_step(self, batch, batch_idx): return self.shared(batch)
    def shared(self, batch): return F.cross_entropy(self.net(batch[0]), batch[1])


class CallsItself(WithForward):
    def forward(self, x): return self.net(x)
    def training_step(self, batch, batch_idx): return F.cross_entropy(self(batch[0]), batch[1])


class CallsParts(L.LightningModule):
    def __init__(self, call=None):
        super().__init__()
        self.body, self.top = model()

    def training_step(self, batch, batch_idx):
        x, y = batch['video'], batch['label']
        return dict(loss=F.cross_entropy(self.top(self.body(x)), y), more=1)
    def configure_optimizers(self): return sgd(self)


@pytest.mark.parametrize('cls', [CallsNet, CallsItself])
def test_what_training_step_calls_is_found(cls):
    for strategies in (lambda: [PSKD(.5), R3F(1., 1e-2)], lambda: [SelfDistill(3.)]):
        want = plainly(model(), strategies())
        module = cls(None)
        fit(None, strategies(), module=module, encoder='net.0')
        assert_same(want, module.net)


def test_a_dict_of_a_batch_and_of_a_loss():
    want = plainly(model(), [SelfDistill(3.)])
    module = CallsParts()
    dl = DataLoader([dict(video=x, label=y, index=0) for x, y in rows()], batch_size=8)
    fit(None, [SelfDistill(3.)], dl, module, model='body', encoder='body')
    assert_same(want, nn.Sequential(module.body, module.top))


def test_targets_by_a_function():
    dl = DataLoader([(x, (y, 7)) for x, y in rows()], batch_size=8)
    def step(module, batch): return F.cross_entropy(module.net(batch[0]), batch[1][0])
    want = plainly(model(), [PSKD(.5)])
    module = lightning_module(model(), step)
    fit(None, [PSKD(.5)], dl, module, targets=lambda batch: batch[1][0])
    assert_same(want, module.net)
    with pytest.raises(InputError, match='targets'):
        fit(None, [PSKD(.5)], dl, lightning_module(model(), step))


def test_what_is_not_possible_is_said_in_one_line():
    with pytest.raises(InputError, match=r"model=NAME.*'body', 'top'"):
        fit(None, [SelfDistill(1.)], module=CallsParts())
    with pytest.raises(InputError, match="model='nose' is no part"): fit(model(), [SelfDistill(1.)], model='nose')
    with pytest.raises(InputError, match='not inside of the Linear'):
        fit(model(), [SelfDistill(1.)], model='net.1', encoder='net.0')
    with pytest.raises(InputError, match='not SelfDistill'): StrategyCallback(SelfDistill)
    module = lightning_module(model())
    module.automatic_optimization = False
    with pytest.raises(InputError, match='optimises manually'): fit(None, [SelfDistill(1.)], module=module)
    with pytest.raises(InputError, match='which was not called in this batch: pass model=NAME'):
        fit(None, [PSKD(.5)], module=CallsNet(None), model=lambda module: module, encoder='net.0')


def test_without_lightning_it_says_what_to_install(monkeypatch):
    import importlib
    import sys

    import sdfast.lightning as module
    for name in ('lightning', 'lightning.pytorch', 'pytorch_lightning'): monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install 'sdfast\[lightning\]'"):
        importlib.util.spec_from_loader('again', module.__spec__.loader).loader.exec_module(
            importlib.util.module_from_spec(module.__spec__))


# ---- what must not be disturbed, and how fits end

def test_validation_and_tuning_do_not_see_it():
    net = model()
    callback = StrategyCallback(teacher := EMATeacher(1.))
    trainer = lightning_trainer(callback)
    module = lightning_module(net)
    trainer.validate(module, loader(part='valid'), verbose=False)
    module.lr = .1
    from lightning.pytorch.tuner import Tuner
    before = state(net)
    Tuner(trainer).lr_find(module, loader(), num_training=5, update_attr=False)
    assert same(before, state(net))
    assert teacher.teacher is None
    torch.manual_seed(1)
    trainer.fit(module, loader(), loader(part='valid'))
    assert_same(plainly(model(), [EMATeacher(1.)]), net)


def test_two_fits_have_one_anchor():
    net, penalty = model(), FixedTeacher(1.)
    before = state(net[0])
    fit(net, [penalty], max_epochs=1)
    fit(net, [penalty], max_epochs=1)
    assert same(state(penalty.teacher), before)


@pytest.mark.parametrize('options', [dict(max_steps=8, max_epochs=-1), dict(limit_train_batches=4)])
def test_an_epoch_may_end_early(options):
    net, strategy = model(), WiSEFT(.5)
    fit(net, [strategy, PSKD(.5)], **options)
    assert strategy._loop is None
    start, part = model()[0], copy.deepcopy(net[0])
    other = model()
    fit(other, [PSKD(.5)], **options)
    half = {k:(a + b)/2 for (k, a), b in zip(start.named_parameters(), other[0].parameters())}
    for k, v in part.named_parameters(): torch.testing.assert_close(v, half[k])


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing_behind(error):
    class Fail(L.Callback):
        def on_train_batch_end(self, trainer, module, out, batch, i):
            if i == 2: raise error
    net = model()
    strategies = [SelfDistill(1.), WiSEFT(.5), LinearProbe(), FrozenBN(), LayerDecay(.5)]
    module = lightning_module(net)
    with pytest.raises((error, SystemExit)): fit(None, strategies, module=module, callbacks=[Fail()])
    assert not {'training_step', 'optimizer_step'} & vars(module).keys()
    assert all(p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(s._loop is None for s in strategies)
    assert 'step' not in vars(module.trainer.optimizers[0])


def test_a_schedule_still_tracks_steps():
    "A scheduler replaces `step` of its optimizer, and LayerDecay does, too: both are restored"
    net = model()
    opt = sgd(net)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1)
    before = opt.step
    with LowerLR(1.).attach(net, opt) as s: s.start_epoch()
    assert opt.step is before
    assert scheduler is not None


def test_a_module_in_a_fit_can_be_copied_and_pickled():
    copies = []
    class Copy(L.Callback):
        def on_train_batch_end(self, trainer, module, *args): copies.append(copy.deepcopy(module.net))
    fit(model(), [SelfDistill(1.)], callbacks=[Copy()], max_epochs=1)
    pickle.dumps(copies[0])


# ---- checkpoints

def stateful(net):
    "Strategies with all kinds of state"
    source = Source(net)
    return [SelfDistill(.3), EMATeacher(.3), L2SP(.1), PSKD(.5), BYOT(.1), R3F(100., 1e-2), WiSEFT(.5),
            *STRATEGIES['co_tuning'].callbacks(.1, source), *STRATEGIES['replay'].callbacks(.1, source),
            RetentionCurve(Retention(net, loader(), loader(part='valid')), clips=16)]


@pytest.mark.parametrize('step', [2, 8, 12])
def test_a_fit_resumes_in_the_middle(tmp_path, step):
    from lightning.pytorch.callbacks import ModelCheckpoint
    saver = ModelCheckpoint(tmp_path, '{step}', save_top_k=-1, every_n_train_steps=2)
    net = model()
    whole = stateful(net)
    fit(net, whole, Stateful(loader()), callbacks=[saver], max_epochs=3, enable_checkpointing=True)
    other = model()
    rest = stateful(other)
    with torch.no_grad():
        for p in other.parameters(): p.mul_(.5)  # another start: all comes from the checkpoint
    fit(other, rest, Stateful(loader()), ckpt_path=tmp_path/f'step={step}.ckpt', max_epochs=3)
    assert_same(net, other)
    assert [h['epoch'] for h in rest[-1].history] == [0, 1, 2]
    assert rest[-1].history[-1] == pytest.approx(whole[-1].history[-1], rel=1e-4)


def test_other_strategies_cannot_continue(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint
    saver = ModelCheckpoint(tmp_path, 'a', every_n_train_steps=8)
    net = model()
    fit(net, [SelfDistill(1.)], callbacks=[saver], enable_checkpointing=True)
    with pytest.raises(InputError, match='training with SelfDistill, not with FixedTeacher'):
        fit(net, [FixedTeacher(1.)], ckpt_path=tmp_path/'a.ckpt')


@needs_peft
def test_adapters_do_not_resume(tmp_path):
    from lightning.pytorch.callbacks import ModelCheckpoint
    saver = ModelCheckpoint(tmp_path, 'a', every_n_train_steps=8)
    fit(model(), [LoRA(r=2)], callbacks=[saver], enable_checkpointing=True)
    with pytest.raises(InputError, match='LoRA cannot resume'): fit(model(), [LoRA(r=2)], ckpt_path=tmp_path/'a.ckpt')


# ---- the curve, and two processes

def test_the_curve_is_that_of_fastai():
    def curve(net): return RetentionCurve(Retention(net, loader(), loader(part='valid')))
    learn = learner([SelfDistill(3.), curve(net := model())], net=net)
    learn.fit(2)
    found = curve(other := model())
    trainer = lightning_trainer(StrategyCallback(SelfDistill(3.), found))
    trainer.fit(lightning_module(other), loader())
    for a, b in zip(learn.retention_curve.history, found.history, strict=True): assert a == pytest.approx(b, rel=1e-4)
    assert float(trainer.callback_metrics['kept_drift']) == pytest.approx(found.history[-1]['drift'])


TWO = ('self_distill', 'ema_teacher', 'lwf', 'pskd', 'byot', 'l2sp', 'co_tuning', 'linear_probe', 'lp_ft',
       'layer_decay', 'wise_ft')


def two_callbacks(name, net):
    source = Source(net)
    source.head, source.batches = source.head.double(), loader(part='valid', dtype=torch.float64)
    return STRATEGIES[name].callbacks(SIZES.get(name, .3), source)


def work(rank, folder):
    found = {}
    for name in TWO:
        net = smooth_net()
        fit(net, two_callbacks(name, net), half_loader(rank), devices=2, strategy='ddp')
        found[name] = net.state_dict()
    with pytest.raises(InputError, match='LoRA cannot add adapters'):
        fit(net, [LoRA(r=2)], half_loader(rank), devices=2, strategy='ddp')
    torch.save(found, f'{folder}/{rank}.pt')


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('lightning')
    in_two(work, folder)
    return [torch.load(folder/f'{rank}.pt') for rank in range(2)]


@pytest.mark.parametrize('name', TWO)
def test_two_processes_equal_one(two, name):
    net = smooth_net()
    plainly(net, two_callbacks(name, net), loader(dtype=torch.float64))
    for k, v in net.state_dict().items():
        assert torch.equal(two[0][name][k], two[1][name][k])
        torch.testing.assert_close(two[0][name][k], v, rtol=1e-7, atol=1e-7)


def test_data_of_fastai_are_those_of_the_loader():
    for (x, y), (a, b) in zip(data().train, loader(), strict=True): assert torch.equal(x, a) and torch.equal(y, b)
