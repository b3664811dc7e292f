"Learning rates of layers against parameter groups of PyTorch."
import copy
from functools import partial

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler, SchedLin, fit_one_cycle  # noqa: F401  (patches Learner)
from fastai.optimizer import SGD, Adam, OptimWrapper, ranger
from helpers import learner, model, same, state
from strategy_helpers import assert_close_states, clean, loop_by_hand
from torch import nn

from sdfast.models.encoders import c3d, create_model, encoder_head_split, r2plus1d, tiny
from sdfast.strategies import EncoderLR, LayerDecay, LowerLR, layer_groups


def names(groups, net): return [[n for p in g for n, q in net.named_parameters() if q is p] for g in groups]


def test_layer_groups():
    net = model()
    assert names(layer_groups(net), net) == [['0.conv.weight', '0.conv.bias', '0.bn.weight', '0.bn.bias'],
                                             ['0.out.weight', '0.out.bias'], ['1.weight', '1.bias']]
    for make, n in ((tiny, 4), (c3d, 8), (r2plus1d, 5)):
        with torch.device('meta'): net = nn.Sequential(make(), nn.Linear(2, 2))
        groups = layer_groups(net)
        assert len(groups) == n + 1 and sum(map(len, groups)) == len(list(net.parameters()))
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos, self.a, self.b = nn.Parameter(torch.zeros(2)), nn.Linear(2, 2), nn.Linear(2, 2)
            self.b.weight = self.a.weight
    net = nn.Sequential(nn.Sequential(Tokens()), nn.Linear(2, 2))
    # the encoder's own are the first layer's, tied weights count once
    assert [len(g) for g in layer_groups(net)] == [3, 1, 2]
    assert [len(g) for g in layer_groups(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))] == [2, 0]


@pytest.mark.parametrize('opt', ['sgd', 'adamw', 'torch'])
@pytest.mark.parametrize('splitter', [None, encoder_head_split, layer_groups])
def test_layer_decay_equals_parameter_groups_of_torch(opt, splitter):
    net = model()
    hand, lr, wd = copy.deepcopy(net), .02, .1
    e = hand[0]
    groups = [dict(params=[*e.conv.parameters(), *e.bn.parameters()], lr=lr/4),
              dict(params=e.out.parameters(), lr=lr/2), dict(params=hand[1].parameters(), lr=lr)]
    if opt == 'sgd': want, ours = torch.optim.SGD(groups, momentum=.9), partial(SGD, mom=.9)
    else: want = torch.optim.AdamW(groups, weight_decay=wd, eps=1e-5, betas=(.9, .99))
    if opt == 'adamw': ours = partial(Adam, wd=wd)
    if opt == 'torch':
        ours = partial(OptimWrapper, opt=partial(torch.optim.AdamW, weight_decay=wd, eps=1e-5, betas=(.9, .99)))
    learn = learner(LayerDecay(.5), net=net, opt_func=ours, lr=lr, wd_bn_bias=True,
                    **(dict(splitter=splitter) if splitter else {}))
    n = len(encoder_head_split(net)) if splitter is encoder_head_split else 3 if splitter else 1
    learn.fit(3)
    # its gradient is 0 but for rounding
    got, want = ({k:v for k, v in s.items() if k != '0.conv.bias'} for s in (state(net), loop_by_hand(hand, 3, want)))
    assert_close_states(got, want, rtol=1e-4, atol=1e-5)
    assert len(learn.opt.hypers) == n and {h['lr'] for h in learn.opt.hypers} == {lr}


