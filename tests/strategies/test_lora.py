"Adapters against a loop by hand, and what is left after a fit."
import copy
import math
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.schedule import fit_one_cycle  # noqa: F401  (patches Learner)
from fastai.callback.tracker import SaveModelCallback
from fastai.optimizer import SGD, OptimWrapper
from helpers import data, learner, model, same, state
from strategy_helpers import Stop, assert_close_states, clean, needs_peft
from torch import nn
from torch.nn import utils
from torch.nn.utils import parametrizations, prune
from video_net import video_learner

from sdfast.errors import InputError
from sdfast.models.encoders import encoder_head_split
from sdfast.strategies import LoRA, SelfDistill, WiSEFT, layer_groups


@needs_peft
@pytest.mark.parametrize('opt', [partial(SGD, mom=.9), partial(OptimWrapper, opt=torch.optim.Adam)])
@pytest.mark.parametrize('splitter', [encoder_head_split, layer_groups])
def test_lora_merges_what_it_computed(opt, splitter):
    class Spy(Callback):
        order = 65  # while the adapters are in
        def after_epoch(self):
            if self.learn.lock.locked(): return
            self.learn.model.eval()
            with torch.no_grad(): seen.append(self.learn.model(x))
    seen, cb = [], LoRA(2, 8)
    learn, x = video_learner([cb, Spy()], opt_func=opt, splitter=splitter)
    before = state(learn.model)
    adapted = ['0.space.weight', '0.time.weight', '0.point.weight', '0.odd.weight', '0.out.weight']
    learn.fit(2)
    after = state(learn.model)
    learn.model.eval()
    with torch.no_grad(): torch.testing.assert_close(learn.model(x), seen[-1], rtol=1e-5, atol=1e-6)
    assert after.keys() == before.keys() and not hasattr(learn.model[0], 'peft_config')
    for k, v in after.items():
        assert torch.equal(v, before[k]) != (k.startswith('1.') or k in adapted), k
        if k in adapted: assert torch.linalg.matrix_rank((v - before[k]).flatten(1), rtol=1e-4) <= 2
    assert {id(p) for ps in learn.opt.param_lists for p in ps} == {id(p) for p in learn.model.parameters()}
    learn.fit(1)  # a second one starts with new adapters
    assert not same(after, state(learn.model))


@needs_peft
def test_lora_equals_a_hand_written_loop():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(36, 6)), nn.Linear(6, 3))
    w, head = net[0][1].weight.detach().clone(), copy.deepcopy(net[1])
    first = {}
    class Spy(Callback):
        order = 71
        def before_train(self):
            first.update(a=cb.adapters()['1'][1].weight.detach().clone(),
                         b=cb.adapters()['1'][2].weight.detach().clone())
    cb = LoRA(2, 6)
    learn = learner([cb, Spy()], net=net)
    learn.fit(1)
    a, b = nn.Parameter(first['a']), nn.Parameter(first['b'])
    assert a.shape == (2, 36) and not b.any()
    opt = torch.optim.SGD([a, b, *head.parameters()], lr=.1, momentum=.9)
    for x, y in data().train:
        loss = F.cross_entropy(head(F.linear(x.flatten(1), w + 3*(b @ a), net[0][1].bias.detach())), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
    torch.testing.assert_close(net[0][1].weight, w + 3*(b @ a), rtol=1e-4, atol=1e-6)
    assert_close_states(state(net[1]), state(head), rtol=1e-4)


@needs_peft
def test_fresh_adapters_change_no_feature_and_no_random_number():
    seen = []
    class Spy(Callback):
        order = 71
        def before_train(self):
            self.learn.model.eval()
            with torch.no_grad(): seen.append(self.learn.model[0](x))
            assert sum(p.requires_grad for p in self.learn.model[0].parameters()) == 10
            raise CancelFitException
    learn, x = video_learner([LoRA(2), Spy()])
    before = state(learn.model)
    with torch.no_grad(): want = learn.model.eval()[0](x)
    rng = torch.get_rng_state()
    learn.create_opt()
    learn('before_fit')
    assert torch.equal(rng, torch.get_rng_state())
    learn('after_fit')
    learn.fit(1)
    torch.testing.assert_close(seen[0], want, rtol=0, atol=1e-6)
    assert same(before, state(learn.model))


@needs_peft
def test_lora_interrupted_is_unloaded_with_or_without_what_it_learnt():
    for merge in (True, False):
        cb = LoRA(2)
        learn = learner(cb)
        before = state(learn.model)
        with pytest.raises(KeyboardInterrupt): learn.fit(2, cbs=Stop(KeyboardInterrupt(), epoch=1))
        assert any('lora' in k for k in learn.model.state_dict())
        cb.unload(merge)
        cb.unload()
        clean(learn)
        assert same(state(learn.model[0]), {k.removeprefix('0.'):v for k, v in before.items()
                                            if k.startswith('0.')}) != merge


@needs_peft
def test_lora_with_the_best_epoch_and_with_penalties(tmp_path):
    learn = learner([SaveModelCallback(fname='best'), LoRA(2), SelfDistill(1.)], path=tmp_path,
                    splitter=encoder_head_split)
    learn.fit_one_cycle(2, .1)
    clean_keys = state(learn.model).keys()
    assert clean_keys == model().state_dict().keys()
    with pytest.raises(ValueError, match='wise_ft_sweep'): learner([LoRA(2), WiSEFT()]).fit(1)


@needs_peft
def test_lora_targets_and_what_it_cannot_adapt():
    def named(**kw):
        learn, _ = video_learner(cb := LoRA(2, **kw))
        return cb.layers()
    assert named() == ['space', 'time', 'point', 'odd', 'out']
    assert named(targets='out') == ['out']
    assert named(targets=['time', 'space']) == ['space', 'time']
    with pytest.raises(ValueError, match="no Conv3d, Conv2d or Linear 'nose'; it has space, time"):
        named(targets=['nose'])
    with pytest.raises(ValueError, match='cannot adapt grouped'): named(targets=['grouped'])
    with pytest.raises(ValueError, match='pass another encoder'): learner(LoRA(2, encoder=lambda m: m[1])).fit(1)
    class Bypass(nn.Module):
        def __init__(self): super().__init__(); self.flat, self.out = nn.Flatten(), nn.Linear(36, 6)
        def forward(self, x): return F.linear(self.flat(x), self.out.weight)
    with pytest.warns(UserWarning, match='without their adapters'):
        learner(LoRA(2), net=nn.Sequential(Bypass(), nn.Linear(6, 3))).fit(1)


def test_lora_without_peft_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'peft', None)
    with pytest.raises(ImportError, match=r"pip install 'sdfast\[lora\]'"): LoRA()


