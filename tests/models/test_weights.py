"The paper's encoders and the checkpoints that they come in."
import ast
import collections
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sdfast.errors import InputError
from sdfast.models.encoders import c3d, create_model, is_model, r2plus1d
from sdfast.models.weights import load_encoder, save_weights

ROOT = Path(__file__).parents[2]
ENCODERS = dict(c3d=(c3d, 27_661_440, 56), r2plus1d=(r2plus1d, 14_365_303, 144))


def documented_names(arch):
    "State entries as the reference documents them, written out"
    bn = ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    if arch == 'c3d':
        layers = ['1', '2', '3a', '3b', '4a', '4b', '5a', '5b']
        return {f'conv{l}.{p}' for l in layers for p in ('weight', 'bias')} | {f'bn{l}.{p}' for l in layers for p in bn}
    def unit(name): return {f'{name}.spatial_conv.weight', f'{name}.temporal_conv.weight'} | {f'{name}.bn.{p}' for p in bn}
    names = unit('conv1') | {f'bn1.{p}' for p in bn}
    for n in (2, 3, 4, 5):
        block = f'conv{n}.block1'
        for i in (1, 2): names |= unit(f'{block}.conv{i}') | {f'{block}.bn{i}.{p}' for p in bn}
        if n > 2: names |= unit(f'{block}.downsampleconv') | {f'{block}.downsamplebn.{p}' for p in bn}
    return names


@pytest.mark.parametrize('arch', ENCODERS)
def test_sizes_and_names(arch):
    make, n, entries = ENCODERS[arch]
    encoder = make()
    assert sum(p.numel() for p in encoder.parameters()) == n and len(encoder.state_dict()) == entries == len(documented_names(arch))
    assert {k.removeprefix('body.') for k in encoder.state_dict()} == documented_names(arch)
    assert is_model(arch) and is_model('r2plus1d_18') and encoder.num_features == 512


@pytest.mark.parametrize('arch,shapes', [('c3d', dict(pool1=(64, 16, 56, 56), pool2=(128, 8, 28, 28), pool3=(256, 4, 14, 14), pool4=(512, 2, 7, 7), relu5b=(512, 2, 7, 7))),
                                         ('r2plus1d', dict(relu1=(64, 16, 56, 56), conv2=(64, 16, 56, 56), conv3=(128, 8, 28, 28), conv4=(256, 4, 14, 14), conv5=(512, 2, 7, 7)))])
def test_feature_maps(arch, shapes):
    encoder, seen = ENCODERS[arch][0]().eval(), {}
    for name, m in encoder.body.named_children(): m.register_forward_hook(lambda m, i, o, name=name: seen.update({name: tuple(o.shape[1:])}))
    with torch.no_grad(): f = encoder(torch.randn(1, 16, 3, 112, 112))
    assert f.shape == (1, 512) and f.min() >= 0
    assert {k:seen[k] for k in shapes} == shapes