@pytest.mark.parametrize('fit', ['one_cycle', 'slice', 'scheduler'])
@pytest.mark.parametrize('splitter', [None, encoder_head_split])
def test_schedules_are_scaled_and_never_compound(fit, splitter):
    def run(cb):
        seen = []
        class Spy(Callback):
            order, run_valid = 95, False
            def before_step(self): self.start = state(self.learn.model)
            def after_step(self):
                moved = {n:(p.detach() - self.start[n]).norm().item() for n, p in self.learn.model.named_parameters()}
                grads = {n:p.grad.norm().item() for n, p in self.learn.model.named_parameters()}
                seen.append((float(self.opt.hypers[-1]['lr']), float(self.opt.hypers[0]['lr']),
                             {n:moved[n]/grads[n] for n in moved}))
        learn = learner([cb, Spy()], opt_func=SGD, **(dict(splitter=splitter) if splitter else {}))
        if fit == 'one_cycle': learn.fit_one_cycle(2, .1, moms=(0., 0., 0.))
        if fit == 'slice': learn.fit(2, slice(.01, .1))
        if fit == 'scheduler': learn.fit(2, cbs=ParamScheduler({'lr': SchedLin(.1, .01)}))
        return seen, learn
    seen, learn = run(LayerDecay(.5))
    for head, encoder, rates in seen:
        for n, d, lr in (('1.weight', 0, head), ('0.out.weight', 1, encoder), ('0.conv.weight', 2, encoder),
                         ('0.bn.weight', 2, encoder)):
            assert rates[n] == pytest.approx(lr*.5**d, rel=1e-2)
    plain, _ = run(LayerDecay(1.))
    assert [s[:2] for s in plain] == [s[:2] for s in seen]  # schedule and recorder are the user's


def test_lower_lr_is_plain_at_that_rate_to_the_bit():
    for opt in (partial(SGD, mom=.9, wd=.1), Adam, ranger, partial(OptimWrapper, opt=torch.optim.AdamW)):
        low, plain = learner(LowerLR(3.), lr=.1, opt_func=opt), learner(lr=.1/4, opt_func=opt)
        low.fit(2), plain.fit(2)
        assert same(state(low.model), state(plain.model)) and low.recorder.lrs[-1] == .1


def test_an_interrupt_inside_the_step_leaves_the_groups_whole():
    learn = learner(LayerDecay(.5), splitter=encoder_head_split)
    learn.create_opt()
    step = type(learn.opt).step
    def interrupted(self, *a):
        assert len(self.hypers) == 3
        raise KeyboardInterrupt
    type(learn.opt).step = interrupted
    try:
        with pytest.raises(KeyboardInterrupt): learn.fit(1)
    finally: type(learn.opt).step = step
    assert len(learn.opt.hypers) == len(learn.opt.param_lists) == 2
    learn.fit_one_cycle(1, .1)
    clean(learn)


@pytest.mark.parametrize('opt', ['sgd', 'adamw', 'torch'])
@pytest.mark.parametrize('splitter', [None, encoder_head_split, layer_groups])
def test_encoder_lr_equals_parameter_groups_of_torch(opt, splitter):
    hand, lr, wd = model(), .02, .1
    groups = [dict(params=hand[0].parameters(), lr=lr/8), dict(params=hand[1].parameters(), lr=lr)]
    if opt == 'sgd': want, ours = torch.optim.SGD(groups, momentum=.9), partial(SGD, mom=.9)
    else: want = torch.optim.AdamW(groups, weight_decay=wd, eps=1e-5, betas=(.9, .99))
    if opt == 'adamw': ours = partial(Adam, wd=wd)
    if opt == 'torch':
        ours = partial(OptimWrapper, opt=partial(torch.optim.AdamW, weight_decay=wd, eps=1e-5, betas=(.9, .99)))
    learn = learner(EncoderLR(7.), opt_func=ours, lr=lr, wd_bn_bias=True,
                    **(dict(splitter=splitter) if splitter else {}))
    learn.fit(3)
    got, want = ({k:v for k, v in s.items() if k != '0.conv.bias'}  # its gradient is 0 but for rounding
                 for s in (state(learn.model), loop_by_hand(hand, 3, want)))
    assert_close_states(got, want, rtol=1e-4, atol=1e-5)
    assert {h['lr'] for h in learn.opt.hypers} == {lr}


