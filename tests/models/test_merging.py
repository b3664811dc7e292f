"Merged weights against the papers' formulas, loops in plain PyTorch and the authors' code."
import copy
import math

import pytest
import torch
from helpers import Net, model, same, state
from strategy_helpers import assert_close_states
from torch import nn

from sdfast.errors import InputError
from sdfast.models.encoders import tiny
from sdfast.models.merging import greedy_soup, interpolate, lines, model_stock, soup, task_arithmetic, ties
from sdfast.models.weights import save_weights, wise_ft


def nets(n, kind=Net):
    "Encoders of one shape, each with other weights, statistics and counters"
    made = []
    for seed in range(n):
        torch.manual_seed(seed)
        made.append(net := kind())
        for b in net.buffers(): b.copy_(torch.rand(b.shape)*9 + seed)
    return made


class Odd(nn.Module):
    "Tied weights, a mask with infinities, complex weights, a counter, extra state"
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.c = nn.Parameter(torch.randn(2, dtype=torch.complex64))
        self.register_buffer('mask', torch.full((2, 2), -math.inf).triu(1))
        self.register_buffer('seen', torch.tensor(3))

    def get_extra_state(self): return dict(version=2)
    def set_extra_state(self, state): pass


def odd(seed=0):
    torch.manual_seed(seed)
    return Odd()


MERGE = dict(
    interpolate=lambda nets, start: interpolate(nets[0], start, .3),
    lines=lambda nets, start: lines(nets[0], start, .2),
    soup=lambda nets, start: soup(nets),
    greedy_soup=lambda nets, start: greedy_soup(nets, lambda net: 1.)[0],
    model_stock=model_stock,
    task_arithmetic=task_arithmetic,
    ties=ties)
each = pytest.mark.parametrize('name', MERGE)


# ---- what holds for all

@each
def test_nothing_changes_but_the_result(name):
    start, *ends = nets(3)
    before, rng = [state(n) for n in (start, *ends)], torch.get_rng_state()
    merged = MERGE[name](ends, start)
    assert merged.keys() == before[0].keys()
    assert merged['bn.num_batches_tracked'] == before[1]['bn.num_batches_tracked']  # a counter is no weight
    for v in merged.values(): v.zero_()
    assert all(same(state(n), s) for n, s in zip((start, *ends), before))
    assert torch.equal(rng, torch.get_rng_state())


@each
def test_state_dicts_and_files_are_as_good_as_encoders(name, tmp_path):
    start, *ends = nets(3)
    for i, n in enumerate((start, *ends)): save_weights(n, tmp_path/f'{i}.safetensors')
    want = MERGE[name](ends, start)
    assert same(want, MERGE[name]([ends[0], state(ends[1])], state(start)))
    assert same(want, MERGE[name]([ends[0], tmp_path/'2.safetensors'], tmp_path/'0.safetensors'))


@each
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_equal_encoders_merge_to_themselves(name, dtype):
    net = tiny(width=2).to(dtype)
    assert same(MERGE[name]([net, copy.deepcopy(net)], net), state(net))


@each
def test_tied_complex_infinite_and_other_entries(name):
    start, *ends = odd(0), odd(1), odd(2)
    merged = MERGE[name](ends, start)
    assert torch.equal(merged['a.weight'], merged['b.weight'])
    assert torch.equal(merged['mask'], start.mask)
    assert merged['seen'] == 3 and merged['_extra_state'] == dict(version=2)
    assert merged['c'].dtype == torch.complex64 and merged['c'].isfinite().all()
    odd(3).load_state_dict(merged)


@each
@pytest.mark.parametrize('lam', [0., .3, 3.])
def test_variances_stay_above_0(name, lam):
    start, *ends = nets(4)
    start.bn.running_var.fill_(9.)
    for n in ends: n.bn.running_var.fill_(.1)
    takes_lam = (lam,) if name in ('task_arithmetic', 'ties') else ()
    assert (MERGE[name](ends, start, *takes_lam)['bn.running_var'] > 0).all()
    assert (interpolate(ends[0], start, lam)['bn.running_var'] > 0).all()


def test_statistics_of_a_task_that_is_unlearned_do_not_count():
    start, *ends = nets(3)
    merged = task_arithmetic(ends, start, [3., -2.])
    torch.testing.assert_close(merged['bn.running_var'], ends[0].bn.running_var)
    assert same(task_arithmetic(ends, start, [-1., 0.]) | named(start), state(start))


