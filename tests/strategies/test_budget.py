"A budget of forgetting: λ by dual ascent, against a controller by hand and models whose answer is known."
import copy
import math
from functools import partial

import pytest
import torch
from helpers import Source, learner, make, model, same, state
from strategy_helpers import PENALTIES, moved
from torch import nn
from trainers import SIZES, plainly

from sdfast.errors import InputError
from sdfast.models.merging import depth_shares, interpolate, lines_shares
from sdfast.strategies import (
    L2SP,
    LPFT,
    PSKD,
    STRATEGIES,
    Budget,
    FeaturePenalty,
    FixedTeacher,
    LayerDecay,
    LiNeS,
    LowerLR,
    SelfDistill,
    StochNorm,
    WiSEFT,
)

pytestmark = pytest.mark.filterwarnings('ignore:.*cannot hold its floor')
AFTER = 'wise_ft', 'wise_ft_depth', 'lines'  # their strength is found after the fit
ADAPTIVE = [n for n, s in STRATEGIES.items() if s.lams and n != 'lp_ft']


def lam_of(cb): return cb.kept_history[-1]['lam']


# ---- the controller

def by_hand(shares, lam, retain, rate, early, total, lowest, highest):
    "λ before each measurement, in plain arithmetic"
    log, out = math.log(lam), []
    for step, share in enumerate(shares, 1):
        out.append(math.exp(log))
        aim = 1 - (1 - retain)*(early + (1 - early)*step/total)
        error = (aim - share)/(1 - retain)
        log += rate*(3 if error > 3 else -1 if error < -1 else error)
        log = min(math.log(highest), max(math.log(lowest), log))
    return out


def test_lam_is_that_of_a_controller_by_hand():
    shares = [1., .99, .97, .9, .75, .96, .955, .99, 1., .94, .93, .95]  # 2 epochs of 6 steps
    given = iter(shares)
    cb = SelfDistill(2., retain=Budget(.95, lambda encoder: next(given), every=1, rate=.4, early=.25, highest=7.))
    learner(cb).fit(2)
    assert [h['kept'] for h in cb.kept_history] == shares
    want = by_hand(shares, 2., .95, .4, .25, 12, .002, 7.)
    assert [h['lam'] for h in cb.kept_history] == pytest.approx(want, rel=1e-9)
    assert max(h['lam'] for h in cb.kept_history) == 7.
    assert [h['aim'] for h in cb.kept_history][-1] == .95


@pytest.mark.parametrize('start', [.1, 60.])
def test_it_finds_the_strength_of_a_model_with_a_closed_form(start):
    "A weight w with loss (w - 1)^2/2 + lam/2 w^2 is 1/(1 + lam); of what is measured, 1 - w^2, .96 is left at lam 4"
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Identity())
    nn.init.zeros_(net[0].weight)
    budget = Budget(.96, lambda encoder: 1 - encoder.weight.item()**2, every=10, rate=.3, early=1., highest=100.)
    cb, opt, x = L2SP(start, retain=budget), torch.optim.SGD(net.parameters(), lr=.02), torch.ones(1, 1)
    cb.attach(net, opt, epochs=10)
    for _ in range(10):
        cb.start_epoch()
        for _ in range(60):
            loss = (net(x) - 1).square().sum()/2 + cb.loss()
            loss.backward()
            opt.step()
            cb.after_step()
            opt.zero_grad()
    cb.detach()
    assert cb.lam == pytest.approx(4., rel=.02)
    assert cb.kept_history[-1]['kept'] == pytest.approx(.96, abs=1e-3)


@pytest.mark.parametrize('cls', [SelfDistill, FixedTeacher, LowerLR])
def test_at_rate_0_training_is_that_with_a_fixed_strength(cls):
    def fit(cb):
        learn = learner(cb, net=model(dropout=.3))
        learn.fit(2)
        return state(learn.model), torch.get_rng_state()
    weights, random_state = fit(cls(3.))
    found, after = fit(cls(3., retain=Budget(.9, moved(model()), every=1, rate=0)))
    assert same(weights, found)
    assert torch.equal(random_state, after)


def test_a_measure_may_draw_numbers_and_change_its_encoder():
    def meddle(encoder):
        torch.rand(3)
        for p in encoder.parameters(): p.zero_()
        return 1.
    def fit(**kwargs):
        learn = learner(SelfDistill(3., **kwargs), net=model(dropout=.3))
        learn.fit(2)
        return state(learn.model)
    assert same(fit(), fit(retain=Budget(.9, meddle, every=2, rate=0)))


