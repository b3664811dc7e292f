"Intervals, tests and trade-offs against scipy, closed forms and loops over the definition; and their coverage."
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog

from sdfast.errors import InputError
from sdfast.stats import (
    adjust,
    bca_interval,
    benjamini_hochberg,
    holm,
    hypervolume,
    judge,
    kept_at,
    matched_difference,
    matched_kept,
    mean_interval,
    p_value,
    paired_difference,
    paired_test,
    pareto_front,
    sign_flip,
)

settings.register_profile('sdfast', deadline=None)  # a busy machine is no error
settings.load_profile('sdfast')
pytestmark = pytest.mark.filterwarnings('error::RuntimeWarning')
nan = np.nan
share = st.floats(0, 1).map(lambda x: round(x, 3))
points = st.lists(st.tuples(share, share), max_size=5)
ps = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def xy(points): return np.array(points, float).reshape(-1, 2).T


def test_equals_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 7), rng.normal(0, 1, 7)
    want = stats.ttest_rel(a, b).confidence_interval(.95)
    got = paired_difference(a, b)
    assert (got.low, got.high) == pytest.approx((want.low, want.high)) and got.mean == pytest.approx((a - b).mean()) and got.n == 7


def test_verdicts_and_missing_values():
    assert paired_difference([2, 2.1, 1.9], [1, 1, 1]).verdict == 'higher' and paired_difference([1, 1, 1], [2, 2.1, 1.9]).verdict == 'lower'
    assert paired_difference([1, -1, 0], [0, 0, 0]).verdict == 'not distinguishable'
    one = paired_difference([1, nan], [0, 0])
    assert one.n == 1 and one.mean == 1 and np.isnan(one.low) and one.verdict == 'no interval'
    assert np.isnan(mean_interval([]).mean) and paired_difference([1, 2], [1, 2]).verdict == 'not distinguishable'
    assert paired_difference([.1 + .2]*3, [.3]*3).verdict == 'not distinguishable'  # 5e-17, without spread
    assert paired_difference([.5, .6], [.4, .5]).verdict == 'no interval'  # the same step twice is no certainty
    with pytest.raises(ValueError, match='pairs'): paired_difference([1, 2], [1])


def test_coverage_is_95_percent():
    rng = np.random.default_rng(0)
    hits = [(d := paired_difference(rng.normal(.3, 1, 6), rng.normal(0, 1, 6))).low <= .3 <= d.high for _ in range(4000)]
    assert abs(np.mean(hits) - .95) < .012  # 3.5 standard errors


def test_bca_by_efrons_formula():
    "Against the formula over all 4^4 resamples; the interval of a skewed sample leans to its tail"
    x, z = np.array([0, 1, 1.5, 6]), stats.norm
    boot = np.array([np.mean(r) for r in product(x, repeat=4)])
    z0 = z.ppf(((boot < x.mean()).mean() + (boot <= x.mean()).mean())/2)
    a = ((x - x.mean())**3).sum()/6/((x - x.mean())**2).sum()**1.5
    want = [np.quantile(boot, z.cdf(z0 + (z0 + q)/(1 - a*(z0 + q)))) for q in z.ppf([.05, .95])]
    got = bca_interval(x, .9)
    assert got == pytest.approx(want, abs=.15) and got[1] - x.mean() > x.mean() - got[0]


def test_bca_is_deterministic_and_has_no_interval_of_nothing():
    x = np.random.default_rng(0).normal(0, 1, 10).tolist()
    np.random.seed(0)
    before, first = np.random.get_state()[1].copy(), bca_interval(x)
    assert first == bca_interval([*x, nan]) and first != bca_interval(x, seed=1) and (np.random.get_state()[1] == before).all()
    assert bca_interval(x, .5)[0] > first[0] and bca_interval(x, .5)[1] < first[1]
    for none in ([], [.5], [.5, nan], [.5]*6, [.3, .1 + .2]): assert np.isnan(bca_interval(none)).all()


@pytest.mark.parametrize('n, bca, short', [(6, .86, .09), (30, .94, .015)])
def test_bca_coverage(n, bca, short):
    "The docstring's, and how much that is below the t interval's of the same values"
    x = np.random.default_rng(0).normal(0, 1, (1000, n))
    hits = np.mean([lo <= 0 <= hi for lo, hi in (bca_interval(v, resamples=999, seed=i) for i, v in enumerate(x))])
    t = np.mean([d.low <= 0 <= d.high for d in map(mean_interval, x)])
    assert abs(hits - bca) < .035 and abs(t - hits - short) < .025


