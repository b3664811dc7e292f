"Batch spectral shrinkage, stochastic normalisation, Co-Tuning and R3F against independent formulas and fastai's traps."
import copy
import io
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback, CancelFitException
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.schedule import lr_find  # noqa: F401  (patches Learner)
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders, Datasets, TfmdDL
from fastai.learner import load_learner
from fasttransform import Transform
from helpers import Net, data, learner, model, same, state
from scipy.stats import entropy
from torch import nn

from sdfast.errors import InputError
from sdfast.strategies import (
    BSS,
    R3F,
    CoTuning,
    FeaturePenalty,
    SelfDistill,
    StochNorm,
    bss,
    category_relation,
    plain_norm,
    stoch_norm,
    sym_kl,
)


def source_head(seed=9, n=5):
    g = torch.Generator().manual_seed(seed)
    head = nn.Linear(6, n)
    with torch.no_grad():
        for p in head.parameters(): p.copy_(torch.randn(p.shape, generator=g))
    return head


PENALTIES = dict(bss=BSS, co_tuning=lambda lam: CoTuning(lam, source_head()), r3f=lambda lam: R3F(lam, eps=.1))
ALL = PENALTIES | dict(stoch_norm=lambda lam: StochNorm(p=.5 if lam else 0.))


class Stop(Callback):
    order, run_valid = 20, False
    def __init__(self, error): self.error = error
    def after_loss(self):
        if self.iter == 2: raise self.error


class CPUAutocast(MixedPrecision):
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', dtype=torch.bfloat16)


def close(a, b, **kw):
    for u, v in zip(a.state_dict().values(), b.state_dict().values()): torch.testing.assert_close(u, v, **(dict(rtol=1e-5, atol=1e-6) | kw))


def by_hand(net, term, lam, epochs=2, params=(), on_epoch=lambda e: None):
    "Plain PyTorch: CE plus `lam*term(net, x, y, features, logits)`"
    dls, opt = data(), torch.optim.SGD([*net.parameters(), *params], lr=.1, momentum=.9)
    for epoch in range(epochs):
        net.train()
        on_epoch(epoch)
        for x, y in dls.train:
            f = net[0](x)
            pred = net[1](f)
            loss = F.cross_entropy(pred, y) + lam*term(net, x, y, f, pred)
            opt.zero_grad()
            loss.backward()
            opt.step()
    return net


# --- batch spectral shrinkage -----------------------------------------------------------------------------------------

@pytest.mark.parametrize('shape', [(8, 5), (5, 8), (6, 6), (1, 4), (6, 4, 3), (5, 4, 2, 3, 2)])
@pytest.mark.parametrize('k', [1, 3, 9])
def test_bss_equals_numpy(shape, k):
    x = np.random.default_rng(0).normal(size=shape)
    mat = x.reshape(*shape[:2], -1).mean(2)
    s = np.sort(np.linalg.svd(mat)[1])
    got = bss(torch.tensor(x), k)
    assert got.dtype == torch.float32 and got.item() == pytest.approx((s[:k]**2).sum(), rel=1e-4)


def test_the_gradient_of_bss():
    "2 s u v' of the smallest singular values, and central differences"
    x = np.random.default_rng(1).normal(size=(7, 4))
    t = torch.tensor(x, dtype=torch.float32, requires_grad=True)
    bss(t, 2).backward()
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    want = sum(2*s[i]*np.outer(u[:, i], vt[i]) for i in (2, 3))
    np.testing.assert_allclose(t.grad, want, atol=1e-5)
    def value(z): return (np.linalg.svd(z)[1][2:]**2).sum()
    for i, j in ((0, 0), (3, 2), (6, 3)):
        d = np.zeros_like(x)
        d[i, j] = 1e-5
        assert t.grad[i, j].item() == pytest.approx((value(x + d) - value(x - d))/2e-5, abs=1e-4)