def test_a_higher_floor_keeps_more():
    def fit(retain):
        net = model()
        cb = FixedTeacher(retain=Budget(retain, moved(net), every=1, highest=100.))
        learner(cb, net=net, lr=.01).fit(4)
        return cb
    low, high = fit(.9), fit(.97)
    assert high.kept_history[-1]['kept'] > low.kept_history[-1]['kept']
    assert lam_of(high) > lam_of(low)
    assert high.kept_history[-1]['kept'] >= .96


# ---- every strategy

@pytest.mark.parametrize('name', ADAPTIVE)
def test_every_strategy_with_a_strength_takes_a_budget(name):
    net = model()
    source = Source(net)
    budget = Budget(.5, lambda encoder: .99, every=2)  # far above the floor: the strength falls
    cb, = STRATEGIES[name].callbacks(SIZES.get(name, .3), source, retain=budget)
    learn = learner(cb, net=net)
    first = cb.strength()
    learn.fit(2)
    assert cb.kept_history
    assert cb.strength() < first
    assert 'retain=Budget(' in repr(cb)
    if name not in AFTER:
        names = list(learn.recorder.metric_names)
        row = dict(zip(names[1:], learn.recorder.values[-1]))
        assert row[f'{cb.name}_lam'] == pytest.approx(cb.kept_history[-1]['lam'])
        assert row[f'{cb.name}_kept'] == .99
    assert not learn.metrics


@pytest.mark.parametrize('name', [n for n in ADAPTIVE if n not in AFTER])
def test_a_budget_in_a_loop_of_ones_own_is_that_in_fastai(name):
    net = model()
    def strategy(net):
        budget = Budget(.9, moved(net), every=2)
        with torch.random.fork_rng(): return STRATEGIES[name].callbacks(SIZES.get(name, .3), Source(net), retain=budget)
    cb, = strategy(net)
    start = copy.deepcopy(net)
    learn = learner(cb, net=net)
    learn.fit(2)
    other, = strategy(start)
    plainly(start, [other])
    assert [h['step'] for h in other.kept_history] == [h['step'] for h in cb.kept_history]
    for h, g in zip(other.kept_history, cb.kept_history): assert h == pytest.approx(g, rel=.02)
    assert set(other.columns()) >= {f'{other.name}_lam', f'{other.name}_kept'}


def test_stochastic_normalisation_uses_the_new_probability_at_once():
    cb = StochNorm(.8, retain=Budget(.9, lambda encoder: 1., every=1, rate=math.log(2)))
    net, seen = model(), []
    net[0].bn.register_forward_pre_hook(lambda m, x: seen.append(getattr(type(m), 'p', None)))
    learner(cb, net=net).fit(1)
    steps = [p for p in seen if p][:3]
    assert steps == pytest.approx([.8, .8*2**-(.5 + .5/6), .8*2**-(.5 + .5/6)*2**-(.5 + .5*2/6)])


def test_strengths_with_a_largest_value_stay_there():
    for cb in (PSKD(.8, retain=Budget(.9, lambda e: 0.)), StochNorm(.5, retain=Budget(.9, lambda e: 0.))):
        learner(cb).fit(3)
        assert cb.strength() == 1.


def test_layers_decay_by_the_strength():
    cb = LayerDecay(.5, retain=Budget(.9, lambda e: 0., every=1, rate=.1))
    learner(cb).fit(1)
    assert cb.decay == pytest.approx(1/(1 + 4.), rel=1e-6)  # four times the first strength, 1


def test_lines_says_if_its_last_layer_breaks_the_floor():
    cb = LiNeS(retain=Budget(.9, lambda e: .8))
    with pytest.warns(UserWarning, match='80.0 % of what the encoder knew is left with alpha 0, less than 90.0 %'):
        learner(cb).fit(1)
    assert cb.alpha == 0


@pytest.mark.parametrize('kind, shares, floor', [
    (partial(WiSEFT, by_depth=True), depth_shares, .95), (LiNeS, lines_shares, .698)])
def test_averages_by_depth_take_the_largest_alpha_that_holds_the_floor(kind, shares, floor):
    net, plain = model(), learner()
    kept, start = moved(net), copy.deepcopy(net[0])
    cb = kind(retain=Budget(floor, kept))
    learner(cb, net=net).fit(3), plain.fit(3)
    assert 0 < cb.alpha < 1
    assert kept(net[0]) >= floor
    more = plain.model[0]
    more.load_state_dict(interpolate(more, start, shares(more, cb.alpha + 1/64)))
    assert kept(more) < floor