def named(net): return {k:p.detach() for k, p in net.named_parameters()}


# ---- one encoder

def test_interpolate_is_wise_ft_with_a_share_for_each_entry():
    start, end = nets(2)
    for alpha in (0, .3, 1): assert same(interpolate(end, start, alpha), wise_ft(end, start, alpha))
    shares = {k:i/10 for i, k in enumerate(state(end))}
    for (k, v), s in zip(interpolate(end, start, shares).items(), shares.values()):
        if 'num' not in k: torch.testing.assert_close(v, (1 - s)*state(start)[k] + s*state(end)[k])
    twice = interpolate(end, start, 2.)
    torch.testing.assert_close(twice['conv.weight'], 2*end.conv.weight.data - start.conv.weight.data)
    assert torch.equal(twice['bn.running_mean'], end.bn.running_mean)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)


class Blocks(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(n)])


def lines_of_the_authors(task_vector, alpha, beta, num_blocks):
    "`LiNeS_scaling` of wang-kee/LiNeS, src/eval/eval.py"
    key_blocks = list(f'.{i}.' for i in range(0, num_blocks))
    scalings = {}
    for k in task_vector:
        for layer, block in enumerate(key_blocks):
            if block in k:
                scalings[k] = alpha + beta*(layer/(num_blocks - 1))
                break
    return {k:v*scalings.get(k, alpha) for k, v in task_vector.items()}


@pytest.mark.parametrize('alpha, beta', [(.3, None), (0., None), (.2, .5), (.5, 1.5), (1., None)])
def test_lines_is_that_of_the_authors(alpha, beta):
    start, end = nets(2, lambda: Blocks(5))
    tau = {k:v - state(start)[k] for k, v in state(end).items()}
    scaled = lines_of_the_authors(tau, alpha, 1 - alpha if beta is None else beta, 5)
    want = {k:state(start)[k] + v for k, v in scaled.items()}
    assert_close_states(lines(end, start, alpha, beta), want, rtol=1e-5, atol=1e-6)


def test_the_ends_of_lines_are_exact():
    start, end = nets(2, lambda: Blocks(3))
    assert same(lines(end, start, 1.), state(end))
    assert same(lines(end, start, 0., 0.), state(start))
    merged = lines(end, start, 0.)
    for k, v in merged.items():
        if k.startswith('blocks.0.'): assert torch.equal(v, state(start)[k])
        if k.startswith('blocks.2.'): assert torch.equal(v, state(end)[k])


def test_lines_without_layers_warns():
    with pytest.warns(UserWarning, match='LiNeS finds one layer in Linear'):
        lines(nn.Linear(2, 2), nn.Linear(2, 2))


# ---- encoders of one task

def test_soup_is_the_mean():
    made = nets(3)
    for weights in (None, [1., 1., 1.], [2, 0, 1]):
        w = torch.tensor(weights or [1.]*3)
        w = w/w.sum()
        want = {k:sum(a*state(n)[k] for a, n in zip(w, made)) for k in state(made[0]) if 'num' not in k}
        got = {k:v for k, v in soup(made, weights).items() if 'num' not in k}
        assert_close_states(got, want, rtol=1e-5, atol=1e-6)
    assert same(soup(made[:1]), state(made[0]))
    low = soup([m.half() for m in made])
    assert low['conv.weight'].dtype == torch.float16
    want = torch.stack([m.conv.weight.double() for m in made]).mean(0).half()  # rounded once
    assert torch.equal(low['conv.weight'], want)


def scalar(v):
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, v)
    return net


@pytest.mark.parametrize('values, want', [
    ([0., 4., 2.], [2]),          # 1 with the first and 3 with the second are further from 1.9 than 2
    ([1., 5., 2.5], [2, 0]),      # 1.75 with the first; 5 would take it to 2.83
    ([2., 2., 2.], [0, 1, 2]),    # equal ones are taken, in their order
    ([9., 2.2], [1])])
def test_greedy_soup(values, want):
    "The measure is highest at 1.9"
    merged, chosen = greedy_soup(list(map(scalar, values)), lambda net: -abs(net.weight.item() - 1.9))
    assert chosen == want == greedy_by_hand(values)
    assert merged['weight'].item() == pytest.approx(sum(values[i] for i in want)/len(want))