def test_bss_of_low_precision_and_of_infinite_features():
    x = torch.randn(8, 4)
    with torch.autocast('cpu', dtype=torch.bfloat16): low = bss(x.bfloat16())
    assert low.dtype == torch.float32 and low.item() == pytest.approx(bss(x.bfloat16().float()).item())
    x[2, 1], x[0, 0] = float('inf'), float('nan')
    assert torch.isfinite(bss(x.requires_grad_()))


def test_bss_equals_a_hand_written_loop():
    "The smallest eigenvalue of the smaller Gram matrix"
    net = model()
    def term(net, x, y, f, pred): return torch.linalg.eigvalsh((f.T @ f).double())[:2].sum()
    want = by_hand(copy.deepcopy(net), term, .05)
    learn = learner(BSS(.05, k=2), net=net)
    learn.fit(2)
    close(learn.model, want, rtol=1e-4, atol=1e-5)


# --- stochastic normalisation -----------------------------------------------------------------------------------------

def norm_of(dim, c=6, **kw):
    m = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dim - 1](c, **kw)
    g = torch.Generator().manual_seed(dim)
    with torch.no_grad():
        if m.affine: m.weight.copy_(torch.rand(c, generator=g) + .5), m.bias.copy_(torch.randn(c, generator=g))
        if m.running_mean is not None: m.running_mean.copy_(torch.randn(c, generator=g)), m.running_var.copy_(torch.rand(c, generator=g) + .5)
    return m


@pytest.mark.parametrize('dim,shape', [(1, (5, 6)), (1, (5, 6, 4)), (2, (4, 6, 3, 2)), (3, (3, 6, 2, 3, 2))])
@pytest.mark.parametrize('momentum,affine', [(.1, True), (None, True), (.3, False)])
def test_stoch_norm_equals_numpy(dim, shape, momentum, affine):
    m = norm_of(dim, momentum=momentum, affine=affine)
    rm, rv = m.running_mean.numpy().astype(float), m.running_var.numpy().astype(float)
    w, b = (m.weight.detach().numpy(), m.bias.detach().numpy()) if affine else (np.ones(6), np.zeros(6))
    stoch_norm(m, .4)
    rng = np.random.default_rng(0)
    for step in (1, 2):
        x = rng.normal(1, 2, shape).astype('f')
        torch.manual_seed(step)
        moving = (torch.rand(6) < .4).numpy()
        torch.manual_seed(step)
        got, want = m(torch.tensor(x)).detach().numpy(), np.empty(shape)
        assert 0 < moving.sum() < 6
        for c in range(6):
            v = x[:, c].astype(float)
            mean, var = (rm[c], rv[c]) if moving[c] else (v.mean(), v.var())
            want[:, c] = w[c]*(v - mean)/np.sqrt(var + m.eps) + b[c]
            a = 1/step if momentum is None else momentum
            rm[c], rv[c] = (1 - a)*rm[c] + a*v.mean(), (1 - a)*rv[c] + a*v.var(ddof=1)
        np.testing.assert_allclose(got, want, atol=1e-5)
        np.testing.assert_allclose(m.running_mean, rm, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(m.running_var, rv, rtol=1e-5, atol=1e-6)
        assert m.num_batches_tracked == step


def test_p_is_the_part_of_channels_with_moving_statistics():
    for p in (.1, .5, .9):
        m, x = nn.BatchNorm2d(4000), torch.randn(4, 4000, 1, 1)
        torch.manual_seed(0)
        y = stoch_norm(m, p)(x)
        moving = x/(1 + m.eps)**.5  # initial statistics are 0 and 1
        assert torch.isclose(y, moving).all(3).all(2).all(0).float().mean() == pytest.approx(p, abs=.03)


def test_p_1_uses_moving_statistics_only_and_p_0_draws_nothing():
    m, x = norm_of(2), torch.randn(4, 6, 3, 3)
    want = copy.deepcopy(m).eval()(x)
    assert torch.equal(stoch_norm(copy.deepcopy(m), 1.)(x), want)
    rng = torch.get_rng_state()
    zero = stoch_norm(copy.deepcopy(m), 0.)
    assert type(zero) is nn.BatchNorm2d and torch.equal(zero(x), m(x)) and torch.equal(rng, torch.get_rng_state())


def test_the_gradient_of_stoch_norm():
    "Also where a second call moves the statistics that the first one has normalised by"
    a, b, w = torch.randn(3, 5, 6).double()
    def f(a, again=False):
        m = stoch_norm(norm_of(1).double(), .5)
        torch.manual_seed(0)
        y = m(a)
        if again: m(10*b)
        return y
    assert torch.autograd.gradcheck(f, a.requires_grad_())
    assert torch.equal(*(torch.autograd.grad((w*f(a, again)).sum(), a)[0] for again in (False, True)))


def test_where_stoch_norm_is_plain():
    x = torch.randn(4, 6, 3, 3)
    for make in (lambda: norm_of(2).eval(), lambda: norm_of(2, track_running_stats=False), lambda: norm_of(2, track_running_stats=False).eval()):
        m, rng = make(), torch.get_rng_state()
        assert torch.equal(stoch_norm(make(), .9)(x), m(x)) and torch.equal(rng, torch.get_rng_state())
    m = stoch_norm(norm_of(2), .9)
    m.track_running_stats = False  # as in a teacher, and in `keep_buffers`
    before = state(m)
    assert torch.equal(m(x), F.batch_norm(x, None, None, m.weight, m.bias, True)) and same(before, state(m))


def test_a_kind_of_batch_norm_with_a_forward_of_its_own():
    from timm.layers import BatchNormAct2d
    m, x = BatchNormAct2d(6), torch.randn(4, 6, 3, 3)
    m.running_mean.fill_(.3)
    want = F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias).relu()
    assert torch.equal(stoch_norm(m, 1.)(x), want) and m.running_mean[0] != .3
    assert type(plain_norm(m)) is BatchNormAct2d