@given(st.lists(st.tuples(share, share), min_size=2, max_size=8))
def test_paired_test_is_scipys_and_agrees_with_the_interval(pairs):
    a, b = xy(pairs)
    p, d = paired_test(a, b), paired_difference(a, b)
    assert np.isnan(p) == (d.verdict == 'no interval') and (p < .05) == (d.verdict in ('higher', 'lower'))
    if np.ptp(a - b) > 1e-6: assert p == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_paired_test_of_equal_and_missing():
    assert paired_test([.4, .5, .6], [.4, .5, .6]) == 1 and paired_test([.1 + .2]*3, [.3]*3) == 1
    assert np.isnan(paired_test([.5, .6], [.4, .5])) and np.isnan(paired_test([.5], [.4])) and np.isnan(paired_test([], []))
    assert paired_test([1, 2, 4, nan], [0, 0, 1, 5]) == pytest.approx(stats.ttest_rel([1, 2, 4], [0, 0, 1]).pvalue)
    with pytest.raises(ValueError, match='pairs'): paired_test([1, 2], [1])


@given(st.lists(st.tuples(share, share), min_size=2, max_size=8), st.floats(.5, .99))
def test_p_value_of_a_paired_difference_is_the_paired_tests(pairs, level):
    assert p_value(paired_difference(*xy(pairs), level), level) == pytest.approx(paired_test(*xy(pairs)), abs=1e-12, nan_ok=True)


@given(st.lists(st.integers(-5, 5), min_size=6, max_size=9))
def test_sign_flip_by_all_patterns(steps):
    "Whole numbers have exact ties; the same steps in float32 and in hundredths must keep them"
    want = np.mean([abs(sum(s*x for s, x in zip(signs, steps))) >= abs(sum(steps)) for signs in product([1, -1], repeat=len(steps))])
    assert sign_flip(steps) == pytest.approx(want)
    assert sign_flip([np.float32(.5 + x/100) - np.float32(.5) for x in steps]) == pytest.approx(want)
    assert sign_flip([.3 + x/1000 - .3 for x in steps]) == pytest.approx(want)


def test_sign_flip_by_hand():
    assert sign_flip([.1]*6) == 2/2**6 and sign_flip([.1]*5 + [0]) == 2/2**5 and sign_flip([-.1]*8) == 2/2**8
    assert sign_flip([0]*7) == 1 and sign_flip([.1 + .2 - .3]*8) == 1 and np.isnan(sign_flip([.1]*5)) and np.isnan(sign_flip([.1]*5 + [nan]))
    k = np.arange(21)  # 20 steps of equal size: the binomial's tails, here drawn
    assert sign_flip([1]*15 + [-1]*5) == pytest.approx(stats.binom.pmf(k[np.abs(2*k - 20) >= 10], 20, .5).sum(), abs=.003)
    assert sign_flip([1]*15 + [-1]*5) == sign_flip([1]*15 + [-1]*5)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    sign_flip([1]*20)
    assert (np.random.get_state()[1] == before).all()


def test_sign_flip_is_exact():
    "Given the sizes, at most a share q of the sign patterns has p <= q, and 12/256 has p <= .05 without ties; so has any symmetric null"
    rng = np.random.default_rng(0)
    for sizes in (rng.uniform(0, 1, 8), np.array([1, 1, 1, 1, 2, 2, 3, 0])):
        p = np.array([sign_flip(sizes*s) for s in product([1, -1], repeat=8)])
        assert all((p <= q).mean() <= q for q in [.05, *p])
        assert len(set(sizes)) < 8 or (p <= .05).mean() == 12/256
    p = np.array([sign_flip(d) for d in rng.standard_t(2, (2000, 8))*rng.uniform(.1, 3, (2000, 1))])
    assert abs((p <= .05).mean() - 12/256) < .0165  # 3.5 standard errors


@given(ps)
def test_holm_by_its_steps(p):
    "Rejects at alpha as the procedure does: from the smallest p on while p <= alpha/(number left)"
    got = holm(p)
    for alpha in (.01, .05, .2, .5):
        rejected, left = set(), len(p)
        for i in np.argsort(p):
            if p[i]*left > alpha: break
            rejected.add(i)
            left -= 1
        assert set(np.flatnonzero(got <= alpha)) == rejected
    assert (got >= p).all() and (got <= 1).all() and holm(p[::-1]) == pytest.approx(got[::-1])


@given(ps)
def test_benjamini_hochberg_by_its_definition(p):
    want = [min(1, min(q*len(p)/sum(r <= q for r in p) for q in p if q >= one)) for one in p]
    assert benjamini_hochberg(p) == pytest.approx(want)
    assert (benjamini_hochberg(p) <= holm(p) + 1e-12).all()


