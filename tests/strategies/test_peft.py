"`LoRA(peft=...)`: adapters of any PEFT configuration, merged or removed exactly."
import copy

import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders, TfmdDL
from fastai.learner import Learner
from helpers import state
from strategy_helpers import needs_peft
from torch import nn
from video_net import Video, video_learner

from sdfast.errors import InputError
from sdfast.models.encoders import create_model
from sdfast.runtime.resume import Resume
from sdfast.strategies import LoRA
from sdfast.strategies.telemetry import Telemetry

pytestmark = needs_peft


def configuration(name):
    from peft import IA3Config, LoHaConfig, LoraConfig, OSFConfig
    from peft.tuners.lora.config import CordaConfig
    linear = ['out', 'hidden']
    return dict(
        lora=lambda: LoraConfig(r=2), dora=lambda: LoraConfig(r=2, use_dora=True, target_modules=['time', 'out']),
        pissa=lambda: LoraConfig(r=2, init_lora_weights='pissa', target_modules=linear),
        corda=lambda: LoraConfig(r=2, init_lora_weights='corda', target_modules=linear,
                                 corda_config=CordaConfig(corda_method='kpm')),
        saved=lambda: LoraConfig(r=2, target_modules=['time'], modules_to_save=['hidden']),
        ia3=lambda: IA3Config(target_modules=['time', *linear], feedforward_modules=[]),
        loha=lambda: LoHaConfig(r=2, target_modules=linear),
        osf=lambda: OSFConfig(target_modules=linear, effective_rank=2))[name]()


NAMES = 'lora', 'dora', 'pissa', 'corda', 'saved', 'ia3', 'loha', 'osf'


class Net(Video):
    "With two linear layers, and without kernels that PEFT cannot merge: 1x1xN"
    def __init__(self):
        super().__init__()
        self.point, self.odd, self.grouped, self.hidden = nn.Identity(), nn.Identity(), nn.Identity(), nn.Linear(6, 6)

    def forward(self, x): return self.hidden(super().forward(x).relu())


def make(name, more=(), **kw):
    torch.manual_seed(0)
    clips = [(torch.randn(8, 1, 4, 6, 6), torch.zeros(8).long()) for _ in range(4)]
    cb = LoRA(peft=configuration(name), batches=clips if name == 'corda' else None)
    learn, x = video_learner([cb, *more], **kw)
    learn.model[0] = Net()
    learn.create_opt()
    return learn, cb, x


@pytest.mark.parametrize('name', NAMES)
def test_the_merged_encoder_computes_what_was_trained(name):
    class Spy(Callback):
        order = 65  # while the adapters are in
        def after_epoch(self):
            if self.learn.lock.locked(): return
            self.learn.model.eval()
            with torch.no_grad(): self.seen = self.learn.model(x)
    spy = Spy()
    learn, cb, x = make(name, [spy])
    before, objects = state(learn.model[0]), dict(learn.model.named_parameters())
    learn.fit(2, .05)
    after = state(learn.model[0])
    assert after.keys() == before.keys() and not [k for k in vars(learn.model[0]) if 'peft' in k]
    assert not any(m._forward_hooks for m in learn.model.modules())
    assert {id(p) for ps in learn.opt.param_lists for p in ps} == set(map(id, learn.model.parameters()))
    learn.model.eval()
    with torch.no_grad(): assert torch.allclose(learn.model(x), spy.seen, atol=1e-5)
    changed = {n for n in after if not torch.allclose(after[n], before[n], atol=1e-6)}
    adapted = dict(dora={'time', 'out'}, saved={'time', 'hidden'}, ia3={'time', 'out', 'hidden'},
                   lora={'space', 'time', 'out', 'hidden'}).get(name, {'out', 'hidden'})
    assert {n.split('.')[0] for n in changed} == adapted
    # the same parameters, so that the optimizer of a next fit trains them, as before
    assert all(p is objects[n] and p.requires_grad for n, p in learn.model.named_parameters())
    learn.remove_cb(cb)
    learn.fit(1, .05)
    assert not torch.equal(state(learn.model[0])['space.weight'], after['space.weight'])