def test_copies_and_pickles_of_stoch_norm_are_plain():
    net = model()
    keys = net.state_dict().keys()
    stoch_norm(net[0], .5)
    assert net.state_dict().keys() == keys and type(net[0].bn) is not nn.BatchNorm2d and isinstance(net[0].bn, nn.BatchNorm2d)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (copy.deepcopy(net), copy.copy(net[0].bn), pickle.loads(pickle.dumps(net)), torch.load(file, weights_only=False)):
        bns = [m for m in other.modules() if isinstance(m, nn.BatchNorm2d)]
        assert [type(m) for m in bns] == [nn.BatchNorm2d] and torch.equal(bns[0].weight, net[0].bn.weight)
    twice = stoch_norm(stoch_norm(net[0], .5), .9)
    assert twice.bn.p == .9 and type(plain_norm(twice).bn) is nn.BatchNorm2d


class HandNorm(nn.BatchNorm2d):
    "The same in plain torch operations"
    def forward(self, x):
        if not self.training: return super().forward(x)
        s = (torch.rand(self.num_features) < .5).float()
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        a, b = s*self.running_mean + (1 - s)*mean, s*self.running_var + (1 - s)*var
        with torch.no_grad():
            n = x.numel()/x.shape[1]
            self.running_mean = .9*self.running_mean + .1*mean
            self.running_var = .9*self.running_var + .1*var*n/(n - 1)
            self.num_batches_tracked += 1
        v = (1, -1, 1, 1)
        return self.weight.view(v)*(x - a.view(v))/(b.view(v) + self.eps).sqrt() + self.bias.view(v)


