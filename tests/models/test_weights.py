"Checkpoints load strictly in their documented forms, or errors say why not."
import ast
import collections
import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import model, same, state
from strategy_helpers import assert_close_states
from torch import nn

from sdfast.errors import InputError
from sdfast.models.averages import averaged_tensors
from sdfast.models.encoders import c3d, create_encoder, create_model, r2plus1d
from sdfast.models.weights import anchor_state, load_encoder, save_weights, state_hash, wise_ft


def test_wise_ft_is_the_line_between_two_states_and_pure():
    a, b = model(0)[0], model(1)[0]
    b.bn.num_batches_tracked.fill_(7)
    a.bn.num_batches_tracked.fill_(3)
    start, end, rng = state(a), state(b), torch.get_rng_state()
    assert same(wise_ft(b, a, 0), start) and same(wise_ft(b, start, 1), end)
    half = wise_ft(b, a, .3)
    assert half['bn.num_batches_tracked'] == 7
    assert_close_states({k:v for k, v in half.items() if 'num' not in k},
                        {k:.7*start[k] + .3*end[k] for k in start if 'num' not in k})
    half['conv.weight'].zero_()
    assert same(state(b), end) and same(state(a), start) and torch.equal(rng, torch.get_rng_state())
    c = copy.deepcopy(a).half()
    assert same(wise_ft(c, state(c), .3), state(c))  # equal ends: exactly there


@pytest.mark.parametrize('wrap', ['encoder', 'model', 'module', 'lightning', 'pth'])
def test_weights_load_from_every_wrapping(tmp_path, wrap):
    model, path = create_model('tiny', 7), tmp_path/('w.safetensors' if wrap == 'encoder' else 'w.pth')
    if wrap == 'encoder': save_weights(model[0], path)
    else:
        s = model.state_dict()
        wrapped = dict(
            model=dict(model=s),
            module={f'module.{k}':v for k, v in s.items()},
            lightning=dict(state_dict=s, epoch=3),
            pth=s)
        torch.save(wrapped[wrap], path)
    got = create_model('tiny', 3, init=path)
    assert all(torch.equal(a, b) for a, b in zip(got[0].state_dict().values(), model[0].state_dict().values()))


def test_wrong_weights_say_what_is_wrong(tmp_path):
    model = create_model('tiny', 7)
    s = model[0].state_dict()
    cases = {
        'lack 1 of': {k:v for k, v in s.items() if k != 'body.0.0.weight'},
        'have other shapes for 1': s | {'body.0.0.weight': torch.zeros(2)},
        'also have 1': s | {'body.9.weight': torch.zeros(2)},
        'no state dict': {'a': 3},
    }
    for word, wrong in cases.items():
        torch.save(wrong, tmp_path/'w.pth')
        with pytest.raises(InputError, match=word) as e: load_encoder(create_encoder('tiny'), tmp_path/'w.pth')
        assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='do not exist'): load_encoder(model[0], tmp_path/'no.pth')
    (tmp_path/'t.safetensors').write_text('nonsense')
    with pytest.raises(InputError, match='cannot be read'): load_encoder(model[0], tmp_path/'t.safetensors')
    with pytest.raises(InputError, match='does not take'): create_model('tiny', 2, colour=3)
    with pytest.raises(InputError, match='no weights that can be downloaded'): create_model('tiny', 2, 'pretrained')
    with pytest.raises(InputError, match='unknown model'): create_model('no_net', 2)


def test_a_hostile_pickle_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self): return (open, (str(tmp_path/'hit'), 'w'))
    (tmp_path/'w.pth').write_bytes(pickle.dumps({'a': Evil()}))
    torch.save({'a': Evil()}, tmp_path/'v.pth')
    for f in ('w.pth', 'v.pth'):
        with pytest.raises(InputError, match='cannot be read as tensors'):
            load_encoder(create_encoder('tiny'), tmp_path/f)
    assert not (tmp_path/'hit').exists()