def greedy_by_hand(values):
    "Recipe 1 of the paper"
    def accuracy(xs): return -abs(sum(xs)/len(xs) - 1.9)
    order = sorted(range(len(values)), key=lambda i: accuracy([values[i]]), reverse=True)
    ingredients = []
    for i in order:
        mixed = [values[j] for j in [*ingredients, i]]
        if not ingredients or accuracy(mixed) >= accuracy([values[j] for j in ingredients]): ingredients.append(i)
    return ingredients


@pytest.mark.parametrize('K', [2, 3, 5])
def test_model_stock_is_the_point_nearest_to_the_centre(K):
    "The paper's derivation: weights scatter around a centre, at right angles to each other and to the way there"
    q, _ = torch.linalg.qr(torch.randn(16, K + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(K)))
    w0 = torch.arange(16.).double()
    centre = w0 + 3*q[:, 0]
    ends = [centre + 2*q[:, i + 1] for i in range(K)]
    mean = torch.stack(ends).mean(0)
    t = torch.linalg.lstsq((mean - w0)[:, None], (centre - w0)[:, None]).solution.item()
    def net(w):
        made = nn.Linear(16, 1, bias=False).double()
        made.weight.data.copy_(w[None])
        return made
    merged = model_stock([net(w) for w in ends], net(w0))
    torch.testing.assert_close(merged['weight'][0], w0 + t*(mean - w0))
    assert .6 < t < 1