def test_stoch_norm_equals_a_hand_written_loop():
    net = model()
    hand = copy.deepcopy(net)
    hand[0].bn = HandNorm(4)
    learn = learner(StochNorm(), net=net)
    learn.fit(1)
    torch.manual_seed(1)
    random.seed(1)
    want = by_hand(hand, lambda *a: 0., 0., 1)
    close(learn.model, want, rtol=1e-4, atol=1e-5)
    torch.manual_seed(5)
    learn.fit(1)
    assert type(learn.model[0].bn) is nn.BatchNorm2d and learn.model[0].bn.num_batches_tracked == 12


def test_stoch_norm_is_on_in_training_only_and_copies_stay_plain():
    seen, teach = set(), SelfDistill(1.)
    class Spy(Callback):
        def after_pred(self):
            net = self.learn.model
            seen.add((self.training, *(type(m.bn).__name__ for m in (net[0], teach.teacher, pickle.loads(pickle.dumps(net[0]))))))
    learn = learner([StochNorm(), teach, Spy()])
    learn.fit(2)
    plain = 'BatchNorm2d'
    assert seen == {(True, 'StochBatchNorm2d', plain, plain), (False, plain, plain, plain)}
    assert type(learn.model[0].bn) is nn.BatchNorm2d


@pytest.mark.parametrize('error', [KeyboardInterrupt(), CancelFitException(), RuntimeError('x')])
@pytest.mark.parametrize('own', [True, False])
def test_an_interrupted_stoch_norm_is_taken_back(error, own):
    cb = StochNorm()
    learn = learner(cb if own else None)
    try: learn.fit(1, cbs=[Stop(error)] if own else [Stop(error), cb])
    except (KeyboardInterrupt, RuntimeError): pass
    if own: learn.validate()
    assert type(learn.model[0].bn) is nn.BatchNorm2d


# --- Co-Tuning --------------------------------------------------------------------------------------------------------

def test_the_relation_by_hand():
    probs = torch.tensor([[.8, .2, 0], [.4, .4, .2], [.1, .1, .8], [.3, .3, .4]])
    got = category_relation(probs, torch.tensor([1, 0, 1, 0]), 2)
    torch.testing.assert_close(got, torch.tensor([[.35, .35, .3], [.45, .15, .4]]))


@pytest.mark.parametrize('n_target', [2, 3])
def test_the_reverse_relation_is_bayes_of_a_logistic_regression(n_target):
    "Newton's method on the same penalised likelihood, over the strengths that cross-validation chooses from"
    g = torch.Generator().manual_seed(0)
    probs = (3*torch.randn(60, 4, generator=g)).softmax(1)
    y = probs.argmax(1) % n_target
    got = category_relation(probs, y, n_target, 'reverse')
    assert torch.allclose(got.sum(1), torch.ones(n_target)) and (got >= 0).all()
    fits = []
    for c in np.logspace(-2, 4, 7):
        k = 1 if n_target == 2 else n_target
        w = torch.zeros(4, k, dtype=torch.double, requires_grad=True)
        opt = torch.optim.LBFGS([w], max_iter=2000, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn='strong_wolfe')
        def logits(x): return torch.cat([torch.zeros(len(x), 1).double(), x @ w], 1) if k == 1 else x @ w
        def loss():
            opt.zero_grad()
            l = c*F.cross_entropy(logits(probs.double()), y, reduction='sum') + w.square().sum()/2
            l.backward()
            return l
        opt.step(loss)
        joint = logits(torch.eye(4).double()).softmax(1).T*probs.double().mean(0)
        fits.append((joint/joint.sum(1, keepdim=True)).float().detach())
    assert min((got - f).abs().max() for f in fits) < 1e-2
    few = category_relation(probs[:n_target], torch.arange(n_target), n_target, 'reverse')  # one clip a class: nothing to cross-validate with
    assert torch.allclose(few.sum(1), torch.ones(n_target)) and few.shape == (n_target, 4)


