"Checkpoints in the layouts of trainers and libraries: one encoder comes out of all of them."
import argparse
import json
import pickle
import warnings
from collections import OrderedDict, defaultdict
from functools import partial

import numpy as np
import pytest
import torch
from fastai.learner import Learner
from helpers import data, same, state
from safetensors.torch import save_file
from torch import nn

from sdfast.errors import InputError
from sdfast.models.checkpoints import read_nodes
from sdfast.models.weights import load_encoder, save_weights


class Net(nn.Module):
    "An encoder of two blocks with batch norm, as a user writes it"
    def __init__(self, width=4, positions=3):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        self.pos_embed = nn.Parameter(torch.randn(1, positions))
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width)) for _ in range(2)])


class Model(nn.Module):
    def __init__(self, net, name='backbone'):
        super().__init__()
        setattr(self, name, net)
        self.head = nn.Linear(4, 7)


def under(prefix, entries): return {prefix + k:v for k, v in entries.items()}
def others(entries): return {k:v + 1 for k, v in entries.items()}


class AttributeDict(dict): "As Lightning has one for hyperparameters"
class Settings: "Of a library that is not installed where the file is read"


def lightning(net):
    "What Lightning's trainer writes, with what its users put into hyperparameters"
    hparams = AttributeDict(lr=.1, args=argparse.Namespace(size=np.float32(2), part=partial(int, 3)))
    hparams['more'] = [Settings(), {1, 2}, slice(3)]
    return {'epoch': 3, 'global_step': 12, 'pytorch-lightning_version': '2.6.6', 'loops': {'fit_loop': {'state': {}}},
            'state_dict': under('model.net.', net) | {'model.head.weight': torch.ones(7, 4), 'loss.w': torch.ones(7)},
            'callbacks': {"ModelCheckpoint{'monitor': None}": {'best_score': torch.tensor(.3), 'kth': Settings()}},
            'optimizer_states': [{'state': {0: {'momentum_buffer': torch.zeros(4)}}, 'param_groups': [{'lr': .1}]}],
            'lr_schedulers': [defaultdict(list, last=[1])], 'hyper_parameters': hparams}


LAYOUTS = dict(
    plain=lambda s: s,
    state_dict=lambda s: dict(state_dict=s, epoch=3),
    model=lambda s: dict(model=s, optimizer=dict(state={0: dict(exp_avg=torch.ones(2))})),
    model_state_dict=lambda s: dict(model_state_dict=under('module.', s)),
    pytorchvideo=lambda s: dict(model_state=s, cfg='a: 1', epoch=196),
    deepspeed=lambda s: dict(module=under('encoder.', s), buffer_names=[], ds_config=AttributeDict(a=1)),
    vjepa=lambda s: dict(encoder=under('module.backbone.', others(s)), predictor=dict(a=s['stem.bias']),
                         target_encoder=under('module.backbone.', s)),
    dino=lambda s: dict(student=under('module.backbone.', others(s)),
                        teacher=under('backbone.', s | {'head.mlp.weight': torch.ones(2)})),
    ema=lambda s: dict(model=s, model_ema=others(s)),
    lightning=lightning,
    mmaction=lambda s: dict(state_dict=under('backbone.', s) | {'cls_head.fc.weight': torch.ones(2)}),
    moco=lambda s: dict(state_dict=under('module.encoder_q.', s | {'fc.weight': torch.ones(2, 4)})
                        | under('module.encoder_k.', others(s))),
    base_encoder=lambda s: dict(state_dict=under('module.base_encoder.', s)),
    compiled_parts=lambda s: {f'_orig_mod.{k}'.replace('blocks.1.', 'blocks.1._orig_mod.'):v for k, v in s.items()},
    averaged=lambda s: {'n_averaged': torch.tensor(3)} | under('module.', s),
    twice_nested=lambda s: dict(checkpoint=dict(state=dict(model=under('net.', s)))))


@pytest.fixture
def net():
    torch.manual_seed(5)
    net = Net()
    nn.init.normal_(net.blocks[0][1].running_mean)
    return net


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_every_layout(layout, zipped, net, tmp_path):
    torch.save(LAYOUTS[layout](state(net)), tmp_path/'w.ckpt', _use_new_zipfile_serialization=zipped)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        assert same(state(load_encoder(Net(), tmp_path/'w.ckpt')), state(net))
    several = [str(w.message) for w in said if 'several nets that fit' in str(w.message)]
    assert len(several) == (layout in ('vjepa', 'dino', 'ema'))


def test_a_rival_net_is_read_if_it_is_asked_for(net, tmp_path):
    other = {k:v + 1 for k, v in state(net).items()}
    torch.save(dict(student=under('backbone.', other), teacher=under('backbone.', state(net))), tmp_path/'w.pt')
    assert same(state(load_encoder(Net(), tmp_path/'w.pt', key='student')), other)
    with pytest.raises(InputError, match="nothing below 'pupil': their keys are student, teacher"):
        load_encoder(Net(), tmp_path/'w.pt', key='pupil')
    torch.save(dict(left=state(net), right=other), tmp_path/'w.pt')
    with pytest.raises(InputError, match=r"several nets that fit and differ: left, right; pass key='left'") as e:
        load_encoder(Net(), tmp_path/'w.pt')
    assert '\n' not in str(e.value)
    assert same(state(load_encoder(Net(), tmp_path/'w.pt', key='right')), other)
    torch.save(dict(left=state(net), right=state(net)), tmp_path/'w.pt')  # equal: nothing to choose
    assert same(state(load_encoder(Net(), tmp_path/'w.pt')), state(net))