@needs_peft
def test_nonsense_ranks_are_refused():
    for kw in (dict(r=0), dict(r=1.5), dict(alpha=0), dict(alpha=math.nan)):
        with pytest.raises(ValueError, match='must be'): LoRA(**kw)


COMPUTED = dict(old_weight_norm=utils.weight_norm, old_spectral_norm=utils.spectral_norm,
                weight_norm=parametrizations.weight_norm, spectral_norm=parametrizations.spectral_norm,
                orthogonal=parametrizations.orthogonal, pruned=lambda m: prune.l1_unstructured(m, 'weight', .3))


@needs_peft
@pytest.mark.parametrize('how', COMPUTED)
def test_layers_whose_weight_is_computed_are_refused(how):
    def net(): return nn.Sequential(nn.Sequential(nn.Flatten(), COMPUTED[how](nn.Linear(36, 6)), nn.Linear(6, 6)),
                                    nn.Linear(6, 3))
    with pytest.raises(InputError, match='LoRA cannot adapt 1: .*weight norm.*targets'):
        learner(LoRA(2), net=net()).fit(1)
    with pytest.raises(InputError, match='cannot adapt 1'): learner(LoRA(2, targets=['1', '2']), net=net()).fit(1)
    learn = learner(LoRA(2, targets=['2']), net=net())
    last = []
    class See(Callback):
        order = 60
        def after_train(self):
            self.learn.model.eval()
            with torch.no_grad(): last[:] = [self.learn.model(self.dls.one_batch()[0])]
    learn.add_cb(See())
    learn.fit(2)
    learn.model.eval()
    with torch.no_grad(): torch.testing.assert_close(learn.model(learn.dls.one_batch()[0]), last[0])


@needs_peft
def test_frozen_layers_stay_as_they_are():
    net = nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 6)), nn.Linear(6, 3))
    net[0][1].requires_grad_(False)
    before = state(net)
    learner(LoRA(2), net=net).fit(2)
    after = state(net)
    assert torch.equal(before['0.1.weight'], after['0.1.weight'])
    assert not torch.equal(before['0.3.weight'], after['0.3.weight'])
    assert not net[0][1].weight.requires_grad and net[0][3].weight.requires_grad
    with pytest.raises(InputError, match='1 of targets are frozen'): learner(LoRA(2, targets='1'), net=net).fit(1)
    net[0].requires_grad_(False)
    with pytest.raises(InputError, match='all layers of the encoder are frozen'): learner(LoRA(2), net=net).fit(1)