def relate(net, head, dl):
    net = copy.deepcopy(net).eval()
    with torch.no_grad(): p, y = (torch.cat(t) for t in zip(*[(head(net[0](x)).softmax(1), y) for x, y in dl]))
    return torch.stack([p[y == c].mean(0) for c in range(3)])


def test_co_tuning_equals_a_hand_written_loop():
    net, head = model(), source_head()
    relation, hand = relate(net, head, data().train), copy.deepcopy(head)
    def term(net, x, y, f, pred): return -(relation[y]*hand(f).log_softmax(1)).sum(1).mean()
    want = by_hand(copy.deepcopy(net), term, .5, params=hand.parameters())
    cb, before = CoTuning(.5, head), state(head)
    learn = learner(cb, net=net)
    learn.fit(2)
    close(learn.model, want)
    close(cb.aux, hand)
    torch.testing.assert_close(cb.relation, relation)
    assert same(before, state(head))  # the caller's own head is a copy's source only
    given = learner(CoTuning(.5, head, relation=relation.numpy()), net=model())
    given.fit(2)
    close(given.model, want)


def test_the_term_is_torchs_cross_entropy_with_probabilities():
    cb, terms = CoTuning(2., source_head()), []
    class Spy(Callback):
        order, run_valid = 6, False
        def after_loss(self):
            f = self.learn.model[0](self.x)
            terms.append((((self.learn.loss_grad - self.learn.loss)/2).item(), F.cross_entropy(cb.aux(f), cb.relation[self.y]).item()))
    learner([cb, Spy()], lr=0.).fit(1)
    assert all(a == pytest.approx(b, rel=1e-4) for a, b in terms)


def test_relating_leaves_everything_as_it_was():
    "Random states, buffers, modes, gradients; no shuffling, no augmentation, no item left out"
    class Augment(Transform):
        split_idx = 0
        def encodes(self, x:torch.Tensor):
            if x.ndim > 0: return x + 100*torch.randn(1) + random.random() + np.random.rand()
    d = data()
    sets = Datasets(d.train.dataset.items, tfms=[[*d.train.dataset.tls[0].tfms.fs, Augment()], [*d.train.dataset.tls[1].tfms.fs]], splits=[range(44), range(44, 48)])
    dls = DataLoaders(TfmdDL(sets.train, bs=8, num_workers=0, shuffle=True, drop_last=True), TfmdDL(sets.valid, bs=8, num_workers=0), device='cpu')
    cb, found = CoTuning(1., source_head()), []
    class Spy(Callback):
        def __init__(self, order): self.order = order
        def before_train(self):
            net = self.learn.model
            found.append((state(net), torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), [m.training for m in net.modules()],
                          [p.grad for p in net.parameters()], self.dls.train.rng.getstate()))
    net = model(dropout=.3)
    net[0].drop.eval()
    learn = learner([Spy(4), cb, Spy(6)], dls=dls, net=net)
    learn.fit(1)
    a, b = found
    assert same(a[0], b[0]) and torch.equal(a[1], b[1]) and a[2:] == b[2:]
    items = [(i[0][None], torch.as_tensor(i[1])[None]) for i in d.train.dataset.items[:44]]
    torch.testing.assert_close(cb.relation, relate(model(), source_head(), items))


def test_lr_find_does_not_count_for_co_tuning(tmp_path):
    cb = CoTuning(1., source_head())
    learn = learner(cb, path=tmp_path)
    learn.lr_find(num_it=8, show_plot=False)
    assert cb.relation is None and cb.aux is None
    learn.fit(1)
    relation, head = cb.relation, state(cb.aux)
    learn.lr_find(num_it=8, show_plot=False)
    assert torch.equal(cb.relation, relation) and same(head, state(cb.aux))
    learn.fit(1)
    assert torch.equal(cb.relation, relation) and not same(head, state(cb.aux))