def test_adjust():
    p = [.01, nan, .04, .03, .02, .05]
    assert holm(p) == pytest.approx([.05, nan, .09, .09, .08, .09], nan_ok=True)  # R's p.adjust of the five
    assert benjamini_hochberg(p) == pytest.approx([.05, nan, .05, .05, .05, .05], nan_ok=True)
    for method, f in dict(holm=holm, bh=benjamini_hochberg, none=np.array).items(): assert np.array_equal(adjust(p, method), f(p), equal_nan=True)
    assert np.array_equal(adjust(p), holm(p), equal_nan=True) and np.isnan(adjust([nan, nan])).all() and len(holm([])) == len(adjust([], 'bh')) == 0
    q = np.array(p)
    adjust(q)[0] = adjust(q, 'none')[0] = 0
    assert q[0] == .01  # a copy
    with pytest.raises(InputError, match='holm, bh, none'): adjust(p, 'bonferoni')


def test_holm_keeps_the_family_wise_error():
    "8 true nulls: independent ones err in 1 - (1 - .05/8)^8 of families, t tests against one shared reference in fewer"
    rng = np.random.default_rng(0)
    alone = np.mean([holm(p).min() < .05 for p in rng.uniform(0, 1, (20000, 8))])
    assert abs(alone - (1 - (1 - .05/8)**8)) < .005  # 3.3 standard errors
    d = rng.normal(0, 1, (10000, 8, 6)) - rng.normal(0, 1, (10000, 1, 6))
    raw = stats.ttest_1samp(d, 0, axis=-1).pvalue
    assert np.mean([holm(p).min() < .05 for p in raw]) <= .05 < .15 < (raw.min(1) < .05).mean()


def test_judge():
    assert judge(.1, .04) == 'better' and judge(-.1, .04) == 'worse' and judge(.1, .04, False) == 'worse' and judge(-.1, .04, False) == 'better'
    assert judge(.1, .05) == judge(-.1, .3) == judge(.1, .04, level=.99) == judge(0., 1.) == judge(0., .01) == 'not distinguishable'
    assert judge(.1, .07, level=.9) == 'better'
    assert judge(.1, nan) == judge(nan, .01) == judge(nan, nan) == 'no interval'
    for a in ([2, 2.1, 1.9], [-2, -2.1, -1.9], [1, -1, 0], [1, 1, 1]):
        d = paired_difference(a, [0, 0, 0])
        assert judge(d.mean, paired_test(a, [0, 0, 0])) == dict(higher='better', lower='worse').get(d.verdict, d.verdict)


def beats(p, q): return p[0] >= q[0] and p[1] >= q[1] and p != q


@given(points)
def test_pareto_front_by_its_definition(points):
    assert pareto_front(*xy(points)).tolist() == [not any(beats(q, p) for q in points) for p in points]


def test_pareto_front_of_ties_and_missing():
    assert pareto_front([1, 1, 2, 2, 0], [2, 2, 1, 0, 2]).tolist() == [True, True, True, False, False]
    assert pareto_front([1, nan, 9], [1, 9, nan]).tolist() == [True, False, False] and len(pareto_front([], [])) == 0


@given(points, st.tuples(share, share))
def test_hypervolume_by_inclusion_and_exclusion(points, ref):
    def cell(group): return np.prod([max(0, min(p[i] for p in group) - ref[i]) for i in (0, 1)])
    want = sum((-1)**(k + 1)*sum(cell(g) for g in combinations(points, k)) for k in range(1, len(points) + 1))
    assert hypervolume(*xy(points), ref) == pytest.approx(want, abs=1e-9)


@given(st.lists(st.tuples(st.integers(-3, 6), st.integers(-3, 6)), max_size=12))
def test_hypervolume_counts_cells(points):
    assert hypervolume(*xy(points), ref=(-1, -2)) == sum(any(x > i and y > j for x, y in points) for i in range(-1, 6) for j in range(-2, 6))


@given(points, st.tuples(share, share), st.randoms(use_true_random=False))
def test_hypervolume_properties(points, new, random):
    area, front = hypervolume(*xy(points)), pareto_front(*xy(points))
    assert hypervolume(*xy([*points, new])) >= area - 1e-12 and hypervolume(*xy(random.sample(points, len(points)))) == pytest.approx(area)
    assert hypervolume(*xy(points)[:, front]) == pytest.approx(area)
    if any(beats(p, new) for p in points): assert hypervolume(*xy([*points, new])) == pytest.approx(area)
    assert hypervolume(*xy([*points, (nan, 2), (2, nan), (-1, 2)])) == pytest.approx(area)