def test_wise_ft_takes_the_largest_alpha_that_holds_the_floor():
    net = model()
    kept = moved(net)
    cb = WiSEFT(retain=Budget(.95, kept))
    start, learn = copy.deepcopy(net[0]), learner(cb, net=net)
    learn.fit(3)
    assert 0 < cb.alpha < 1
    assert kept(learn.model[0]) >= .95
    far = (1 - kept(learn.model[0]))/cb.alpha  # distance is proportional to alpha
    assert 1 - far*(cb.alpha + 1/64) < .95
    assert any(not torch.equal(p, q) for p, q in zip(start.parameters(), learn.model[0].parameters()))


def test_a_penalty_of_ones_own_takes_a_budget_too():
    class Small(FeaturePenalty):
        def __init__(self, lam, power=2, encoder=None):
            super().__init__(lam, encoder)
            self.power = power
        def term(self): return sum(f.abs().pow(self.power).mean() for f in self.features())
    cb = Small(power=3, retain=Budget(.9, lambda e: 1., every=1))
    learner(cb).fit(1)
    assert cb.power == 3
    assert cb.lam < 1.


# ---- what it says

def test_a_floor_that_cannot_be_held_is_said_once():
    with pytest.warns(UserWarning) as caught: learner(SelfDistill(retain=Budget(.9, lambda e: .7, every=1))).fit(4)
    said = [str(w.message) for w in caught if 'cannot hold' in str(w.message)]
    assert len(said) == 1
    assert 'SelfDistill cannot hold its floor: 70.0 % of what the encoder knew is left at step' in said[0]


def test_a_collapse_is_said_and_lam_goes_back():
    shares = iter([.95, .85, .85, .2, .2, .3, *[.3]*20])
    cb = SelfDistill(1., retain=Budget(.9, lambda e: next(shares), every=1, highest=50.))
    with pytest.warns(UserWarning, match='collapses with lam') as caught: learner(cb).fit(2)
    lams = [h['lam'] for h in cb.kept_history]
    assert len([w for w in caught if 'collapses' in str(w.message)]) == 1
    assert max(lams) == lams[3] > 2*lams[1]
    assert set(lams[4:]) == {lams[2]}  # the last with which the floor was nearly held


BAD = [
    (lambda: SelfDistill(retain=1.), 'retain must be a share above 0 and below 1'),
    (lambda: SelfDistill(retain=98), 'not 98'),
    (lambda: SelfDistill(retain='.98'), "not '.98'"),
    (lambda: SelfDistill(retain=True), 'not True'),
    (lambda: SelfDistill(0., retain=.9), 'start with one above 0, not 0'),
    (lambda: Budget(.9, 3), 'kept must be a function of the encoder'),
    (lambda: Budget(.9, every=0), 'every of a Budget must be a whole number of at least 1, not 0'),
    (lambda: Budget(.9, patience=1.5), 'patience of a Budget must be a whole number'),
    (lambda: Budget(.9, rate=-1), 'rate of a Budget must be a number of at least 0'),
    (lambda: Budget(.9, early=1.5), 'early of a Budget must be a share from 0 to 1, not 1.5'),
    (lambda: Budget(.9, lowest=0.), 'lowest of a Budget is a λ above 0'),
    (lambda: Budget(.9, lowest=2., highest=1.), 'lowest of a Budget, 2, is above highest, 1'),
]


@pytest.mark.parametrize('make_it,why', BAD)
def test_wrong_values_are_refused_in_one_line(make_it, why):
    with pytest.raises(InputError) as e: make_it()
    assert why in str(e.value)
    assert '\n' not in str(e.value)


def test_strategies_that_cannot_adapt_take_no_budget():
    with pytest.raises(TypeError, match='retain'): LPFT(1, retain=.9)


def test_a_measure_that_is_not_a_number_stops_training():
    with pytest.raises(FloatingPointError, match='measured as nan'):
        learner(SelfDistill(retain=Budget(.9, lambda e: math.nan, every=1))).fit(1)


def test_the_first_strength_of_each_penalty_is_one_of_the_registrys_strong_ones():
    for name in PENALTIES:
        cb, = make(name, STRATEGIES[name].lams[-1], model())
        if name in ('ldifs', 'co_tuning'): continue  # the same class as another, and a default of its own
        assert STRATEGIES[name].lams[0] <= type(cb).first_lam <= 1.3*STRATEGIES[name].lams[-1] or name == 'r3f', name