def test_co_tuning_says_what_it_needs(tmp_path):
    for head in (None, 'resnet'):
        with pytest.raises(InputError, match='probe_head'): CoTuning(head=head)
    with pytest.raises(InputError, match='too late.*Pass relation='): learner(CoTuning(1., source_head())).fit(2, start_epoch=1)
    learner(CoTuning(1., source_head(), relation=torch.full((3, 5), .2))).fit(2, start_epoch=1)
    with pytest.raises(InputError, match='2 target classes, the data have 3'):
        dls = data()
        dls.train.dataset.c = 3  # as `Categorize` says
        learner(CoTuning(1., source_head(), relation=torch.full((2, 5), .2)), dls=dls).fit(1)
    with pytest.raises(InputError, match='same source classes'): learner(CoTuning(1., source_head(), relation=torch.full((3, 4), .25))).fit(1)
    with pytest.raises(InputError, match='rows sum to 1'): CoTuning(1., source_head(), relation=torch.ones(3, 5))
    with pytest.raises(InputError, match="'direct' or 'reverse'"): CoTuning(1., source_head(), how='x')
    p, y = torch.full((4, 2), .5), torch.tensor([0, 0, 1, 1])
    for args, word in [((p, y, 3), r'classes \[2\] have no clip'), ((p, y, 1), 'class number 1 is not'), ((3*p, y, 2), 'softmax'), ((p, y.float(), 2), 'a class number for each'),
                       ((p, y, 2, 'x'), "'direct' or 'reverse'")]:
        with pytest.raises(InputError, match=word): category_relation(*args)


# --- R3F --------------------------------------------------------------------------------------------------------------

def test_sym_kl_equals_scipy():
    a, b = torch.randn(7, 5), torch.randn(7, 5)
    p, q = a.double().softmax(1).numpy(), b.double().softmax(1).numpy()
    assert sym_kl(a, b).item() == pytest.approx((entropy(p, q, axis=1) + entropy(q, p, axis=1)).mean(), rel=1e-5)
    fairseq = sum(F.kl_div(u.log_softmax(1), v.softmax(1), reduction='sum') for u, v in ((a, b), (b, a)))/7
    torch.testing.assert_close(sym_kl(a, b), fairseq)
    assert sym_kl(a, a) == 0 and sym_kl(a.bfloat16(), b.bfloat16()).dtype == torch.float32
    near = a + 1e-4*b  # the sum of two divergences is rounding noise here, and may be negative
    exact = sym_kl64(a.double(), near.double())
    assert sym_kl(a, near).item() == pytest.approx(exact, rel=1e-2)


def sym_kl64(a, b):
    p, q = a.softmax(1), b.softmax(1)
    return ((p*(p/q).log()).sum(1) + (q*(q/p).log()).sum(1)).mean().item()


@pytest.mark.parametrize('noise', ['uniform', 'normal'])
def test_r3f_equals_a_hand_written_loop(noise):
    net, g = model(), torch.Generator()
    def term(net, x, y, f, pred):
        z = .1*(2*torch.rand(x.shape, generator=g) - 1) if noise == 'uniform' else .1*torch.randn(x.shape, generator=g)
        p, q = torch.func.functional_call(net, {n:b.clone() for n, b in net.named_buffers()}, x + z).softmax(1), pred.softmax(1)
        return ((p*(p/q).log()).sum(1) + (q*(q/p).log()).sum(1)).mean()
    learn = learner(R3F(3., eps=.1, noise=noise), net=copy.deepcopy(net))
    want = by_hand(net, term, 3., on_epoch=lambda e: g.manual_seed(1 + e))  # `learner` has seeded with 1
    learn.fit(2)
    close(learn.model, want, rtol=1e-4)
    assert learn.recorder.values[1][-1] > 1e-4