@given(st.lists(st.tuples(share, share), min_size=1, max_size=5), share)
def test_kept_at_by_linear_programs(points, at):
    "On each segment p + s(q - p), the most kept subject to learned >= at and 0 <= s <= 1"
    found = []
    for (l0, k0), (l1, k1) in zip(points, [*points[1:], points[-1]]):
        r = linprog([k0 - k1], A_ub=[[l0 - l1]], b_ub=[l0 - at], bounds=[(0, 1)])
        if r.status == 0: found.append(k0 - r.fun)
    assert kept_at(*xy(points), at) == pytest.approx(max(found, default=nan), abs=1e-5, nan_ok=True)


def test_kept_at_by_hand():
    learned, kept = [.8, .7, .5], [.2, .4, .9]
    assert kept_at(learned, kept, .6) == pytest.approx(.65) and kept_at(learned, kept, .7) == .4 and kept_at(learned, kept, .5) == .9
    assert np.isnan(kept_at(learned, kept, .81)) and kept_at(learned, kept, .8) == .2
    assert np.isnan(kept_at([], [], .5)) and np.isnan(kept_at(learned, kept, nan))
    assert kept_at([.3, .2], [.5, .9], .1 + .2) == .5  # the same level, but for rounding
    assert kept_at([.8, .6, .8, .5], [.2, .9, .3, .1], .7) == pytest.approx(.6)  # passes .7 three times: at kept .55, .6 and .23
    for gap in (nan, .4), (.7, nan): assert kept_at([.8, gap[0], .5], [.2, gap[1], .9], .6) == .2  # no line over a setting that failed
    with pytest.raises(ValueError, match='pairs'): kept_at([1, 2], [1], 0)


def test_kept_at_of_noise_is_optimistic():
    noise, learned = np.random.default_rng(0).normal(0, 1, (4000, 5)), [5, 4, 3, 2, 1]
    best = np.mean([kept_at(learned, k, 0) for k in noise])
    assert best == pytest.approx(1.163, abs=.04)  # the expected largest of 5 normal values, though the path keeps 0 throughout


@pytest.fixture
def seeds():
    "Six seeds, learned and kept of settings that all learn more than .5; and a reference"
    rng = np.random.default_rng(0)
    return rng.uniform(.6, .8, (6, 4)), rng.uniform(.2, .4, (6, 4)), rng.uniform(.55, .6, 6)


def test_matched_of_one_setting_is_the_t_interval(seeds):
    learned, kept, other = seeds[0][:, :1], seeds[1][:, :1], seeds[1][:, 1:2]
    want, got = mean_interval(kept[:, 0]), matched_kept(learned, kept, .5)
    assert (got.mean, got.low, got.high, got.n) == pytest.approx((want.mean, want.low, want.high, 6))
    want, got = paired_difference(kept[:, 0], other[:, 0], .9), matched_difference(learned, kept, learned, other, .5, .9)
    assert (got.mean, got.low, got.high, got.n) == pytest.approx((want.mean, want.low, want.high, 6))


def test_matched_at_an_estimated_level_is_the_t_interval(seeds):
    "On lines kept = c - slope*learned the most kept is linear in the level, so its jackknife is Student's t of the reference's own values"
    learned, kept, ref = np.tile([.9, .6, .3], (6, 1)), np.tile([.1, .4, .7], (6, 1)), seeds[2]
    want, got = mean_interval(1 - ref), matched_kept(learned, kept, lambda i: ref[i].mean())
    assert (got.mean, got.low, got.high, got.n) == pytest.approx((want.mean, want.low, want.high, 6))
    want, got = mean_interval(1 - ref - (2 - 2*ref)), matched_difference(learned, kept, learned[:, ::2], 2*kept[:, ::2], lambda i: ref[i].mean())
    assert (got.mean, got.low, got.high, got.n) == pytest.approx((want.mean, want.low, want.high, 6))


def test_matched_by_the_jackknifes_standard_error(seeds):
    learned, kept, ref = seeds
    learned, kept, n = learned + np.array([.1, 0, -.1, -.2]), kept + np.array([0, .1, .2, .3]), 6
    def f(i): return kept_at(learned[i].mean(0), kept[i].mean(0), ref[i].mean()) - kept_at(learned[i, ::-1].mean(0) + .05, kept[i].mean(0), ref[i].mean())
    left = [f([j for j in range(n) if j != i]) for i in range(n)]
    half = stats.t.ppf(.975, n - 1)*np.sqrt((n - 1)/n*sum((x - np.mean(left))**2 for x in left))
    got = matched_difference(learned, kept, learned[:, ::-1] + .05, kept, lambda i: ref[i].mean())
    assert (got.mean, got.low, got.high, got.n) == pytest.approx((f(range(n)), f(range(n)) - half, f(range(n)) + half, n)) and half > 0


