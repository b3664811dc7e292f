"Strategies in `transformers.Trainer`: the weights of fastai and of a plain loop, and nothing else disturbed."
import shutil

import pytest
import torch
import torch.nn.functional as F
from helpers import Source, learner, make, model, same, state
from strategy_helpers import needs_peft
from torch import nn
from trainers import (
    OWN_PASSES,
    SIZES,
    Output,
    assert_same,
    hf_rows,
    hf_trainer,
    in_two,
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

transformers = pytest.importorskip('transformers', reason="pip install -e '.[hf]'")
NAMES = [pytest.param(n, marks=needs_peft) if n == 'lora' else n for n in STRATEGIES]


def net_of(net=None): return Output(*(net or model()))


def fit(folder, strategies, net=None, resume=None, **options):
    net = net_of() if net is None else net
    trainer = hf_trainer(folder, net, strategies, **options)
    trainer.train(resume)
    return trainer


@pytest.mark.parametrize('name', NAMES)
def test_it_equals_fastai(name, tmp_path):
    net, lam = model(), SIZES.get(name, .3)
    learn = learner(make(name, lam, net), net=net)
    torch.manual_seed(1)
    learn.fit(2)
    other = net_of()
    trainer = fit(tmp_path, make(name, lam, other), other, eval_rows=hf_rows(part='valid'), eval_strategy='epoch')
    assert_same(net, other)
    logs = {k:v for entry in trainer.state.log_history for k, v in entry.items()}
    names, values = learn.recorder.metric_names[1:-1], learn.recorder.values[-1]
    want = {n:v for n, v in zip(names, values) if n != 'train_loss'}
    want['eval_loss'] = want.pop('valid_loss')
    assert {k:logs[k] for k in want} == pytest.approx(want, rel=1e-5)
    assert not {'training_step', 'backward'} & (vars(trainer).keys() | vars(trainer.accelerator).keys())
    assert not other._forward_hooks and not other._forward_pre_hooks


def several(): return [SelfDistill(3.), EMATeacher(3.), L2SP(.1, decoupled=True), PSKD(.5), BYOT(.3)]


SITUATIONS = dict(accumulate=2, clip=.05, half=True)
OPTIONS = dict(accumulate='gradient_accumulation_steps', clip='max_grad_norm', half='bf16')


@pytest.mark.parametrize('what', [*SITUATIONS, 'all'])
def test_accumulation_clipping_and_bfloat16_equal_a_plain_loop(what, tmp_path):
    chosen = SITUATIONS if what == 'all' else {what:SITUATIONS[what]}
    want = plainly(net_of(), several(), **chosen)
    assert_same(want, fit(tmp_path, several(), **{OPTIONS[k]:v for k, v in chosen.items()}).model)


@pytest.mark.nightly
@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('what', [*SITUATIONS, 'all'])
def test_every_strategy_in_every_situation(name, what, tmp_path):
    chosen, lam = SITUATIONS if what == 'all' else {what:SITUATIONS[what]}, SIZES.get(name, .3)
    want, net = net_of(), net_of()
    own = name in OWN_PASSES
    plainly(want, make(name, lam, want), apart=own, always_half=own, **chosen)
    assert_same(want, fit(tmp_path, make(name, lam, net), net, **{OPTIONS[k]:v for k, v in chosen.items()}).model)


class CountsItems(Output):
    "A model that divides its loss by the number of items of all accumulated batches, as language models do"
    def forward(self, pixel_values, labels=None, **kwargs):
        logits = nn.Sequential.forward(self, pixel_values)
        if labels is None: return dict(logits=logits)
        n = kwargs.get('num_items_in_batch', None)
        return dict(loss=F.cross_entropy(logits, labels, reduction='sum')/(len(labels) if n is None else n),
                    logits=logits)


class OwnLoss(transformers.Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        out = model(inputs['pixel_values'])
        loss = F.cross_entropy(out['logits'], inputs['labels'])
        return (loss, out) if return_outputs else loss


class OwnStep(transformers.Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        return loss


def by_function(outputs, labels, num_items_in_batch=None):
    total = F.cross_entropy(outputs['logits'], labels, reduction='sum')
    return total/(len(labels) if num_items_in_batch is None else num_items_in_batch)


@pytest.mark.parametrize('how', ['items', 'own loss', 'own step', 'function'])
def test_the_term_is_divided_as_the_loss_is(how, tmp_path):
    "Six batches in windows of four and two: the mean over each window, whatever divides the loss"
    net = net_of()
    if how == 'items': net.__class__ = CountsItems
    base = dict(zip(['own loss', 'own step'], [OwnLoss, OwnStep])).get(how)
    trainer = dict(compute_loss_func=by_function) if how == 'function' else {}
    fit(tmp_path, [FixedTeacher(3.), PSKD(.5)], net, base=base, trainer=trainer, gradient_accumulation_steps=4)
    want = net_of()
    opt, strategies = sgd(want), [FixedTeacher(3.), PSKD(.5)]
    for s in strategies: s.attach(want, opt, epochs=2)
    batches = list(loader())
    for _ in range(2):
        for s in strategies: s.start_epoch()
        for window in (batches[:4], batches[4:]):
            for x, y in window:
                loss = F.cross_entropy(want(x)['logits'], y) + sum(s.loss(y) for s in strategies)
                (loss/len(window)).backward()
            opt.step()
            opt.zero_grad()
    assert_same(want, net)


def test_label_smoothing_is_the_loss_of_the_strategies(tmp_path):
    want, net = net_of(), net_of()
    opt, pskd = sgd(want), PSKD(.5)
    smooth = nn.CrossEntropyLoss(label_smoothing=.2)
    pskd.attach(want, opt, epochs=2, criterion=smooth)
    for _ in range(2):
        pskd.start_epoch()
        for x, y in loader():
            (smooth(want(x)['logits'], y) + pskd.loss(y)).backward()
            opt.step()
            opt.zero_grad()
    net.config = None  # which the Trainer looks at then
    fit(tmp_path, [PSKD(.5)], net, label_smoothing_factor=.2)
    assert_same(want, net, 1e-5)


def test_the_logged_losses_are_the_task_loss(tmp_path):
    trainer = fit(tmp_path, [FixedTeacher(100.)], max_steps=2, logging_strategy='steps', logging_steps=1,
                  eval_rows=hf_rows(part='valid'))
    net, want = model(), []
    penalty, opt = FixedTeacher(100.).attach(net), sgd(net)
    penalty.start_epoch()
    for x, y in list(loader())[:2]:
        loss = F.cross_entropy(net(x), y)
        want.append(loss.item())
        (loss + penalty.loss()).backward()
        opt.step()
        opt.zero_grad()
    logs = trainer.state.log_history
    assert [e['loss'] for e in logs if 'loss' in e] == pytest.approx(want, abs=1e-4)
    assert logs[-1]['train_loss'] == pytest.approx(sum(want)/2)
    assert [e['fixed_teacher'] for e in logs if 'fixed_teacher' in e] == pytest.approx([penalty.mean_term()])
    net.eval()
    found = trainer.evaluate()['eval_loss']
    valid = [(net(x), y) for x, y in loader(part='valid')]
    assert found == pytest.approx(sum(F.cross_entropy(z, y).item() for z, y in valid)/len(valid), rel=1e-5)


def test_the_path_integral_is_that_of_a_plain_loop(tmp_path):
    want, found = PathIntegral(), PathIntegral()
    net = plainly(net_of(), [want])
    assert_same(net, fit(tmp_path, [found]).model)
    for k, v in want.integral.items(): torch.testing.assert_close(found.integral[k], v)


def test_targets_by_a_function(tmp_path):
    class Named(OwnLoss):
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            return super().compute_loss(model, dict(pixel_values=inputs['pixel_values'], labels=inputs['kind']))
    net = net_of()
    trainer = hf_trainer(tmp_path, net, [PSKD(.5)], base=Named, trainer=dict(targets=lambda batch: batch['kind']))
    trainer.train_dataset = [dict(pixel_values=x, kind=y) for x, y in rows()]
    trainer.train()
    assert_same(plainly(model(), [PSKD(.5)]), net)


def test_without_strategies_it_is_a_trainer(tmp_path):
    assert_same(plainly(net_of(), []), fit(tmp_path, []).model)


# ---- what is not possible

class OwnBackward(transformers.Trainer):
    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = self.compute_loss(model, inputs)
        loss.backward()
        return loss.detach()


def test_what_is_not_possible_is_said_in_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match='accelerator.backward'): fit(tmp_path, [SelfDistill(1.)], base=OwnBackward)
    with pytest.raises(InputError, match='expected strategies of sdfast'): fit(tmp_path, [F.relu])
    for name, error in (('is_fsdp_enabled', 'FSDP'), ('is_deepspeed_enabled', 'DeepSpeed')):
        trainer = hf_trainer(tmp_path, net_of(), [SelfDistill(1.)])
        monkeypatch.setattr(trainer, name, True)
        with pytest.raises(InputError, match=error): trainer.enter_strategies([])
    trainer = hf_trainer(tmp_path, net_of(), [SelfDistill(1.)])
    trainer.args._n_gpu = 2
    with pytest.raises(InputError, match='DataParallel'): trainer.enter_strategies([])
    trainer = hf_trainer(tmp_path, net_of(), [LowerLR(1.)])
    trainer.args.fp16 = True
    with pytest.raises(InputError, match='LowerLR sets learning rates'): trainer.enter_strategies([])


def test_without_transformers_it_says_what_to_install(monkeypatch):
    import importlib
    import sys

    import sdfast.hf as module
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(InputError, match=r"pip install 'sdfast\[hf\]'"):
        module.__spec__.loader.exec_module(importlib.util.module_from_spec(module.__spec__))


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing_behind(error, tmp_path):
    class Fail(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3: raise error
    net = net_of()
    strategies = [SelfDistill(1.), WiSEFT(.5), LinearProbe(), FrozenBN(), LayerDecay(.5)]
    trainer = hf_trainer(tmp_path, net, strategies, trainer=dict(callbacks=[Fail()]))
    with pytest.raises(error): trainer.train()
    assert all(p.requires_grad for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(s._loop is None for s in strategies)
    assert not {'training_step', 'backward'} & (vars(trainer).keys() | vars(trainer.accelerator).keys())


def test_two_trainings_have_one_anchor(tmp_path):
    net, penalty = net_of(), FixedTeacher(1.)
    before = state(net[0])
    fit(tmp_path, [penalty], net, num_train_epochs=1)
    fit(tmp_path, [penalty], net, num_train_epochs=1)
    assert same(state(penalty.teacher), before)


def test_an_epoch_may_end_early(tmp_path):
    net, other = net_of(), net_of()
    fit(tmp_path, [WiSEFT(.5)], net, max_steps=8)
    fit(tmp_path, [], other, max_steps=8)
    for a, b, c in zip(model()[0].parameters(), other[0].parameters(), net[0].parameters()):
        torch.testing.assert_close(c, (a + b)/2)


# ---- checkpoints

def stateful(net):
    "Strategies with all kinds of state"
    source = Source(net)
    return [SelfDistill(.3), EMATeacher(.3), L2SP(.1), PSKD(.5), BYOT(.1), R3F(100., 1e-2), WiSEFT(.5),
            *STRATEGIES['co_tuning'].callbacks(.1, source), *STRATEGIES['replay'].callbacks(.1, source),
            RetentionCurve(Retention(net, loader(), loader(part='valid')), clips=16)]


@pytest.mark.parametrize('step', [2, 8, 12])
def test_training_resumes_in_the_middle(tmp_path, step):
    net, options = net_of(), dict(num_train_epochs=3, save_strategy='steps', save_steps=2)
    whole = stateful(net)
    fit(tmp_path, whole, net, **options)
    other = net_of()
    rest = stateful(other)
    with torch.no_grad():
        for p in other.parameters(): p.mul_(.5)  # another start: all comes from the checkpoint
    fit(tmp_path/'again', rest, other, resume=str(tmp_path/f'checkpoint-{step}'), **options)
    assert_same(net, other)
    assert [h['epoch'] for h in rest[-1].history] == [0, 1, 2]
    assert rest[-1].history[-1] == pytest.approx(whole[-1].history[-1], rel=1e-4, nan_ok=True)


def test_checkpoints_of_epochs_the_best_of_them_and_damage(tmp_path):
    options = dict(save_strategy='epoch', eval_strategy='epoch', eval_rows=hf_rows(part='valid'),
                   load_best_model_at_end=True, learning_rate=.5)
    trainer = fit(tmp_path, [FixedTeacher(3.)], net := net_of(), **options)
    evals = [e['eval_loss'] for e in trainer.state.log_history if 'eval_loss' in e]
    assert trainer.evaluate()['eval_loss'] == pytest.approx(min(evals), rel=1e-5)
    found = fit(tmp_path/'again', [FixedTeacher(3.)], resume=str(tmp_path/'checkpoint-6'), **options)
    assert_same(net, found.model)
    file, = (tmp_path/'checkpoint-6').glob('sdfast-*.pt')
    with pytest.raises(InputError, match='training with FixedTeacher, not with EMATeacher'):
        fit(tmp_path, [EMATeacher(1.)], resume=str(tmp_path/'checkpoint-6'))
    broken = shutil.copytree(tmp_path/'checkpoint-6', tmp_path/'broken')/file.name
    broken.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match='damaged.*resume from another'):
        fit(tmp_path, [FixedTeacher(3.)], resume=str(broken.parent))
    broken.unlink()
    with pytest.raises(InputError, match='has no state of the strategies'):
        fit(tmp_path, [FixedTeacher(3.)], resume=str(broken.parent))


@needs_peft
def test_adapters_do_not_resume(tmp_path):
    fit(tmp_path, [LoRA(r=2)], save_strategy='steps', save_steps=8)
    with pytest.raises(InputError, match='LoRA cannot resume'):
        fit(tmp_path, [LoRA(r=2)], resume=str(tmp_path/'checkpoint-8'))


# ---- the curve, and two processes

def test_the_curve_is_that_of_fastai(tmp_path):
    def curve(net): return RetentionCurve(Retention(net, loader(), loader(part='valid')))
    learn = learner([SelfDistill(3.), curve(net := model())], net=net)
    learn.fit(2)
    other = net_of()
    retention = Retention(other, hf_batches(), hf_batches('valid'), head=other[1])
    trainer = fit(tmp_path, [SelfDistill(3.), found := RetentionCurve(retention)], other)
    for a, b in zip(learn.retention_curve.history, found.history, strict=True): assert a == pytest.approx(b, rel=1e-4)
    logged = [e['kept_drift'] for e in trainer.state.log_history if 'kept_drift' in e]
    assert logged == pytest.approx([h['drift'] for h in found.history])


def hf_batches(part='train'): return [dict(pixel_values=x, labels=y) for x, y in loader(part=part)]


TWO = 'ema_teacher', 'byot', 'co_tuning', 'linear_probe', 'lp_ft', 'wise_ft'


def two_callbacks(name, net):
    source = Source(net)
    source.head, source.batches = source.head.double(), loader(part='valid', dtype=torch.float64)
    return STRATEGIES[name].callbacks(SIZES.get(name, .3), source)


def work(rank, folder):
    options = dict(dtype=torch.float64, per_device_train_batch_size=4, ddp_backend='gloo', max_grad_norm=.5)
    found = {}
    for name in TWO:
        net = net_of(smooth_net())
        fit(folder, two_callbacks(name, net), net, **options)
        found[name] = net.state_dict()
    with pytest.raises(InputError, match='LoRA cannot add adapters'): fit(folder, [LoRA(r=2)], net, **options)
    torch.save(found, f'{folder}/{rank}.pt')


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hf')
    in_two(work, folder)
    return [torch.load(folder/f'{rank}.pt') for rank in range(2)]


@pytest.mark.parametrize('name', TWO)
def test_two_processes_equal_one(two, name):
    "With clipping, which must not count gradients that a strategy drops"
    net = net_of(smooth_net())
    plainly(net, two_callbacks(name, net), loader(dtype=torch.float64), clip=.5)
    for k, v in net.state_dict().items():
        assert torch.equal(two[0][name][k], two[1][name][k])
        torch.testing.assert_close(two[0][name][k], v, rtol=1e-7, atol=1e-7)
