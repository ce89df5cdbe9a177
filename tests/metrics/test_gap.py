"""The share of a gap: ratios of means, and intervals against exact distributions."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest

from monai_ssl.metrics import gap_closed

pairs = partial(zip, strict=True)


def arms(gains, gaps, floor=0.25):
    """Arm, floor and ceiling of repetitions with these differences to the floor; values are binary fractions."""
    floors = [{f"r{r}c{c}": floor for c in range(len(row))} for r, row in enumerate(gaps)]
    above = [
        [{name: floor + value for name, value in pairs(names, row)} for names, row in pairs(floors, rows)]
        for rows in (gains, gaps)
    ]
    return above[0], floors, above[1]


def test_share_is_a_ratio_of_means_over_repetitions_of_means_over_cases():
    # the second repetition has more cases, and no more weight
    found = gap_closed(*arms([[0.0, 0.25], [0.5] * 4], [[0.5, 0.5], [0.25] * 4]))
    assert (found.n_repetitions, found.n_cases) == (2, 6)
    assert found.gain == (0.125 + 0.5) / 2
    assert found.gap == (0.5 + 0.25) / 2
    assert found.share == pytest.approx(0.3125 / 0.375)  # the mean of ratios would be 1.125
    assert gap_closed(*arms([[0.5, 0.25]], [[0.5, 0.25]])).share == 1


def test_one_repetition_by_hand():
    """Two cases: the resampled gain is 0, 1/8 or 1/4 with probability 1/4, 1/2, 1/4."""
    values = arms([[0.0, 0.25]], [[0.5, 0.5]])
    found = gap_closed(*values)
    assert (found.share, found.share_low, found.share_high) == (0.25, 0.0, 0.5)
    assert (found.gain_low, found.gain_high, found.gap_low, found.gap_high) == (0.0, 0.25, 0.5, 0.5)
    half = gap_closed(*values, confidence=0.4)  # from the 30th to the 70th percentile
    assert (half.share_low, half.share_high) == (0.25, 0.25)


def test_repetitions_are_drawn_too():
    """Within repetitions all cases agree: three equal draws, of probability 1/27 > 2.5 %, are the bounds."""
    found = gap_closed(*arms([[0.0] * 16, [0.25] * 16, [0.5] * 16], [[0.5] * 16] * 3))
    assert (found.share, found.share_low, found.share_high) == (0.5, 0.0, 1.0)
    narrow = gap_closed(*arms([[0.0] * 16, [0.25] * 16, [0.5] * 16], [[0.5] * 16] * 3), confidence=0.9)
    assert (narrow.share_low, narrow.share_high) == pytest.approx((1 / 6, 5 / 6))  # 5 % > 1/27, and 4/27 is more


def test_quantiles_are_those_of_the_exact_distribution():
    gains, gaps = np.array([[-0.1, 0.3], [0.2, 0.05]]), np.array([[0.3, 0.5], [0.45, 0.2]])
    exact = []
    for drawn in product((0, 1), repeat=2):  # repetitions, then the cases of each
        for first, second in product(product((0, 1), repeat=2), repeat=2):
            picked = [(drawn[0], first), (drawn[1], second)]
            means = [np.mean([x[r, list(c)].mean() for r, c in picked]) for x in (gains, gaps)]
            exact.append(means[0] / means[1])
    exact = np.sort(exact)
    assert len(exact) == 64
    for confidence in (0.5, 0.8, 0.9):
        found = gap_closed(*arms(gains, gaps, floor=0.4), confidence=confidence, n_resamples=50_000)
        for bound, edge in ((found.share_low, (1 - confidence) / 2), (found.share_high, (1 + confidence) / 2)):
            near = exact[int(64 * (edge - 0.01)) : int(64 * (edge + 0.01)) + 1]  # either side, at a jump
            assert near[0] - 1e-9 <= bound <= near[-1] + 1e-9


def test_width_is_that_of_the_two_levels():
    """With many repetitions and cases, the interval is mean ± 1.96 sd, and the variance that of both levels."""
    generator = np.random.default_rng(3)
    repetitions, cases = 40, 30
    gains = generator.normal(0, 0.05, (repetitions, 1)) + generator.normal(0, 0.2, (repetitions, cases))
    found = gap_closed(*arms(gains, np.full_like(gains, 0.5)))
    variance = (gains.mean(1).var() + gains.var(1).mean() / cases) / repetitions
    assert found.gain_high - found.gain_low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.03)
    assert found.share_low == pytest.approx(2 * found.gain_low)


def test_arms_are_paired():
    """What all arms share, hard cases and hard folds, is no uncertainty of the share."""
    level = np.random.default_rng(0).uniform(0.2, 0.6, (3, 16)).tolist()
    arm, floor, ceiling = (
        [{f"{r}{c}": value + more for c, value in enumerate(row)} for r, row in enumerate(level)]
        for more in (0.05, 0.0, 0.1)
    )
    found = gap_closed([dict(reversed(row.items())) for row in arm], floor, ceiling)  # by name, not by position
    assert found.share_low == pytest.approx(0.5)
    assert found.share_high == pytest.approx(0.5)


def test_no_gap_has_no_share():
    for gaps in ([[0.0, 0.0]], [[0.25, -0.25]], [[-0.5, 0.25]]):
        found = gap_closed(*arms([[0.25, 0.25]], gaps))
        assert (found.share, found.share_low, found.share_high) == (None, None, None)
        assert (found.gain, found.gain_low) == (0.25, 0.25)
        assert found.without_gap > 0.2
    noise = gap_closed([{"a": 0.5, "b": 0.5}], [{"a": 0.1 + 0.2, "b": 0.5}], [{"a": 0.3, "b": 0.5}])
    assert noise.gap == 0


def test_resamples_without_a_gap_widen_the_interval():
    # one of four cases has the whole gap: drawn never with probability 0.75^4 = 0.32
    unsure = gap_closed(*arms([[0.0, 0.0, 0.0, 0.25]], [[0.0, 0.0, 0.0, 0.5]]))
    assert unsure.share == 0.5
    assert unsure.without_gap == pytest.approx(0.75**4, abs=0.02)
    assert (unsure.share_low, unsure.share_high) == (None, None)
    assert (unsure.gain_low, unsure.gain_high) == (0.0, pytest.approx(0.1875))
    # with four of eight, 0.5^8 = 0.4 %: the bounds exist
    rare = gap_closed(*arms([[0.0] * 4 + [0.25] * 4], [[0.0] * 4 + [0.5] * 4]))
    assert 0 < rare.without_gap < 0.01
    assert (rare.share_low, rare.share_high) == (0.5, 0.5)
    # and on one side only the missing resamples count: a negative gap does not turn into a large share
    turned = gap_closed(*arms([[-0.25, -0.25, -0.25]], [[-0.125, 0.5, 0.5]]))
    assert turned.share_high is None
    assert turned.share < 0


def test_seeded():
    values = arms(np.random.default_rng(0).normal(0.1, 0.1, (3, 16)), np.full((3, 16), 0.2))
    assert gap_closed(*values) == gap_closed(*values)
    assert gap_closed(*values) != gap_closed(*values, seed=1)


def test_a_single_case_has_no_interval():
    found = gap_closed([{"a": 0.75}], [{"a": 0.5}], [{"a": 1.0}])
    assert (found.share, found.n_cases) == (0.5, 1)
    assert {found.share_low, found.gain_low, found.gap_high} == {None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arm": []}, r"the same repetitions, at least one, got \[0, 1, 1\]"),
        ({"arm": [], "floor": [], "ceiling": []}, "at least one"),
        ({"floor": [{"a": 0.5}]}, r"the same cases, got in repetition 0 not in all of them: \['b'\]"),
        ({"ceiling": [{"a": 0.5, "b": 0.5, "c": 0.5}]}, r"\['c'\]"),
        ({"arm": [{}], "floor": [{}], "ceiling": [{}]}, "in repetition 0 none"),
        ({"arm": [{"a": float("nan"), "b": 0.5}]}, "values must be finite, got nan in repetition 0"),
        ({"confidence": 95}, r"confidence must be in \(0, 1\), got 95"),
        ({"n_resamples": 0}, "n_resamples must be at least 1"),
    ],
)
def test_refuses(change, message):
    given = {key: [{"a": 0.5, "b": 0.75}] for key in ("arm", "floor", "ceiling")} | change
    with pytest.raises(ValueError, match=message):
        gap_closed(**given)


def test_shared_cases_are_drawn_once_for_all_repetitions():
    """Against the exact distribution: repetitions drawn, and one draw of the cases for all of them."""
    gains = np.array([[-0.1, 0.3, 0.0], [0.2, 0.05, 0.4]])
    names = ["a", "b", "c"]
    arm = [dict(zip(names, 0.5 + row, strict=True)) for row in gains]
    floor = [dict.fromkeys(names, 0.5)] * 2
    exact = [
        gains[np.ix_(repetitions, cases)].mean()
        for repetitions in product((0, 1), repeat=2)
        for cases in product((0, 1, 2), repeat=3)
    ]
    found = gap_closed(arm, floor, arm, confidence=0.8, shared_cases=True)
    assert (found.n_repetitions, found.n_cases) == (2, 3)
    assert found.gain == pytest.approx(gains.mean())
    edges = np.quantile(exact, [0.1, 0.9])
    assert [found.gain_low, found.gain_high] == pytest.approx(edges, abs=0.02)


def test_shared_cases_do_not_judge_twice():
    """Ten equal trainings on the same cases say no more than one; as if they were others, they would."""
    generator = np.random.default_rng(0)
    values = {f"c{number}": float(x) for number, x in enumerate(generator.uniform(0, 1, 8))}
    zeros = dict.fromkeys(values, 0.0)
    one = gap_closed([values], [zeros], [values], shared_cases=True)
    many = gap_closed([values] * 10, [zeros] * 10, [values] * 10, shared_cases=True)
    apart = gap_closed([values] * 10, [zeros] * 10, [values] * 10)
    assert many.gain_high - many.gain_low == pytest.approx(one.gain_high - one.gain_low, rel=0.05)
    assert apart.gain_high - apart.gain_low < 0.5 * (one.gain_high - one.gain_low)


def test_shared_cases_of_folds_and_of_splits_that_overlap():
    """Folds share nothing, random splits a part; a repetition whose cases are not drawn keeps its mean."""
    arm = [{"a": 0.25}, {"a": 0.25, "b": 0.5, "c": 0.75}, {"x": 0.5, "y": 0.75}]
    floor = [dict.fromkeys(values, 0.25) for values in arm]
    found = gap_closed(arm, floor, arm, shared_cases=True)
    assert found.n_cases == 5
    assert found.gain == pytest.approx((0 + 0.25 + 0.375) / 3)
    assert 0 <= found.gain_low < found.gain < found.gain_high <= 0.5