@pytest.mark.parametrize('with_opt', [True, False])
def test_what_fastai_saves(with_opt, tmp_path):
    from helpers import learner
    learn = learner(dls=data())
    learn.fit(1)
    learn.path = tmp_path
    file = learn.save('m', with_opt=with_opt)
    fresh = learner().model[0]
    assert same(state(load_encoder(fresh, file)), state(learn.model[0]))
    assert isinstance(learn, Learner)


def test_folders_of_transformers_in_parts(net, tmp_path):
    entries = list(state(net).items())
    for i, part in enumerate((entries[:3], entries[3:])): save_file(dict(part), tmp_path/f'model-{i}.safetensors')
    weight_map = {k:f'model-{int(i > 2)}.safetensors' for i, (k, _) in enumerate(entries)}
    index = tmp_path/'model.safetensors.index.json'
    index.write_text(json.dumps(dict(weight_map=weight_map)))
    assert same(state(load_encoder(Net(), tmp_path)), state(net))
    for bad in ('../model-0.safetensors', 'none.safetensors'):
        index.write_text(json.dumps(dict(weight_map=weight_map | dict(x=bad))))
        with pytest.raises(InputError, match='which is not there'): load_encoder(Net(), tmp_path)
    index.write_text('[]')
    with pytest.raises(InputError, match='list no files'): load_encoder(Net(), tmp_path)
    index.unlink()
    torch.save(state(net), tmp_path/'pytorch_model.bin')
    assert same(state(load_encoder(Net(), tmp_path)), state(net))


def test_what_we_save_of_compiled_parts_is_read_again(net, tmp_path):
    net.blocks[0] = torch.compile(net.blocks[0], backend='eager')
    outer = torch.compile(net, backend='eager')
    save_weights(outer, tmp_path/'w.safetensors')
    plain = load_encoder(Net(), tmp_path/'w.safetensors')
    assert all(map(torch.equal, plain.state_dict().values(), net.state_dict().values()))
    load_encoder(outer, tmp_path/'w.safetensors')


@pytest.mark.parametrize('whole', [lambda net: net, lambda net: dict(model=net, epoch=3)])
def test_whole_modules_are_refused_with_what_to_do(whole, net, tmp_path):
    torch.save(whole(net), tmp_path/'w.pt')
    with pytest.raises(InputError, match=r'a whole module \(.*Net\).*torch.save\(model.state_dict\(\), FILE\)') as e:
        load_encoder(Net(), tmp_path/'w.pt')
    assert '\n' not in str(e.value)


CAUSES = dict(
    architecture=({'a.weight': torch.ones(2), 'b.weight': torch.ones(2)}, 'lack', 'likely another architecture'),
    depth=({k:v for k, v in Net().state_dict().items() if 'blocks.1' not in k}, 'lack', 'another depth'),
    width=(Net(width=6).state_dict(), 'have other shapes', 'likely other options of the net, such as its width'),
    positions=(Net(positions=9).state_dict(), 'have other shapes', 'clips of another length or size'),
    head=(Net().state_dict() | {'cls.weight': torch.ones(2)}, 'also have', 'a head that is called something else'))


@pytest.mark.parametrize('cause', CAUSES)
def test_a_failure_says_what_matches_and_the_likely_cause(cause, tmp_path):
    content, what, why = CAUSES[cause]
    torch.save(dict(state_dict=content), tmp_path/'w.pt')
    with pytest.raises(InputError, match=f'they {what}.*{why}') as e: load_encoder(Net(), tmp_path/'w.pt')
    want = Net().state_dict()
    matching = len(want.keys() & content.keys())
    names = ', '.join(list(content)[:3])
    assert f'; {matching} of {len(want)} names match: the file has {names}, the encoder' in str(e.value)
    assert '\n' not in str(e.value)


class Hostile:
    target = ''
    def __reduce__(self): return eval, (f"__import__('pathlib').Path({self.target!r}).write_text('ran')",)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_no_layout_runs_code(layout, zipped, net, tmp_path, monkeypatch):
    monkeypatch.setattr(Hostile, 'target', str(tmp_path/'ran'))
    content = LAYOUTS[layout](state(net)) | dict(hook=Hostile())
    torch.save(content, tmp_path/'w.ckpt', _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match='cannot be read as tensors: reading them would run builtins.eval'):
        load_encoder(Net(), tmp_path/'w.ckpt')
    assert not (tmp_path/'ran').exists()
    (tmp_path/'pytorch_model.bin').write_bytes((tmp_path/'w.ckpt').read_bytes())
    with pytest.raises(InputError, match='cannot be read'): load_encoder(Net(), tmp_path)
    assert not (tmp_path/'ran').exists()
    pickle.loads(pickle.dumps(Hostile()))  # it would have run
    assert (tmp_path/'ran').exists()


def test_a_function_in_a_checkpoint_is_not_called(net, tmp_path):
    "A stand-in takes its place, whatever it is"
    class Called:
        def __reduce__(self): return _record, (str(tmp_path/'called'),)
    torch.save(dict(state_dict=state(net), extra=Called()), tmp_path/'w.pt')
    assert same(state(load_encoder(Net(), tmp_path/'w.pt')), state(net))
    assert not (tmp_path/'called').exists()


def _record(path): open(path, 'w').close()


def test_dicts_that_hold_themselves_end(net, tmp_path):
    content = OrderedDict(state_dict=state(net))
    content['self'] = content
    torch.save(content, tmp_path/'w.pt')
    nodes = read_nodes(tmp_path/'w.pt')
    assert all(key.split('.')[-1] == 'state_dict' for key in nodes)
    assert same(state(load_encoder(Net(), tmp_path/'w.pt')), state(net))