def test_r3f_noise_is_of_the_size_that_was_asked_for():
    cb, x = R3F(eps=.2), torch.zeros(40, 50)
    learner(cb).fit(1)
    z = cb.noisy(x)
    assert .19 < z.max() <= .2 and -.2 <= z.min() < -.19 and abs(z.mean()) < .01
    cb.noise = 'normal'
    assert cb.noisy(x).std().item() == pytest.approx(.2, rel=.05) and cb.noisy(torch.arange(3)).tolist() == [0, 1, 2]


def test_the_second_pass_is_not_seen_by_other_penalties():
    def run(cbs):
        learn = learner(cbs, lr=0.)
        learn.fit(1)
        return dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[0]))
    alone, counts = run([BSS(1.)]), []
    class Count(FeaturePenalty):
        order = 5.5  # behind the others
        def term(self):
            counts.append(len(self.calls()))
            return self.calls()[0][2].mean()
    both = run([R3F(1., eps=.1), CoTuning(1., source_head()), BSS(1.), Count(1.)])
    assert both['bss'] == alone['bss'] and set(counts) == {1} and both['r3f'] > 0


def test_noise_that_autocast_rounds_away_warns():
    with pytest.warns(UserWarning, match='rounded away'): learner([R3F(), CPUAutocast('bf16')]).fit(1)
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='R3F')
        learner([R3F(eps=.1), CPUAutocast('bf16')]).fit(1)


def test_r3f_says_what_it_needs():
    class Two(nn.Sequential):
        def forward(self, x): return super().forward(x), x
    learn = learner(R3F(), net=Two(*model()))
    learn.loss_func = lambda out, y: F.cross_entropy(out[0], y)
    with pytest.raises(InputError, match='returned tuple'): learn.fit(1)


# --- the contract of every one, as far as test_strategies does not hold them to it ----------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', PENALTIES)
def test_reported_losses_are_the_task_loss_and_buffers_stay(name):
    plain, penal = learner(lr=0.), learner(PENALTIES[name](1e4), lr=0.)
    for learn in (plain, penal): learn.fit(2)
    assert [v[:2] for v in plain.recorder.values] == [v[:2] for v in penal.recorder.values]
    assert same(state(plain.model), state(penal.model))
    assert penal.recorder.metric_names[-2] == name and penal.recorder.values[-1][-1] > 0


@pytest.mark.parametrize('name', PENALTIES)
def test_the_term_does_what_it_is_for(name):
    def last(lam):
        learn = learner(PENALTIES[name](lam))
        learn.fit(3)
        return learn.recorder.values[-1][-1]
    assert last(dict(bss=.02, co_tuning=3., r3f=10.)[name]) < last(0.)


@pytest.mark.parametrize('name', ['co_tuning', 'r3f'])
def test_accumulation_equals_one_big_batch(name):
    net = model()
    net[0].bn = nn.GroupNorm(2, 4)  # batch norm itself depends on the micro-batch
    def run(bs, cbs):
        learn = learner([PENALTIES[name](3.), *cbs], dls=data(bs=bs), net=copy.deepcopy(net))
        learn.fit(2)
        return learn.model
    close(run(24, []), run(8, [GradientAccumulation(24)]), rtol=1e-4)


@pytest.mark.parametrize('name', ALL)
def test_bf16_autocast_keeps_the_meaning(name):
    def run(cbs):
        learn = learner([ALL[name](.1), *cbs])
        torch.manual_seed(4)
        learn.fit(2)
        return learn.recorder.values[-1][-1 if name in PENALTIES else 0]
    assert run([CPUAutocast('bf16')]) == pytest.approx(run([]), rel=.15)


