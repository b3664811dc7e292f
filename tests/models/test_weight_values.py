"Weights that are no finite floats, and names that are no names, are refused in one line."
import collections

import pytest
import torch
from helpers import same, state
from torch import nn

from sdfast.errors import InputError
from sdfast.models.weights import anchor_state, load_encoder, save_weights


class Small(nn.Module):
    "A body with a convolution and a batch norm"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(collections.OrderedDict(conv1=nn.Conv3d(3, 2, 1), bn1=nn.BatchNorm3d(2)))


def small_state(**changed):
    state = Small().state_dict()
    return state | {k.replace('__', '.'):v for k, v in changed.items()}


WEIGHT = torch.randn(2, 3, 1, 1, 1)
UNUSABLE = dict(
    nan=(dict(body__conv1__weight=WEIGHT*torch.nan), 'have NaN or infinite values in 1 of 7 entries: body.conv1.w'),
    inf=(dict(body__bn1__running_var=torch.tensor([1., torch.inf])), 'have NaN or infinite values'),
    overflow=(dict(body__conv1__weight=WEIGHT.double()*1e300), 'have NaN or infinite values'),
    bool=(dict(body__conv1__weight=WEIGHT > 0), r'have booleans \(bool\) instead of floats \(float32\)'),
    integer=(dict(body__conv1__weight=(100*WEIGHT).to(torch.int8)), r'have integers \(int8\) instead of floats'),
    complex=(dict(body__conv1__weight=WEIGHT.to(torch.complex64)), 'have complex numbers'),
    quantised=(dict(body__conv1__weight=torch.quantize_per_tensor(WEIGHT, .1, 0, torch.qint8)), 'are quantised'),
    sparse=(dict(body__bn1__weight=torch.ones(2).to_sparse()), 'are sparse'),
    meta=(dict(body__conv1__weight=WEIGHT.to('meta')), r'have no values \(meta tensors\)'))


@pytest.mark.parametrize('kind', UNUSABLE)
def test_values_that_cannot_be_used_are_named_in_one_line(kind, tmp_path):
    changed, words = UNUSABLE[kind]
    torch.save(small_state(**changed), tmp_path/'w.pth')
    encoder = Small()
    before = state(encoder)
    with pytest.raises(InputError, match=f'w.pth .*({words})') as e: load_encoder(encoder, tmp_path/'w.pth')
    assert '\n' not in str(e.value)
    with pytest.raises(InputError, match=f'the anchor .*({words})'): anchor_state(encoder, small_state(**changed))
    assert same(state(encoder), before)


def test_floats_of_any_precision_and_counters_of_any_kind_are_loaded(tmp_path):
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        saved = {k:v.to(dtype) for k, v in small_state().items()}  # the counter of batches, too
        torch.save(saved, tmp_path/'w.pth')
        got = load_encoder(Small(), tmp_path/'w.pth').state_dict()
        assert all(torch.equal(v, saved[k].to(v.dtype)) for k, v in got.items()), dtype


def test_infinities_that_belong_to_a_net_are_loaded(tmp_path):
    def masked():
        net = Small()
        net.register_buffer('mask', torch.full((3, 3), -torch.inf).triu(1))
        return net
    save_weights(masked(), tmp_path/'w.safetensors')
    assert torch.isinf(load_encoder(masked(), tmp_path/'w.safetensors').mask).sum() == 3
    torch.save(masked().state_dict() | dict(mask=torch.full((3, 3), torch.inf)), tmp_path/'w.pth')
    with pytest.raises(InputError, match='NaN or infinite'): load_encoder(masked(), tmp_path/'w.pth')


def test_names_that_are_no_names(tmp_path):
    cases = {
        'the name 3 is not text': small_state() | {3: torch.ones(1)},
        'have body.conv1.bias twice': small_state() | {'module.body.conv1.bias': torch.ones(2)}}
    for words, content in cases.items():
        torch.save(content, tmp_path/'w.pth')
        with pytest.raises(InputError, match=words) as e: load_encoder(Small(), tmp_path/'w.pth')
        assert '\n' not in str(e.value)
    with pytest.raises(InputError, match='are a folder; give the file in it'): load_encoder(Small(), tmp_path)
    with pytest.raises(InputError, match='the weights of the anchor are not of this encoder: they also have 1'):
        anchor_state(Small(), small_state() | {3: torch.ones(1)})


@pytest.mark.parametrize(
    'form', ['_orig_mod.', '_orig_mod.0.', '0._orig_mod.', 'module._orig_mod.', '_orig_mod.module.'])
def test_weights_of_compiled_nets(form, tmp_path):
    "`torch.compile` adds a part to the names, wherever the compiled module is"
    a = Small()
    torch.save({f'{form}{k}':v for k, v in a.state_dict().items()}, tmp_path/'w.pth')
    assert same(state(load_encoder(Small(), tmp_path/'w.pth')), state(a))
    compiled = torch.compile(Small(), backend='eager')
    load_encoder(compiled, tmp_path/'w.pth')
    assert list(map(torch.equal, compiled.state_dict().values(), a.state_dict().values())) == [True]*7
    save_weights(compiled, tmp_path/'own.safetensors')
    assert same(state(load_encoder(Small(), tmp_path/'own.safetensors')), state(a))
    assert list(map(torch.equal, anchor_state(compiled, a).values(), a.state_dict().values())) == [True]*7