@pytest.mark.parametrize('name', NAMES)
def test_removed_adapters_leave_the_weights_as_they_were_to_the_bit(name):
    class Leave(Callback):
        order = 65
        def after_epoch(self): cb.unload(merge=False)
    learn, cb, _ = make(name, [Leave()])
    before = state(learn.model[0])
    learn.fit(1, .05)
    after = state(learn.model[0])
    assert all(torch.equal(after[n], t) for n, t in before.items())


@pytest.mark.parametrize('name', ['ia3', 'pissa', 'osf'])
def test_equals_a_hand_written_loop_with_peft_alone(name):
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    learn, _, _ = make(name)
    by_hand, config = copy.deepcopy(learn.model), configuration(name)
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](by_hand[0], config, 'default')
    opt = torch.optim.SGD([p for p in by_hand.parameters() if p.requires_grad], .05, momentum=.9)
    by_hand.train()
    by_hand[0].bn.eval()
    for x, y in learn.dls.train:
        nn.functional.cross_entropy(by_hand(x), y).backward()
        opt.step()
        opt.zero_grad()
    tuner.merge_and_unload()
    learn.fit(1, .05)
    for n, w in state(by_hand).items(): torch.testing.assert_close(learn.model.state_dict()[n], w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['dora', 'corda', 'osf'])
def test_an_interrupted_fit_ends_with_the_same_weights(name, tmp_path):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    def fit(*more):
        learn, _, _ = make(name, more)
        learn.fit(3, .05)
        return state(learn.model)
    with pytest.raises(KeyboardInterrupt): fit(Resume(tmp_path/'fit'), Stop())
    assert list((tmp_path/'fit').glob('epoch-00002-*'))
    resumed, whole = fit(Resume(tmp_path/'fit')), fit()
    for n, w in whole.items(): torch.testing.assert_close(resumed[n], w, rtol=0, atol=1e-6)


@pytest.mark.parametrize('name', ['dora', 'corda', 'osf'])
def test_a_transformer_over_frames(name):
    torch.manual_seed(0)
    net, x = create_model('vit_tiny_patch16_224', 3, img_size=32, depth=1), torch.randn(8, 2, 3, 32, 32)
    config, weights = configuration(name), state(net[0])
    config.target_modules = ['qkv']
    def make_loader(): return TfmdDL([(clip, torch.tensor(i % 3)) for i, clip in enumerate(x)], bs=4, num_workers=0)
    clips = [(x, torch.zeros(8).long())]  # tokens (B, N, F), which PEFT's covariances do not take
    cb = LoRA(peft=config, batches=clips if name == 'corda' else None)
    Learner(DataLoaders(make_loader(), make_loader()), net, nn.CrossEntropyLoss(), lr=.05, cbs=cb).fit(1)
    moved = [n for n, w in state(net[0]).items() if not torch.allclose(w, weights[n], atol=1e-6)]
    assert moved == ['body.blocks.0.attn.qkv.weight']


def test_telemetry_measures_the_merged_weights():
    learn, cb, _ = make('pissa', [Telemetry()])
    learn.fit(2, .05)
    moved = learn.recorder.values[-1][learn.recorder.metric_names[1:-1].index('moved')]
    assert 0 < moved < 1


def test_what_cannot_be_is_one_line():
    from peft import LoraConfig, PrefixTuningConfig
    with pytest.raises(InputError, match='takes r, alpha and targets, or peft='): LoRA(4, peft=LoraConfig())
    with pytest.raises(InputError, match="a configuration of PEFT such as .*, not 'dora'"): LoRA(peft='dora')
    with pytest.raises(InputError, match='adapts prompts'): LoRA(peft=PrefixTuningConfig(task_type='CAUSAL_LM'))
    cb = LoRA(peft=LoraConfig(target_modules=['nothing']))
    learn, _ = video_learner([cb])
    with pytest.raises(InputError, match='PEFT cannot insert LoraConfig into Video') as e: learn.fit(1)
    assert str(e.value).count('\n') == 1  # fastai's line, and ours
    learn, _ = video_learner([LoRA(peft=LoraConfig(target_modules=['point']))])
    with pytest.raises(InputError, match='cannot insert LoraConfig into Video and merge it again'): learn.fit(1)
    cb = LoRA(peft=configuration('corda'))
    learn, _ = video_learner([cb])
    learn.model[0] = Net()
    learn.create_opt()
    with pytest.raises(InputError, match='pass batches=LOADER of source clips'): learn.fit(1)