def test_encoder_lr_slows_all_of_the_encoder():
    "Also what timm counts to the head, such as the last normalisation of a transformer"
    with torch.device('meta'): net = create_model('vit_tiny_patch16_224', 5)
    cb = EncoderLR(3.)
    cb.attach(net, torch.optim.SGD(net.parameters(), lr=.1))
    assert cb.depths().keys() == {id(p) for p in net[0].parameters()}
    cb.detach()


def test_two_that_set_rates_are_refused():
    with pytest.raises(ValueError, match='keep one'): learner([LayerDecay(), LowerLR(1.)]).fit(1)


@pytest.mark.parametrize('decay,why', [(0, 'LinearProbe'), (1.1, 'at most 1')])
def test_decay_out_of_range_is_refused(decay, why):
    with pytest.raises(ValueError, match=why): LayerDecay(decay)


@pytest.mark.parametrize('lam', [-1, float('nan')])
@pytest.mark.parametrize('kind', [LowerLR, EncoderLR])
def test_strength_out_of_range_is_refused(lam, kind):
    with pytest.raises(ValueError, match='at least 0'): kind(lam)


@pytest.mark.parametrize('name', [
    'vit_tiny_patch16_224', 'vit_small_patch16_dinov3', 'convnext_tiny', 'swin_tiny_patch4_window7_224', 'resnet18',
    'mvitv2_small', 'efficientnet_b0', 'beit_base_patch16_224', 'poolformer_s12', 'xcit_nano_12_p16_224', 'coat_tiny',
    'crossvit_tiny_240', 'hrnet_w18_small', 'mobilenetv3_small_050', 'hiera_tiny_224', 'davit_tiny', 'regnetx_002',
    'levit_128s', 'mixer_s32_224', 'deit_tiny_distilled_patch16_224', 'eva02_tiny_patch14_224', 'vgg11',
    'twins_pcpvt_small'])
def test_rates_of_timms_nets_are_timms(name):
    "Parameters that only a net with a head has are left out of the comparison, as is the head"
    from timm import create_model as timm_model
    from timm.optim import param_groups_layer_decay
    with torch.device('meta'):
        net, whole = create_model(name, 5), timm_model(name, num_classes=5)
    if not hasattr(whole, 'group_matcher'): pytest.skip(f'this timm has no groups for {name}')
    groups = layer_groups(net)
    scale = {n:.5**d for d, g in enumerate(reversed(names(groups, net))) for n in g}
    known = {id(p):n for n, p in whole.named_parameters()}
    timms = {known[id(p)]:g['lr_scale'] for g in param_groups_layer_decay(whole, layer_decay=.5) for p in g['params']}
    ours = {n.removeprefix('0.body.'):s for n, s in scale.items() if n.startswith('0.')}
    common = ours.keys() & timms.keys()
    assert len(common) > .9*len(ours) and {n:ours[n] for n in common} == {n:timms[n] for n in common}
    assert len(groups) > 3


@pytest.mark.parametrize('name,least', [('mvit_v2_s', 17), ('swin3d_t', 13), ('r2plus1d_18', 9), ('s3d', 12)])
def test_a_group_for_each_block_of_torchvisions_nets(name, least):
    with torch.device('meta'): groups = layer_groups(create_model(name, 5))
    sizes = [sum(p.numel() for p in g) for g in groups]
    assert len(groups) >= least and max(sizes) < .5*sum(sizes)


def test_a_net_of_one_layer_warns():
    class Opaque(nn.Module):
        "Its parameters are its own"
        def __init__(self):
            super().__init__()
            for i in range(6): self.register_parameter(f'p{i}', nn.Parameter(torch.ones(6)))
        def forward(self, x): return x.flatten(1)[:, :6]*self.p0*self.p1*self.p2*self.p3*self.p4*self.p5
    with pytest.warns(UserWarning, match='one layer in Opaque, so there is no decay inside it: pass encoder='):
        learner(LayerDecay(.5), net=nn.Sequential(Opaque(), nn.Linear(6, 3))).fit(1)