ROOT = Path(__file__).parents[2]


NETS = dict(c3d=(c3d, 27_661_440, 56), r2plus1d=(r2plus1d, 14_365_303, 144))


class Small(nn.Module):
    "Stands for an encoder in quick tests of loading: a body with a convolution and a batch norm"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(collections.OrderedDict(conv1=nn.Conv3d(3, 2, 1), bn1=nn.BatchNorm3d(2)))
        self.num_features = 2


def checkpoint(body, form):
    "A file's content in the form of one of the code bases, made from documented names"
    state = {k:v.clone() for k, v in body.state_dict().items()}
    other = {k:torch.randn_like(v.float()) for k, v in state.items()}
    dead = {'linear.weight': torch.zeros(1, 512), 'linear.bias': torch.zeros(1)}
    def under(prefix, d): return {prefix + k:v for k, v in d.items()}
    extra = dict(epoch=200, arch='c3d', best_loss=np.float64(1.5),
                 optimizer=dict(state={0: dict(momentum_buffer=torch.zeros(2))}, param_groups=[dict(lr=.1)]),
                 scheduler=dict(milestones=collections.Counter([50, 70]), base_lrs=[.1]))
    if form == 'rspnet':
        heads = {f'{f}.2.{p}': torch.zeros(3) for f in ('fc1', 'fc2') for p in ('weight', 'bias')}
        q, k = under('encoder.', state | dead) | heads, under('encoder.', other | dead) | heads
        return extra | dict(model=under('encoder_q.', q) | under('encoder_k.', k)
                            | dict(queue=torch.zeros(128, 8), queue_ptr=torch.zeros(1)))
    if form == 'rspnet fine-tuned':
        return extra | dict(best_acc1=np.float32(.5), model=under('encoder.', state | dead)
                            | {'fc.weight': torch.zeros(101, 512), 'fc.bias': torch.zeros(101)})
    if form == 'vcop':
        return under('base_network.', state) | {'fc7.weight': torch.zeros(512, 1024),
                                                'fc8.weight': torch.zeros(6, 1536)}
    if form == 'ddp': return dict(state_dict=under('module.', state | dead))
    if form == 'ddp around rspnet':
        return extra | dict(model=under('module.encoder_q.encoder.', state) | under('module.encoder_k.encoder.', other))
    return state


FORMS = ['rspnet', 'rspnet fine-tuned', 'vcop', 'ddp', 'ddp around rspnet', 'plain']


@pytest.mark.parametrize('legacy', [False, True])
@pytest.mark.parametrize('form', FORMS)
def test_documented_forms(form, legacy, tmp_path):
    a, b = Small(), Small()
    nn.init.normal_(a.body.bn1.running_mean)
    torch.save(checkpoint(a.body, form), tmp_path/'x.pth.tar', _use_new_zipfile_serialization=not legacy)
    assert load_encoder(b, tmp_path/'x.pth.tar') is b
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.mark.parametrize('arch', NETS)
def test_an_rspnet_checkpoint_fills_the_whole_encoder(arch, tmp_path):
    a = NETS[arch][0]()
    torch.save(checkpoint(a.body, 'rspnet'), tmp_path/'x.pth.tar')
    model = create_model(arch, 101, tmp_path/'x.pth.tar')
    assert all(torch.equal(v, model[0].state_dict()[k]) for k, v in a.state_dict().items())
    assert model[1].weight.shape == (101, 512)
    save_weights(model[0], tmp_path/'own.safetensors')
    assert all(torch.equal(v, w) for v,
        w in zip(create_model(arch, 2, tmp_path/'own.safetensors')[0].state_dict().values(), a.state_dict().values()))


@pytest.mark.parametrize('form', FORMS)
def test_what_is_missing_is_listed(form, tmp_path):
    file = checkpoint(Small().body, form)
    state = file.get('model', file.get('state_dict', file))
    for k in [k for k in state if k.endswith(('conv1.bias', 'bn1.running_var')) and 'encoder_k' not in k]: del state[k]
    torch.save(file, tmp_path/'x.pth')
    with pytest.raises(InputError, match=r'lack 2 of 7 entries: body\.conv1\.bias, body\.bn1\.running_var'):
        load_encoder(Small(), tmp_path/'x.pth')


