"Intervals, tests and trade-offs against scipy, closed forms and loops over the definition; and their coverage."
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linprog

from sdfast.errors import InputError
from sdfast.report.paths import hypervolume, kept_at, matched_difference, matched_kept, pareto_front
from sdfast.stats import (
    adjust,
    bca_interval,
    benjamini_hochberg,
    holm,
    judge,
    mean_interval,
    p_value,
    paired_difference,
    paired_test,
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
    assert (got.low, got.high) == pytest.approx((want.low, want.high))
    assert got.mean == pytest.approx((a - b).mean())
    assert got.n == 7


def test_verdicts():
    assert paired_difference([2, 2.1, 1.9], [1, 1, 1]).verdict == 'higher'
    assert paired_difference([1, 1, 1], [2, 2.1, 1.9]).verdict == 'lower'
    assert paired_difference([1, -1, 0], [0, 0, 0]).verdict == 'not distinguishable'
    with pytest.raises(ValueError, match='pairs'): paired_difference([1, 2], [1])


def test_verdicts_of_equal_and_missing_values():
    one = paired_difference([1, nan], [0, 0])
    assert (one.n, one.mean, one.verdict) == (1, 1, 'no interval')
    assert np.isnan(one.low)
    assert np.isnan(mean_interval([]).mean)
    assert paired_difference([1, 2], [1, 2]).verdict == 'not distinguishable'
    assert paired_difference([.1 + .2]*3, [.3]*3).verdict == 'not distinguishable'  # 5e-17, without spread
    assert paired_difference([.5, .6], [.4, .5]).verdict == 'no interval'  # the same step twice is no certainty


def test_coverage_is_95_percent():
    rng = np.random.default_rng(0)
    found = [paired_difference(rng.normal(.3, 1, 6), rng.normal(0, 1, 6)) for _ in range(4000)]
    hits = [d.low <= .3 <= d.high for d in found]
    assert abs(np.mean(hits) - .95) < .012  # 3.5 standard errors


def test_bca_by_efrons_formula():
    "Against the formula over all 4^4 resamples; the interval of a skewed sample leans to its tail"
    x, z = np.array([0, 1, 1.5, 6]), stats.norm
    boot = np.array([np.mean(r) for r in product(x, repeat=4)])
    z0 = z.ppf(((boot < x.mean()).mean() + (boot <= x.mean()).mean())/2)
    a = ((x - x.mean())**3).sum()/6/((x - x.mean())**2).sum()**1.5
    want = [np.quantile(boot, z.cdf(z0 + (z0 + q)/(1 - a*(z0 + q)))) for q in z.ppf([.05, .95])]
    got = bca_interval(x, .9)
    assert got == pytest.approx(want, abs=.15)
    assert got[1] - x.mean() > x.mean() - got[0]


def test_bca_is_deterministic():
    x = np.random.default_rng(0).normal(0, 1, 10).tolist()
    np.random.seed(0)
    before, first = np.random.get_state()[1].copy(), bca_interval(x)
    assert first == bca_interval([*x, nan])
    assert first != bca_interval(x, seed=1)
    assert (np.random.get_state()[1] == before).all()
    half = bca_interval(x, .5)
    assert first[0] < half[0] < half[1] < first[1]


@pytest.mark.parametrize('x', [[], [.5], [.5, nan], [.5]*6, [.3, .1 + .2]])
def test_bca_without_an_interval(x): assert np.isnan(bca_interval(x)).all()


@pytest.mark.parametrize('n, bca, short', [(6, .86, .09), (30, .94, .015)])
def test_bca_coverage(n, bca, short):
    "The docstring's, and how far it is below that of the t interval for the same values"
    x = np.random.default_rng(0).normal(0, 1, (1000, n))
    ends = [bca_interval(v, resamples=999, seed=i) for i, v in enumerate(x)]
    hits = np.mean([low <= 0 <= high for low, high in ends])
    t = np.mean([d.low <= 0 <= d.high for d in map(mean_interval, x)])
    assert abs(hits - bca) < .035
    assert abs(t - hits - short) < .025


@given(st.lists(st.tuples(share, share), min_size=2, max_size=8))
def test_paired_test_is_scipys_and_agrees_with_the_interval(pairs):
    a, b = xy(pairs)
    p, d = paired_test(a, b), paired_difference(a, b)
    assert np.isnan(p) == (d.verdict == 'no interval')
    assert (p < .05) == (d.verdict in ('higher', 'lower'))
    if np.ptp(a - b) > 1e-6: assert p == pytest.approx(stats.ttest_rel(a, b).pvalue)


def test_paired_test_of_equal_and_missing():
    assert paired_test([.4, .5, .6], [.4, .5, .6]) == 1
    assert paired_test([.1 + .2]*3, [.3]*3) == 1
    for a, b in (([.5, .6], [.4, .5]), ([.5], [.4]), ([], [])): assert np.isnan(paired_test(a, b))
    assert paired_test([1, 2, 4, nan], [0, 0, 1, 5]) == pytest.approx(stats.ttest_rel([1, 2, 4], [0, 0, 1]).pvalue)
    with pytest.raises(ValueError, match='pairs'): paired_test([1, 2], [1])


@given(st.lists(st.tuples(share, share), min_size=2, max_size=8), st.floats(.5, .99))
def test_p_value_of_a_paired_difference_is_the_paired_tests(pairs, level):
    p = p_value(paired_difference(*xy(pairs), level), level)
    assert p == pytest.approx(paired_test(*xy(pairs)), abs=1e-12, nan_ok=True)


@given(st.lists(st.integers(-5, 5), min_size=6, max_size=9))
def test_sign_flip_by_all_patterns(steps):
    "Whole numbers have exact ties; the same steps in float32 and in hundredths must keep them"
    sums = [sum(s*x for s, x in zip(signs, steps)) for signs in product([1, -1], repeat=len(steps))]
    want = np.mean([abs(total) >= abs(sum(steps)) for total in sums])
    assert sign_flip(steps) == pytest.approx(want)
    assert sign_flip([np.float32(.5 + x/100) - np.float32(.5) for x in steps]) == pytest.approx(want)
    assert sign_flip([.3 + x/1000 - .3 for x in steps]) == pytest.approx(want)


def test_sign_flip_by_hand():
    assert sign_flip([.1]*6) == 2/2**6
    assert sign_flip([.1]*5 + [0]) == 2/2**5
    assert sign_flip([-.1]*8) == 2/2**8
    assert sign_flip([0]*7) == 1
    assert sign_flip([.1 + .2 - .3]*8) == 1
    assert np.isnan(sign_flip([.1]*5))
    assert np.isnan(sign_flip([.1]*5 + [nan]))


def test_drawn_sign_flips_are_the_binomials_tails():
    steps, k = [1]*15 + [-1]*5, np.arange(21)
    tails = stats.binom.pmf(k[np.abs(2*k - 20) >= 10], 20, .5).sum()
    assert sign_flip(steps) == pytest.approx(tails, abs=.003)
    assert sign_flip(steps) == sign_flip(steps)
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    sign_flip([1]*20)
    assert (np.random.get_state()[1] == before).all()


def test_sign_flip_is_exact():
    """Given the sizes, at most a share q of the sign patterns has p <= q, and 12/256 has p <= .05 without ties.

    The same holds for any symmetric null."""
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
    assert (got >= p).all()
    assert (got <= 1).all()
    assert holm(p[::-1]) == pytest.approx(got[::-1])


@given(ps)
def test_benjamini_hochberg_by_its_definition(p):
    want = [min(1, min(q*len(p)/sum(r <= q for r in p) for q in p if q >= one)) for one in p]
    assert benjamini_hochberg(p) == pytest.approx(want)
    assert (benjamini_hochberg(p) <= holm(p) + 1e-12).all()


def test_adjust():
    p = [.01, nan, .04, .03, .02, .05]
    assert holm(p) == pytest.approx([.05, nan, .09, .09, .08, .09], nan_ok=True)  # R's p.adjust of the five
    assert benjamini_hochberg(p) == pytest.approx([.05, nan, .05, .05, .05, .05], nan_ok=True)
    for method, f in dict(holm=holm, bh=benjamini_hochberg, none=np.array).items():
        assert np.array_equal(adjust(p, method), f(p), equal_nan=True)
    assert np.array_equal(adjust(p), holm(p), equal_nan=True)
    assert np.isnan(adjust([nan, nan])).all()
    assert len(holm([])) == 0
    assert len(adjust([], 'bh')) == 0
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
    assert [judge(.1, .04), judge(-.1, .04)] == ['better', 'worse']
    assert [judge(.1, .04, False), judge(-.1, .04, False)] == ['worse', 'better']
    assert {judge(.1, .05), judge(-.1, .3), judge(0., 1.), judge(0., .01)} == {'not distinguishable'}
    assert judge(.1, .04, level=.99) == 'not distinguishable'
    assert judge(.1, .07, level=.9) == 'better'
    assert {judge(.1, nan), judge(nan, .01), judge(nan, nan)} == {'no interval'}


def test_judge_agrees_with_the_interval():
    for a in ([2, 2.1, 1.9], [-2, -2.1, -1.9], [1, -1, 0], [1, 1, 1]):
        d = paired_difference(a, [0, 0, 0])
        expected = dict(higher="better", lower="worse").get(d.verdict, d.verdict)
        assert judge(d.mean, paired_test(a, [0, 0, 0])) == expected


def beats(p, q): return p[0] >= q[0] and p[1] >= q[1] and p != q


@given(points)
def test_pareto_front_by_its_definition(points):
    assert pareto_front(*xy(points)).tolist() == [not any(beats(q, p) for q in points) for p in points]


def test_pareto_front_of_ties_and_missing():
    assert pareto_front([1, 1, 2, 2, 0], [2, 2, 1, 0, 2]).tolist() == [True, True, True, False, False]
    assert pareto_front([1, nan, 9], [1, 9, nan]).tolist() == [True, False, False]
    assert len(pareto_front([], [])) == 0


@given(points, st.tuples(share, share))
def test_hypervolume_by_inclusion_and_exclusion(points, ref):
    def cell(group): return np.prod([max(0, min(p[i] for p in group) - ref[i]) for i in (0, 1)])
    def cells(k): return sum(cell(group) for group in combinations(points, k))
    want = sum((-1)**(k + 1)*cells(k) for k in range(1, len(points) + 1))
    assert hypervolume(*xy(points), ref) == pytest.approx(want, abs=1e-9)


@given(st.lists(st.tuples(st.integers(-3, 6), st.integers(-3, 6)), max_size=12))
def test_hypervolume_counts_cells(points):
    cells = product(range(-1, 6), range(-2, 6))
    covered = [any(x > i and y > j for x, y in points) for i, j in cells]
    assert hypervolume(*xy(points), ref=(-1, -2)) == sum(covered)


@given(points, st.tuples(share, share), st.randoms(use_true_random=False))
def test_hypervolume_properties(points, new, random):
    area, front = hypervolume(*xy(points)), pareto_front(*xy(points))
    shuffled = random.sample(points, len(points))
    assert hypervolume(*xy([*points, new])) >= area - 1e-12
    assert hypervolume(*xy(shuffled)) == pytest.approx(area)
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
    assert kept_at(learned, kept, .6) == pytest.approx(.65)
    assert [kept_at(learned, kept, at) for at in (.8, .7, .5)] == [.2, .4, .9]
    for at in (.81, nan): assert np.isnan(kept_at(learned, kept, at))
    assert np.isnan(kept_at([], [], .5))
    assert kept_at([.3, .2], [.5, .9], .1 + .2) == .5  # the same level, but for rounding
    assert kept_at([.8, .6, .8, .5], [.2, .9, .3, .1], .7) == pytest.approx(.6)  # crosses .7 at kept .55, .6 and .23
    for x, y in ((nan, .4), (.7, nan)):  # no line over a failed setting
        assert kept_at([.8, x, .5], [.2, y, .9], .6) == .2
    with pytest.raises(ValueError, match='pairs'): kept_at([1, 2], [1], 0)


def test_kept_at_of_noise_is_optimistic():
    noise, learned = np.random.default_rng(0).normal(0, 1, (4000, 5)), [5, 4, 3, 2, 1]
    best = np.mean([kept_at(learned, k, 0) for k in noise])
    assert best == pytest.approx(1.163, abs=.04)  # the expected maximum of 5 normal values; the path keeps 0


@pytest.fixture
def seeds():
    "Six seeds, learned and kept of settings that all learn more than .5; and a reference"
    rng = np.random.default_rng(0)
    return rng.uniform(.6, .8, (6, 4)), rng.uniform(.2, .4, (6, 4)), rng.uniform(.55, .6, 6)


def same(got, want):
    return (got.mean, got.low, got.high, got.n) == pytest.approx((want.mean, want.low, want.high, want.n))


def test_matched_of_one_setting_is_the_t_interval(seeds):
    learned, kept, other = seeds[0][:, :1], seeds[1][:, :1], seeds[1][:, 1:2]
    assert same(matched_kept(learned, kept, .5), mean_interval(kept[:, 0]))
    got = matched_difference(learned, kept, learned, other, .5, .9)
    assert same(got, paired_difference(kept[:, 0], other[:, 0], .9))


def test_matched_at_an_estimated_level_is_the_t_interval(seeds):
    """On lines kept = c - slope*learned the most kept is linear in the level.

    Its jackknife is then Student's t of the reference's values."""
    learned, kept, ref = np.tile([.9, .6, .3], (6, 1)), np.tile([.1, .4, .7], (6, 1)), seeds[2]
    def level(i): return ref[i].mean()
    assert same(matched_kept(learned, kept, level), mean_interval(1 - ref))
    got = matched_difference(learned, kept, learned[:, ::2], 2*kept[:, ::2], level)
    assert same(got, mean_interval(1 - ref - (2 - 2*ref)))


def test_matched_by_the_jackknifes_standard_error(seeds):
    learned, kept, ref = seeds
    learned, kept, n = learned + np.array([.1, 0, -.1, -.2]), kept + np.array([0, .1, .2, .3]), 6
    def f(i):
        ours, level = kept[i].mean(0), ref[i].mean()
        return kept_at(learned[i].mean(0), ours, level) - kept_at(learned[i, ::-1].mean(0) + .05, ours, level)
    left = [f([j for j in range(n) if j != i]) for i in range(n)]
    half = stats.t.ppf(.975, n - 1)*np.sqrt((n - 1)/n*sum((x - np.mean(left))**2 for x in left))
    got = matched_difference(learned, kept, learned[:, ::-1] + .05, kept, lambda i: ref[i].mean())
    full = f(range(n))
    assert (got.mean, got.low, got.high, got.n) == pytest.approx((full, full - half, full + half, n))
    assert half > 0


def test_matched_without_an_interval(seeds):
    learned, kept, ref = seeds
    learned = np.where(np.arange(6)[:, None] == 2, .99, learned)
    at = np.delete(learned, 2, 0).mean(0).max() + .01  # reached with seed 2 only
    got = matched_kept(learned, kept, at)
    assert not np.isnan(got.mean)
    assert np.isnan([got.low, got.high]).all()
    assert got.verdict == 'no interval'
    assert np.isnan(matched_kept(learned, kept, 1.).mean)
    assert np.isnan(matched_difference(learned, kept, learned - .5, kept, .5).mean)


def test_matched_of_one_seed(seeds):
    learned, kept, _ = seeds
    one = matched_kept(learned[:1], kept[:1], .5)
    assert one.mean == kept_at(learned[0], kept[0], .5)
    assert np.isnan(one.low)
    assert one.n == 1


def test_matched_of_equal_values(seeds):
    learned, kept, _ = seeds
    d = matched_difference(learned, kept, learned, kept, .5)
    assert (d.mean, d.low, d.high, d.verdict) == (0, 0, 0, 'not distinguishable')
    no_spread = np.tile([.8, .6], (3, 1)), np.tile([.3, .4], (3, 1))
    assert matched_kept(*no_spread, .7).verdict == 'no interval'


def test_matched_needs_the_same_seeds(seeds):
    learned, kept, _ = seeds
    with pytest.raises(ValueError, match='same seeds'): matched_difference(learned, kept, learned[:5], kept[:5], .5)
    with pytest.raises(ValueError, match='seeds, settings'): matched_kept(learned[0], kept[0], .5)
    with pytest.raises(ValueError, match='pairs'): matched_kept(learned, kept[:, :2], .5)


def test_matched_leaves_out_what_failed(seeds):
    "A setting that failed at one seed; a seed that failed at every setting, for both strategies and the level"
    learned, kept, ref = seeds[0], seeds[1] + np.array([.3, 0, 0, 0]), seeds[2]  # the setting kept the most
    some, whole = kept.copy(), kept.copy()
    some[3, 0], whole[1] = nan, nan
    assert matched_kept(learned, some, .5) == matched_kept(learned[:, 1:], kept[:, 1:], .5)
    rest, seen = [0, 2, 3, 4, 5], []
    def level(i):
        seen.append(i.tolist())
        return ref[i].mean() - .1
    got = matched_difference(learned, kept, learned - .1, whole, level)
    few, few_kept, few_ref = learned[rest], kept[rest], ref[rest]
    assert got == matched_difference(few, few_kept, few - .1, few_kept, lambda i: few_ref[i].mean() - .1)
    assert got.n == 5
    assert seen == [rest] + [[s for s in rest if s != out] for out in rest]
    none = matched_kept(np.full((3, 2), nan), np.full((3, 2), nan), .5)
    assert none.n == 0
    assert np.isnan([none.mean, none.low, none.high]).all()


@pytest.mark.parametrize('sd', [.01, .03])
def test_matched_coverage(sd):
    "The docstring's .95 on a path that trades learning for keeping, for 6 seeds with shared and separate noise"
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
    assert .92 < np.mean(kept) < .975
    assert .92 < np.mean(diff) < .98


def test_matched_coverage_on_a_flat_path():
    "Noise picks the maximum: the docstring's .90"
    rng, learned, hits = np.random.default_rng(0), np.tile([.8, .775, .75, .725, .7], (6, 1)), []
    for _ in range(1000):
        d = matched_kept(learned + rng.normal(0, .03, (6, 5)), rng.normal(.6, .03, (6, 5)), .72)
        hits.append(d.low <= .6 <= d.high)
    assert .85 < np.mean(hits) < .94
