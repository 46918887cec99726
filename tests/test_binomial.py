"""The binomial chain against sums over all states."""

from __future__ import annotations

import math

import pytest
import torch

from fewstep.noise.binomial import Binomial

BITS = torch.tensor([0.0, 1.0], dtype=torch.float64)


def exact(chain: Binomial, p: float):
    """The posterior of one bit that is 1 with probability p."""

    def guess(x, k):
        one = chain.chance(torch.ones_like(x), k)
        one, zero = (torch.where(x == 1, q, 1 - q) for q in (one, chain.chance(torch.zeros_like(x), k)))
        return p * one / (p * one + (1 - p) * zero)

    return guess


def test_the_marginals_are_those_of_the_steps_and_the_end_is_a_coin() -> None:
    chain = Binomial((0.1, 0.3, 0.25))
    law = BITS.clone()
    for k, beta in enumerate(chain.betas, 1):
        law = (1 - beta) * law + beta / 2
        torch.testing.assert_close(chain.chance(BITS, k), law, rtol=1e-14, atol=0)
    even = Binomial.even(7)
    assert even.kept[3] == pytest.approx(4 / 7, abs=1e-14)
    assert even.chance(BITS, 7).tolist() == [0.5, 0.5]


def test_steps_back_by_the_exact_posterior_bring_the_data_back() -> None:
    p, chain = 0.8, Binomial((0.1, 0.3, 0.25, 0.5))
    guess, law = exact(chain, p), float(chain.chance(torch.tensor(p, dtype=torch.float64), 4))
    for k in range(4, 0, -1):
        back = chain.back(BITS, k, guess(BITS, k))
        law = float((1 - law) * back[0] + law * back[1])
        assert law == pytest.approx(float(chain.chance(torch.tensor(p, dtype=torch.float64), k - 1)), abs=1e-14)
    assert law == pytest.approx(p, abs=1e-14)


def test_the_bound_of_the_exact_posterior_is_the_entropy() -> None:
    p, chain = 0.8, Binomial((0.1, 0.3, 0.25, 0.5))
    guess, total = exact(chain, p), 0.0
    for x0, weight in ((0.0, 1 - p), (1.0, p)):
        data = torch.full_like(BITS, x0)
        for k in range(1, 5):
            q = chain.chance(data, k)[1]
            terms = chain.step_bits(BITS, k, data, guess(BITS, k))
            total += weight * float((1 - q) * terms[0] + q * terms[1])
        own, mixed = (float(chain.chance(torch.tensor(v, dtype=torch.float64), 4)) for v in (x0, p))
        total += weight * sum(a * math.log2(a / b) for a, b in ((own, mixed), (1 - own, 1 - mixed)))
    assert total == pytest.approx(-p * math.log2(p) - (1 - p) * math.log2(1 - p), abs=1e-12)


def test_a_guess_that_is_sure_costs_nothing_where_it_is_right_and_all_where_it_is_not() -> None:
    chain = Binomial((0.1, 0.3))
    assert chain.step_bits(BITS, 1, BITS, BITS).tolist() == [0.0, 0.0]
    assert chain.step_bits(BITS, 1, BITS, 1 - BITS).tolist() == [math.inf, math.inf]


def test_samples_have_the_datas_law_and_are_their_numbers() -> None:
    chain = Binomial.even(20)
    x = chain.sample(exact(chain, 0.8), (4000,), seed=1)
    assert float(x.mean()) == pytest.approx(0.8, abs=0.02)
    torch.testing.assert_close(x[:7], chain.sample(exact(chain, 0.8), (7,), seed=1))
    u = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)
    assert float(chain.diffuse(torch.ones(1000).double(), 10, u).mean()) == pytest.approx(0.75, abs=1e-3)


def test_chances_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="betas"):
        Binomial((0.5, 1.5))