def test_other_nets_do_not_pass(tmp_path):
    torch.save(checkpoint(r2plus1d().body, 'rspnet'), tmp_path/'x.pth')
    with pytest.raises(InputError, match='not of this encoder: they lack'): load_encoder(c3d(), tmp_path/'x.pth')
    with pytest.raises(InputError, match='not of this encoder'): create_model('r2plus1d_18', 2, tmp_path/'x.pth')
    state = checkpoint(Small().body, 'plain')
    torch.save(state | {'conv9.weight': torch.zeros(1)}, tmp_path/'y.pth')
    with pytest.raises(InputError, match=r'also have 1 of 7 entries: body\.conv9\.weight'):
        load_encoder(Small(), tmp_path/'y.pth')
    torch.save(state | {'conv1.weight': torch.zeros(2, 3, 3, 3, 3)}, tmp_path/'z.pth')
    with pytest.raises(InputError, match='other shapes for 1'): load_encoder(Small(), tmp_path/'z.pth')


UNSAFE_MODULES = set(
    'pickle _pickle cPickle dill cloudpickle joblib shelve marshal load_learner load_pickle'.split())
UNSAFE_CALLS = set(
    'eval exec __import__ os.system load_learner pd.read_pickle torch.jit.load torch.hub.load '
    'torch.package.PackageImporter'.split())


def test_nothing_here_unpickles():
    """Each `torch.load` is of tensors only.

    No other call can run what a file says, and pandas and NumPy read no pickle."""
    found = []
    for file in sorted(f for d in ('sdfast', 'experiments') for f in (ROOT/d).rglob('*.py')):
        tree = ast.parse(file.read_text(encoding='utf-8'))
        names = [a.name for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))
                 for a in [*n.names, ast.alias(getattr(n, 'module', '') or '')]]
        if 'UnpicklingError' in names: names.remove('pickle')  # to catch what torch raises
        assert not any(isinstance(n, ast.ImportFrom) and n.module == 'yaml' for n in ast.walk(tree)), file
        assert not {n.split('.')[0] for n in names} & UNSAFE_MODULES, file
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            what = ast.unparse(call.func)
            assert what not in UNSAFE_CALLS, (file, what)
            if what.startswith('yaml.'): assert what in ('yaml.safe_load', 'yaml.safe_dump'), (file, what)
            options = {k.arg:ast.unparse(k.value) for k in call.keywords}
            assert options.get('shell') in (None, 'False'), (file, what)
            assert options.get('allow_pickle') in (None, 'False'), (file, what)
            assert options.get('weights_only') in (None, 'True'), (file, what)
            if what == 'torch.load': found.append((file.name, options['weights_only']))
    assert found == [('hf.py', 'True'), ('checkpoints.py', 'True'), ('resume.py', 'True')]


class Script(nn.Module):
    def forward(self, x): return x


@pytest.mark.parametrize('name', ['x.pth', 'x.pth.tar', 'x.pt', 'x.bin', 'x.ckpt', 'x.safetensors', 'x'])
@pytest.mark.parametrize('form', ['pickle', 'pickle 0', 'torch', 'torch legacy', 'text', 'empty', 'script', 'os.system',
                                  'getattr', 'build'])