def by_hand(arch, x, s):
    "The features of clips `(B, T, 3, H, W)` from documented state entries, operation by operation"
    def bn(x, p): return F.batch_norm(x, *(s[f'{p}.{k}'] for k in ('running_mean', 'running_var', 'weight', 'bias')))
    def unit(x, p, t, k, stride=1, time=1):  # space, batch norm, ReLU, time
        x = F.conv3d(x, s[f'{p}.spatial_conv.weight'], stride=(1, stride, stride), padding=(0, k//2, k//2))
        return F.conv3d(bn(x, f'{p}.bn').relu(), s[f'{p}.temporal_conv.weight'], stride=(time, 1, 1), padding=(t//2, 0, 0))
    x = x.transpose(1, 2)
    if arch == 'c3d':
        for stage, pool in zip((['1'], ['2'], ['3a', '3b'], ['4a', '4b'], ['5a', '5b']), ((1, 2, 2), 2, 2, 2, None)):
            for n in stage: x = bn(F.conv3d(x, s[f'conv{n}.weight'], s[f'conv{n}.bias'], padding=1), f'bn{n}').relu()
            if pool: x = F.max_pool3d(x, pool)
    else:
        x = bn(unit(x, 'conv1', 3, 7, 2), 'bn1').relu()
        for n in (2, 3, 4, 5):
            p, stride = f'conv{n}.block1', 1 if n == 2 else 2
            y = bn(unit(x, f'{p}.conv1', 3, 3, stride, stride), f'{p}.bn1').relu()
            y = bn(unit(y, f'{p}.conv2', 3, 3), f'{p}.bn2')
            if n > 2: x = bn(unit(x, f'{p}.downsampleconv', 1, 1, 2, 2), f'{p}.downsamplebn')
            x = (x + y).relu()
    return x.mean((2, 3, 4))


@pytest.mark.parametrize('arch', ENCODERS)
def test_features_by_hand(arch):
    torch.manual_seed(0)
    encoder = ENCODERS[arch][0]().eval()
    for m in encoder.modules():
        if isinstance(m, nn.Conv3d): nn.init.kaiming_normal_(m.weight)  # as torch does it, clips hardly differ behind eight layers
        if isinstance(m, nn.BatchNorm3d):
            for t in (m.running_mean, m.bias): nn.init.normal_(t, 0, .1)
            for t in (m.running_var, m.weight): nn.init.uniform_(t, .5, 1.5)
    x = torch.randn(2, 8, 3, 32, 32)
    with torch.no_grad():
        f = by_hand(arch, x, {k.removeprefix('body.'):v for k, v in encoder.state_dict().items()})
        torch.testing.assert_close(encoder(x), f, rtol=1e-4, atol=1e-5)
    assert (f > 0).float().mean() > .3 and f.std(0).mean() > .01


def test_middle_widths_and_the_factored_shortcut():
    net = r2plus1d().body
    mids = [net.conv1, *(c for s in (net.conv2, net.conv3, net.conv4, net.conv5) for c in (s.block1.conv1, s.block1.conv2)),
            *(s.block1.downsampleconv for s in (net.conv3, net.conv4, net.conv5))]
    assert [m.spatial_conv.out_channels for m in mids] == [83, 144, 144, 230, 288, 460, 576, 921, 1152, 42, 85, 170]
    down = net.conv3.block1.downsampleconv
    assert down.spatial_conv.stride == (1, 2, 2) and down.temporal_conv.stride == (2, 1, 1) and isinstance(down.bn, nn.BatchNorm3d)
    assert all(m.bias is None for m in net.modules() if isinstance(m, nn.Conv3d))


class Small(nn.Module):
    "Stands for an encoder in quick tests of loading: a body with a convolution and a batch norm"
    def __init__(self):
        super().__init__()
        self.body, self.num_features = nn.Sequential(collections.OrderedDict(conv1=nn.Conv3d(3, 2, 1), bn1=nn.BatchNorm3d(2))), 2


def checkpoint(body, form):
    "A file's content in the form of one of the code bases, made from documented names"
    state = {k:v.clone() for k, v in body.state_dict().items()}
    other = {k:torch.randn_like(v.float()) for k, v in state.items()}
    dead = {'linear.weight': torch.zeros(1, 512), 'linear.bias': torch.zeros(1)}
    def under(prefix, d): return {prefix + k:v for k, v in d.items()}
    extra = dict(epoch=200, arch='c3d', best_loss=np.float64(1.5), optimizer=dict(state={0: dict(momentum_buffer=torch.zeros(2))}, param_groups=[dict(lr=.1)]),
                 scheduler=dict(milestones=collections.Counter([50, 70]), base_lrs=[.1]))
    if form == 'rspnet':
        heads = {f'{f}.2.{p}': torch.zeros(3) for f in ('fc1', 'fc2') for p in ('weight', 'bias')}
        q, k = under('encoder.', state | dead) | heads, under('encoder.', other | dead) | heads
        return extra | dict(model=under('encoder_q.', q) | under('encoder_k.', k) | dict(queue=torch.zeros(128, 8), queue_ptr=torch.zeros(1)))
    if form == 'rspnet fine-tuned': return extra | dict(best_acc1=np.float32(.5), model=under('encoder.', state | dead) | {'fc.weight': torch.zeros(101, 512), 'fc.bias': torch.zeros(101)})
    if form == 'vcop': return under('base_network.', state) | {'fc7.weight': torch.zeros(512, 1024), 'fc8.weight': torch.zeros(6, 1536)}
    if form == 'ddp': return dict(state_dict=under('module.', state | dead))
    if form == 'ddp around rspnet': return extra | dict(model=under('module.encoder_q.encoder.', state) | under('module.encoder_k.encoder.', other))
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


@pytest.mark.parametrize('arch', ENCODERS)
def test_an_rspnet_checkpoint_fills_the_whole_encoder(arch, tmp_path):
    a = ENCODERS[arch][0]()
    torch.save(checkpoint(a.body, 'rspnet'), tmp_path/'x.pth.tar')
    model = create_model(arch, 101, tmp_path/'x.pth.tar')
    assert all(torch.equal(v, model[0].state_dict()[k]) for k, v in a.state_dict().items()) and model[1].weight.shape == (101, 512)
    save_weights(model[0], tmp_path/'own.safetensors')
    assert all(torch.equal(v, w) for v, w in zip(create_model(arch, 2, tmp_path/'own.safetensors')[0].state_dict().values(), a.state_dict().values()))


@pytest.mark.parametrize('form', FORMS)
def test_what_is_missing_is_listed(form, tmp_path):
    file = checkpoint(Small().body, form)
    state = file.get('model', file.get('state_dict', file))
    for k in [k for k in state if k.endswith(('conv1.bias', 'bn1.running_var')) and 'encoder_k' not in k]: del state[k]
    torch.save(file, tmp_path/'x.pth')
    with pytest.raises(InputError, match=r'lack 2 of 7 entries: body\.conv1\.bias, body\.bn1\.running_var'): load_encoder(Small(), tmp_path/'x.pth')


def test_other_nets_do_not_pass(tmp_path):
    torch.save(checkpoint(r2plus1d().body, 'rspnet'), tmp_path/'x.pth')
    with pytest.raises(InputError, match='not of this encoder: they lack'): load_encoder(c3d(), tmp_path/'x.pth')
    with pytest.raises(InputError, match='not of this encoder'): create_model('r2plus1d_18', 2, tmp_path/'x.pth')
    state = checkpoint(Small().body, 'plain')
    torch.save(state | {'conv9.weight': torch.zeros(1)}, tmp_path/'y.pth')
    with pytest.raises(InputError, match=r'also have 1 of 7 entries: body\.conv9\.weight'): load_encoder(Small(), tmp_path/'y.pth')
    torch.save(state | {'conv1.weight': torch.zeros(2, 3, 3, 3, 3)}, tmp_path/'z.pth')
    with pytest.raises(InputError, match='other shapes for 1'): load_encoder(Small(), tmp_path/'z.pth')


def test_nothing_here_unpickles():
    "Each `torch.load` is of tensors only; no other call that can run what a file says, and no pickle read by pandas or numpy"
    found = []
    for file in sorted(f for d in ('sdfast', 'experiments') for f in (ROOT/d).rglob('*.py')):
        tree = ast.parse(file.read_text(encoding='utf-8'))
        names = [a.name for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in [*n.names, ast.alias(getattr(n, 'module', '') or '')]]
        if 'UnpicklingError' in names: names.remove('pickle')  # to catch what torch raises
        assert not {n.split('.')[0] for n in names} & {'pickle', '_pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal', 'yaml', 'load_learner', 'load_pickle'}, file
        for call in (n for n in ast.walk(tree) if isinstance(n, ast.Call)):
            what = ast.unparse(call.func)
            assert what not in ('eval', 'exec', '__import__', 'os.system', 'load_learner', 'pd.read_pickle', 'torch.jit.load', 'torch.hub.load', 'torch.package.PackageImporter'), (file, what)
            options = {k.arg:ast.unparse(k.value) for k in call.keywords}
            assert options.get('shell') in (None, 'False') and options.get('allow_pickle') in (None, 'False') and options.get('weights_only') in (None, 'True'), (file, what)
            if what == 'torch.load': found.append((file.name, options['weights_only']))
    assert found == [('models.py', 'True'), ('resume.py', 'True')]


class Script(nn.Module):
    def forward(self, x): return x


@pytest.mark.parametrize('name', ['x.pth', 'x.pth.tar', 'x.pt', 'x.bin', 'x.ckpt', 'x.safetensors', 'x'])
@pytest.mark.parametrize('form', ['pickle', 'pickle 0', 'torch', 'torch legacy', 'text', 'empty', 'script', 'os.system', 'getattr', 'build'])
def test_hostile_files_under_any_name(tmp_path, form, name):
    Hostile.target, file = str(tmp_path/'ran'), tmp_path/name
    state = checkpoint(Small().body, 'plain')
    if form.startswith('pickle'): file.write_bytes(pickle.dumps(state | dict(x=Hostile()), protocol=0 if '0' in form else 2))
    elif form.startswith('torch'): torch.save(state | dict(x=Hostile()), file, _use_new_zipfile_serialization='legacy' not in form)
    elif form == 'script': torch.jit.save(torch.jit.script(Script()), str(file))
    elif form in ('text', 'empty'): file.write_text('{}'*(form == 'text'))
    else:  # written out, so that they run nothing here
        touch = f'touch {tmp_path/"ran"}'.encode()
        code = {'os.system': b'cposix\nsystem\n(V' + touch + b'\ntR.', 'getattr': b'cbuiltins\ngetattr\n(cos\npath\nVos\ntR(Vsystem\ntR.',
                'build': b'ccollections\nOrderedDict\n)R(dVx\ncposix\nsystem\n(V' + touch + b'\ntRsb.'}[form]
        file.write_bytes(code)
    with pytest.raises(InputError, match='cannot be read as tensors|hold no state dict') as e: load_encoder(Small(), file)
    assert not (tmp_path/'ran').exists() and '\n' not in str(e.value)
    with pytest.raises(InputError): create_model('tiny', 2, file)
    assert not (tmp_path/'ran').exists()


class Hostile:
    def __reduce__(self): return eval, ("__import__('pathlib').Path(TARGET).write_text('run')".replace('TARGET', repr(Hostile.target)),)


@pytest.mark.parametrize('legacy', [False, True])
def test_a_hostile_pickle_does_not_run(tmp_path, legacy):
    Hostile.target = str(tmp_path/'ran')
    torch.save(checkpoint(Small().body, 'rspnet') | dict(best_loss=Hostile()), tmp_path/'x.pth', _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match='cannot be read as tensors'): load_encoder(Small(), tmp_path/'x.pth')
    assert not (tmp_path/'ran').exists()
    (tmp_path/'y.pth').write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InputError, match='cannot be read as tensors'): load_encoder(Small(), tmp_path/'y.pth')
    assert not (tmp_path/'ran').exists()