@pytest.mark.parametrize('name', ALL)
def test_validate_get_preds_and_lr_find_change_nothing(name, tmp_path):
    def run(disturb):
        learn = learner(ALL[name](.3), path=tmp_path)
        values = []
        if disturb:
            learn.lr_find(num_it=8, show_plot=False)
            assert len(learn.validate()) == 1 and not learn.metrics
            learn.get_preds()
        learn.create_opt()
        for n in (2, 1):
            torch.manual_seed(1), random.seed(1)
            learn.fit(n)
            values.append([v[:] for v in learn.recorder.values])
            assert len(values[-1][0]) == 2 + (name in PENALTIES)
            if disturb: assert len(learn.validate()) == 1 and learn.get_preds()[0].shape == (16, 3) and not learn.metrics
        assert not learn.model[0]._forward_hooks and type(learn.model[0].bn) is nn.BatchNorm2d
        return state(learn.model), values
    a, b = run(False), run(True)
    assert same(a[0], b[0]) and a[1] == b[1]


@pytest.mark.parametrize('name', ALL)
@pytest.mark.parametrize('error', [KeyboardInterrupt(), CancelFitException(), RuntimeError('x')])
def test_interrupts_leave_nothing_behind(name, error, tmp_path):
    learn = learner(ALL[name](.3), path=tmp_path)
    try: learn.fit(1, cbs=Stop(error))
    except (KeyboardInterrupt, RuntimeError): pass
    learn.export('x.pkl')  # nothing unpicklable is left either
    assert type(load_learner(tmp_path/'x.pkl').model[0].bn) is nn.BatchNorm2d
    learn.fit(1)
    assert not learn.model[0]._forward_hooks and len(learn.metrics) == 0
    assert learn.recorder.metric_names.count(name) == (name in PENALTIES)


@pytest.mark.parametrize('name', ALL)
def test_export_is_no_larger(name, tmp_path):
    plain, learn = learner(path=tmp_path), learner(ALL[name](.3), path=tmp_path)
    plain.fit(1), learn.fit(1)
    plain.export('plain.pkl'), learn.export('x.pkl')
    assert (tmp_path/'x.pkl').stat().st_size < (tmp_path/'plain.pkl').stat().st_size + 1500
    loaded = load_learner(tmp_path/'x.pkl')
    loaded.dls, loaded.logger = data(), lambda *a: None
    assert same(state(loaded.model), state(learn.model))
    if name == 'co_tuning':
        with pytest.raises(InputError, match='does not carry'): loaded.fit(1)
    else: loaded.fit(1)


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.top = model()

    def forward(self, x): return self.top(self.encoder(2*x))


@pytest.mark.parametrize('name', ALL)
def test_a_model_that_is_no_sequential(name):
    torch.manual_seed(0)
    cb = ALL[name](.3)
    learner(cb, net=Wrapped(), lr=0.).fit(1)
    if name == 'co_tuning':
        twice = [(2*x, y) for x, y in data().train]
        torch.manual_seed(0)
        torch.testing.assert_close(cb.relation, relate(nn.Sequential(Wrapped().encoder), source_head(), twice))


def test_all_together_with_a_teacher():
    def run(cbs):
        learn = learner(cbs)
        torch.manual_seed(2)
        learn.fit(2)
        return learn.model
    make = [lambda: SelfDistill(1.), *(lambda f=f: f(.1) for f in ALL.values())]
    close(run([f() for f in make]), run([f() for f in reversed(make)]), rtol=1e-4, atol=1e-5)


def test_nonsense_is_refused():
    for bad in (-1, float('nan')):
        for make in PENALTIES.values():
            with pytest.raises(ValueError, match='at least 0'): make(bad)
        with pytest.raises(InputError, match='between 0 and 1'): StochNorm(bad)
        with pytest.raises(InputError, match='between 0 and 1'): stoch_norm(Net(), bad)
        with pytest.raises(InputError, match='eps must be'): R3F(1., eps=bad)
    for k in (0, 1.5, -1):
        with pytest.raises(InputError, match='at least 1'): BSS(1., k=k)
    with pytest.raises(InputError, match="'uniform' or 'normal'"): R3F(1., noise='salt')
    with pytest.raises(InputError, match=r'not of shape \(3,\)'): bss(torch.ones(3))