def test_hostile_files_under_any_name(tmp_path, form, name):
    Hostile.target, file = str(tmp_path/'ran'), tmp_path/name
    state = checkpoint(Small().body, 'plain')
    if form.startswith('pickle'):
        file.write_bytes(pickle.dumps(state | dict(x=Hostile()), protocol=0 if '0' in form else 2))
    elif form.startswith('torch'):
        torch.save(state | dict(x=Hostile()), file, _use_new_zipfile_serialization='legacy' not in form)
    elif form == 'script': torch.jit.save(torch.jit.script(Script()), str(file))
    elif form in ('text', 'empty'): file.write_text('{}'*(form == 'text'))
    else:  # written out, so that they run nothing here
        touch = f'touch {tmp_path/"ran"}'.encode()
        code = {'os.system': b'cposix\nsystem\n(V' + touch + b'\ntR.',
                'getattr': b'cbuiltins\ngetattr\n(cos\npath\nVos\ntR(Vsystem\ntR.',
                'build': b'ccollections\nOrderedDict\n)R(dVx\ncposix\nsystem\n(V' + touch + b'\ntRsb.'}[form]
        file.write_bytes(code)
    with pytest.raises(InputError, match='cannot be read as tensors|hold no state dict') as e:
        load_encoder(Small(), file)
    assert not (tmp_path/'ran').exists() and '\n' not in str(e.value)
    with pytest.raises(InputError): create_model('tiny', 2, file)
    assert not (tmp_path/'ran').exists()


class Hostile:
    def __reduce__(self):
        return eval, ("__import__('pathlib').Path(TARGET).write_text('run')".replace('TARGET', repr(Hostile.target)),)


@pytest.mark.parametrize('legacy', [False, True])
def test_a_hostile_pickle_does_not_run(tmp_path, legacy):
    Hostile.target = str(tmp_path/'ran')
    torch.save(checkpoint(Small().body, 'rspnet') | dict(best_loss=Hostile()), tmp_path/'x.pth',
               _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match='cannot be read as tensors'): load_encoder(Small(), tmp_path/'x.pth')
    assert not (tmp_path/'ran').exists()
    (tmp_path/'y.pth').write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InputError, match='cannot be read as tensors'): load_encoder(Small(), tmp_path/'y.pth')
    assert not (tmp_path/'ran').exists()


def test_averaging_without_an_anchor_or_beyond_its_ends_is_refused():
    with pytest.raises(ValueError, match='pass a state dict'): wise_ft(model()[0], None, .5)
    with pytest.raises(ValueError, match='between 0'): wise_ft(model()[0], {}, 2)


class Odd(nn.Module):
    "A tied weight, a complex one, and a state that is no tensor"
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.filter, self.extra = nn.Parameter(torch.randn(3, dtype=torch.complex64)), dict(scale=1)
        self.register_buffer('count', torch.tensor(0))

    def get_extra_state(self): return self.extra
    def set_extra_state(self, extra): self.extra = extra


def test_a_state_dict_is_no_list_of_weights(tmp_path):
    net, other = Odd(), Odd()
    other.extra, other.count = dict(scale=2), torch.tensor(7)
    assert list(averaged_tensors(net.state_dict())) == ['filter', 'a.weight', 'a.bias', 'b.bias']
    averaged_tensors(net.state_dict())['filter'].zero_()
    assert not net.filter.any()  # it shares memory
    mid = wise_ft(other, net, .25)
    torch.testing.assert_close(mid['filter'], .25*other.filter.detach())
    torch.testing.assert_close(mid['b.weight'], torch.lerp(net.a.weight, other.a.weight, .25).detach())
    assert mid['count'] == 7 and mid['_extra_state'] == dict(scale=2)
    assert state_hash(net.state_dict()) != state_hash(other.state_dict()) == state_hash(anchor_state(other))
    net.extra = dict(scale=3)
    assert state_hash(net.state_dict()) != state_hash({**net.state_dict(), '_extra_state':dict(scale=1)})
    with pytest.warns(UserWarning, match='extra state'): save_weights(other, tmp_path/'w.safetensors')
    load_encoder(net, tmp_path/'w.safetensors')
    assert torch.equal(net.filter, other.filter) and net.count == 7 and net.extra == dict(scale=3)
    assert net.b.weight is net.a.weight and torch.equal(net.b.weight, other.a.weight)
    assert anchor_state(net)['_extra_state'] is not net.extra