def test_model_stock_by_tensor():
    start, *ends = nets(4)
    merged = model_stock(ends, start)
    for k, p in start.named_parameters():
        taus = [(dict(n.named_parameters())[k] - p).detach().flatten() for n in ends]
        cos = [torch.cosine_similarity(taus[i], taus[j], 0) for i, j in ((0, 1), (0, 2), (1, 2))]
        c = max(sum(cos).item()/3, 0)
        t = 3*c/(2*c + 1)
        torch.testing.assert_close(merged[k].flatten(), p.detach().flatten() + t*sum(taus)/3, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(merged['bn.running_mean'], sum(n.bn.running_mean for n in ends)/3)


def test_model_stock_of_opposite_encoders_is_the_start():
    assert model_stock([scalar(3.), scalar(-1.)], scalar(1.))['weight'].item() == 1.


# ---- encoders of several tasks

@pytest.mark.parametrize('lam', [0., .4, 1., -.5, [.5, 2.]])
def test_task_arithmetic(lam):
    start, *ends = nets(3)
    merged = task_arithmetic(ends, start, lam)
    lams = lam if isinstance(lam, list) else [lam, lam]
    for k, p in start.named_parameters():
        want = p + sum(v*(dict(n.named_parameters())[k] - p) for v, n in zip(lams, ends))
        torch.testing.assert_close(merged[k], want.detach(), rtol=1e-5, atol=1e-6)
    if lam == 0: assert same(merged, state(start))
    if lam == .4:  # statistics are between the encoders'
        want = .2*start.bn.running_var + .4*ends[0].bn.running_var + .4*ends[1].bn.running_var
        torch.testing.assert_close(merged['bn.running_var'], want)
    assert_close_states({k:v for k, v in task_arithmetic(ends[:1], start, 1.).items()}, state(ends[0]), rtol=0, atol=0)


def ties_of_the_authors(flat, keep):
    "`ties_merging` of prateeky2806/ties-merging, src/ties_minimal.ipynb, by the mean"
    n, d = flat.shape
    k = d - int(d*keep)
    threshold = flat.abs().kthvalue(k, dim=1, keepdim=True).values
    flat = flat*(flat.abs() >= threshold)
    signs = torch.sign(flat.sum(dim=0))
    signs[signs == 0] = torch.sign(signs.sum())
    selected = flat*torch.where(signs.unsqueeze(0) > 0, flat > 0, flat < 0)
    return selected.sum(dim=0)/torch.clamp((selected != 0).sum(dim=0).float(), min=1)


def vector(net): return torch.cat([p.detach().flatten() for p in net.parameters()])


@pytest.mark.parametrize('keep', [.2, .5, .8])
@pytest.mark.parametrize('lam', [.3, 1.])
def test_ties_is_that_of_the_authors(keep, lam):
    start, *ends = nets(4)
    w0 = vector(start)
    d = len(w0)
    # they keep one more than the share
    merged = ties_of_the_authors(torch.stack([vector(n) - w0 for n in ends]), (round(keep*d) - 1 + 1e-6)/d)
    got = copy.deepcopy(start)
    got.load_state_dict(ties(ends, start, lam, keep))
    torch.testing.assert_close(vector(got), w0 + lam*merged, rtol=1e-5, atol=1e-6)


def test_ties_by_hand():
    "Two tasks and five weights, of which three are kept"
    def net(values):
        made = nn.Linear(5, 1, bias=False)
        made.weight.data = torch.tensor([values])
        return made
    start = net([1., 1., 1., 1., 1.])
    a = net([4., 0., 1.1, 3., 1.])    # τ: 3, -1, .1, 2, 0 -> 3, -1, 0, 2, 0
    b = net([2., 5., 1.2, -5., 1.1])  # τ: 1, 4, .2, -6, .1 -> 1, 4, 0, -6, 0
    got = ties([a, b], start, 1., .6)['weight'][0]
    # 3 and 1 agree; 4 outweighs -1; nothing; -6 outweighs 2; nothing
    torch.testing.assert_close(got, torch.tensor([3., 5., 1., -5., 1.]))
    assert torch.equal(ties([a, b], start, 0.)['weight'], start.weight)


def test_a_sum_of_0_takes_the_sign_of_most_weights_in_ties():
    def net(values):
        made = nn.Linear(3, 1, bias=False)
        made.weight.data = torch.tensor([values])
        return made
    start = net([0., 0., 0.])
    assert ties([net([2., 1., 1.]), net([-2., 1., 1.])], start, 1., 1.)['weight'].tolist() == [[2., 1., 1.]]
    assert ties([net([2., -1., -1.]), net([-2., -1., -1.])], start, 1., 1.)['weight'].tolist() == [[-2., -1., -1.]]


def test_tied_weights_count_once_in_ties():
    class Three(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.a, self.b = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
            self.tied = self.a
            self.a.weight.data, self.b.weight.data = torch.tensor([a]), torch.tensor([b])
    start, end = Three([0., 0.], [0., 0.]), Three([1., 2.], [3., 4.])
    merged = ties([end], start, 1., .5)  # two of four, not three of six
    assert merged['a.weight'].tolist() == merged['tied.weight'].tolist() == [[0., 0.]]
    assert merged['b.weight'].tolist() == [[3., 4.]]


# ---- what is refused

@pytest.mark.parametrize('call, why', [
    (lambda n: soup([]), 'at least 1 fine-tuned encoder, not 0'),
    (lambda n: model_stock(n[:1], n[0]), 'at least 2 fine-tuned encoders, not 1'),
    (lambda n: soup([state(n[0])]), 'a module as the first encoder'),
    (lambda n: soup([n[0], tiny()]), 'the weights of encoder 1 for soup are not of this encoder'),
    (lambda n: soup(n, [1., 2.]), 'needs 3 weights'),
    (lambda n: soup(n, [0., 0., 0.]), 'not all 0'),
    (lambda n: soup(n, [1., 1., -1.]), 'a finite number of at least 0, not -1'),
    (lambda n: greedy_soup(n, lambda net: math.nan), 'gives nan for the mean of encoders 0'),
    (lambda n: lines(n[0], n[1], -.1), 'alpha must be a finite number of at least 0, not -0.1'),
    (lambda n: lines(n[0], n[1], .1, math.inf), 'beta must be'),
    (lambda n: interpolate(n[0], n[1], {'conv.weight':.3}), 'has none for conv.bias'),
    (lambda n: task_arithmetic(n, n[0], [1., 1.]), 'a lam for each of 3 encoders'),
    (lambda n: task_arithmetic(n, n[0], math.nan), 'lam must be a finite number, not nan'),
    (lambda n: ties(n, n[0], 1., 0.), 'keep must be a share above 0 and at most 1'),
    (lambda n: ties(n, n[0], 1., 20), 'at most 1, not 20'),
    (lambda n: ties([*n, diverged()], n[0]), 'encoder 3 for ties have NaN'),
    (lambda n: ties([diverged(), *n], n[0]), 'encoder 0 for ties have NaN')])
def test_refusals_in_one_line(call, why):
    with pytest.raises(InputError) as e: call(nets(3))
    assert why in str(e.value)
    assert '\n' not in str(e.value)


def diverged():
    net = Net()
    net.conv.weight.data.fill_(math.nan)
    return net


def test_an_encoder_inside_a_model_stays_in_its_mode():
    net = model().train()
    soup([net[0], model(1)[0]])
    assert net.training and net[0].bn.training