def test_matched_without_an_interval(seeds):
    learned, kept, ref = seeds
    learned = np.where(np.arange(6)[:, None] == 2, .99, learned)
    at = np.delete(learned, 2, 0).mean(0).max() + .01  # reached with seed 2 only
    got = matched_kept(learned, kept, at)
    assert not np.isnan(got.mean) and np.isnan([got.low, got.high]).all() and got.verdict == 'no interval'
    assert np.isnan(matched_kept(learned, kept, 1.).mean) and np.isnan(matched_difference(learned, kept, learned - .5, kept, .5).mean)
    one = matched_kept(learned[:1], kept[:1], .5)
    assert one.mean == kept_at(learned[0], kept[0], .5) and np.isnan(one.low) and one.n == 1
    same = matched_difference(learned, kept, learned, kept, .5)
    assert (same.mean, same.low, same.high, same.verdict) == (0, 0, 0, 'not distinguishable')
    assert matched_kept(np.tile([.8, .6], (3, 1)), np.tile([.3, .4], (3, 1)), .7).verdict == 'no interval'  # seeds without any spread
    with pytest.raises(ValueError, match='same seeds'): matched_difference(learned, kept, learned[:5], kept[:5], .5)
    with pytest.raises(ValueError, match='seeds, settings'): matched_kept(learned[0], kept[0], .5)
    with pytest.raises(ValueError, match='pairs'): matched_kept(learned, kept[:, :2], .5)


def test_matched_leaves_out_what_failed(seeds):
    "A setting that failed at one seed goes for all; a seed that failed at every setting goes, also of the other strategy and the level"
    learned, kept, ref = seeds[0], seeds[1] + np.array([.3, 0, 0, 0]), seeds[2]  # the setting kept the most
    some, whole = kept.copy(), kept.copy()
    some[3, 0], whole[1] = nan, nan
    assert matched_kept(learned, some, .5) == matched_kept(learned[:, 1:], kept[:, 1:], .5)
    rest, seen = [0, 2, 3, 4, 5], []
    got = matched_difference(learned, kept, learned - .1, whole, lambda i: seen.append(i.tolist()) or ref[i].mean() - .1)
    assert got == matched_difference(learned[rest], kept[rest], learned[rest] - .1, kept[rest], lambda i: ref[rest][i].mean() - .1) and got.n == 5
    assert seen == [rest] + [[s for s in rest if s != out] for out in rest]
    none = matched_kept(np.full((3, 2), nan), np.full((3, 2), nan), .5)
    assert none.n == 0 and np.isnan([none.mean, none.low, none.high]).all()


@pytest.mark.parametrize('sd', [.01, .03])
def test_matched_coverage(sd):
    "The docstring's .95 on a path that trades one for the other, for 6 seeds with shared and own noise; .90 is the least to accept"
    rng, t = np.random.default_rng(0), np.linspace(0, 1, 5)
    la, ka, lb, kb = .8 - .3*t**2, .5 + .4*t**.7, .8 - .3*t**2, .45 + .35*t**.7
    def noisy(x, seed): return x + seed[:, None] + rng.normal(0, sd, (6, 5))
    kept, diff = [], []
    for _ in range(1000):
        seed, ref = rng.normal(0, sd/2, 6), rng.normal(.7, sd, 6)
        a = noisy(la, seed), noisy(ka, seed)
        k, d = matched_kept(*a, .65), matched_difference(*a, noisy(lb, seed), noisy(kb, seed), lambda i: ref[i].mean())
        kept.append(k.low <= kept_at(la, ka, .65) <= k.high)
        diff.append(d.low <= kept_at(la, ka, .7) - kept_at(lb, kb, .7) <= d.high)
    assert .92 < np.mean(kept) < .975 and .92 < np.mean(diff) < .98


def test_matched_coverage_on_a_flat_path():
    "Noise picks the maximum: the docstring's .90"
    rng, learned, hits = np.random.default_rng(0), np.tile([.8, .775, .75, .725, .7], (6, 1)), []
    for _ in range(1000):
        d = matched_kept(learned + rng.normal(0, .03, (6, 5)), rng.normal(.6, .03, (6, 5)), .72)
        hits.append(d.low <= .6 <= d.high)
    assert .85 < np.mean(hits) < .94
