"""Guidance as denoisers around denoisers: a mixture with an exact classifier gives the exact conditional at w = 1."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.denoiser.base import of_samples
from fewstep.denoiser.guidance.threshold import quantile
from fewstep.process.operator import inverse
from guided_mixture import FIRST, MEANS, PROCESSES, SECOND, log_class, middle, mixture, posterior, process_of, states


@pytest.mark.parametrize("name", PROCESSES)
def test_classifier_guidance_is_the_exact_conditional(name: str) -> None:
    process = process_of(name)
    t = middle(process)
    z, wanted = states(process, t), mixture(process, FIRST)
    guided = fs.ClassifierGuided(mixture(process), partial(log_class, process, FIRST))
    assert (guided(z, t) - wanted(z, t)).abs().max() < 1e-10
    times = torch.full((len(z),), t, dtype=torch.float64)
    assert (guided(z, times) - wanted(z, t)).abs().max() < 1e-10
    base, shift = (guided.head(part, t) for part in ("base", "guidance"))
    assert base is not None
    assert shift is not None
    assert (base(z) + shift(z) - process.coordinates(guided(z, t))).abs().max() < 1e-12
    half = fs.ClassifierGuided(mixture(process), partial(log_class, process, FIRST), 0.5)
    assert (half(z, t) - 0.5 * (mixture(process)(z, t) + wanted(z, t))).abs().max() < 1e-10


@pytest.mark.parametrize("name", PROCESSES)
def test_a_run_with_classifier_guidance_is_a_run_of_the_conditional(name: str) -> None:
    process = process_of(name)
    guided = fs.ClassifierGuided(mixture(process), partial(log_class, process, FIRST))
    grid = process.inverse_log_snr(torch.linspace(-2.5, 2.5, 7, dtype=torch.float64))
    run = partial(fs.sample, process=process, grid=grid, shape=(4, 1, 2, 2), dtype=torch.float64)
    assert (run(guided) - run(mixture(process, FIRST))).abs().max() < 1e-8


@pytest.mark.parametrize("name", PROCESSES)
def test_a_log_probability_on_x0_hat_is_differentiated_through_the_denoiser(name: str) -> None:
    """For N(0, s^2) data, y = a.x0 + noise given D is N(a.D, a C a + noise^2), so its gradient is exact."""
    process = process_of(name)
    t, std, noise = middle(process), 0.7, 0.3
    z, a, y = states(process, t), MEANS[5], 0.8
    prior = fs.Gaussian(process, 0.0, std)
    observation = fs.Observation(
        lambda x: (a * x).sum((1, 2, 3))[:, None], torch.tensor([[y]], dtype=torch.float64), noise
    )
    kalman = fs.DDNM(prior, observation, std=std)
    guided = fs.pigdm(prior, observation, std=std)
    assert (guided(z, t) - kalman(z, t)).abs().max() < 1e-10
    assert (guided(z, t) - posterior(process, prior, z, t, a, y, std, noise)).abs().max() < 1e-10


def test_classifier_free_guidance_rules() -> None:
    vp, t = fs.VP(), 0.4
    z, c, u = states(vp, t), mixture(vp, FIRST), mixture(vp)
    dc, du = c(z, t), u(z, t)
    std = lambda v: v.flatten(1).std(1).reshape(-1, 1, 1, 1)  # noqa: E731
    plain = fs.guide(c, u, 3.0)(z, t)
    rescaled = fs.guide(c, u, 3.0, rule=fs.Rescale(share=0.7))(z, t)
    assert (rescaled - (0.7 * plain * std(dc) / std(plain) + 0.3 * plain)).abs().max() < 1e-12
    assert (std(fs.guide(c, u, 3.0, rule=fs.Rescale(share=1.0))(z, t)) - std(dc)).abs().max() < 1e-12

    nought = fs.guide(c, u, 0.0, rule=fs.Rescale(share=1.0))(z, t)
    assert (nought - du * std(dc) / std(du)).abs().max() < 1e-12

    apg = fs.guide(c, u, 3.0, rule=fs.APG(parallel=0.0))
    moved = (apg(z, t) - dc).flatten(1)
    assert (moved * dc.flatten(1)).sum(1).abs().max() < 1e-12  # perpendicular to the conditional
    assert ((moved - 2 * (dc - du).flatten(1)) * moved).sum(1).abs().max() < 1e-12  # and the projection of 2 Delta
    most = fs.guide(c, u, 3.0, rule=fs.APG(parallel=1.0, norm=0.05))(z, t)
    sizes = (dc - du).flatten(1).norm(dim=1)
    assert ((most - dc).flatten(1).norm(dim=1) - 2 * sizes.clamp(max=0.05)).abs().max() < 1e-12
    shift = apg.head("guidance", t)
    assert shift is not None
    assert (shift(z) + du - apg(z, t)).abs().max() < 1e-12
    inside = fs.guide(c, u, 3.0, rule=fs.APG(), interval=(0.2, 0.3))
    assert torch.equal(inside(z, t), dc)
    times = torch.tensor([0.25, 0.4, 0.4, 0.4, 0.25], dtype=torch.float64)
    assert (inside(z, times)[1:4] - c(z, times)[1:4]).abs().max() < 1e-12


def test_momentum_belongs_to_one_run() -> None:
    vp = fs.VP()
    c, u = mixture(vp, FIRST), mixture(vp)
    times = torch.tensor([0.6, 0.4, 0.2], dtype=torch.float64)
    z = states(vp, 0.6)
    guided = fs.guide(c, u, 3.0, rule=fs.APG(parallel=1.0, momentum=-0.5))
    runs = [fs.sample(guided, vp, solver="ddim", grid=times, x=z) for _ in range(2)]
    assert torch.equal(runs[0], runs[1])

    first, second = (vp.alpha(t) for t in (0.6, 0.4))
    delta = c(z, 0.6) - u(z, 0.6)
    d = c(z, 0.6) + 2 * delta
    z1 = vp.alpha(0.4) * d + vp.sigma(0.4) / vp.sigma(0.6) * (z - first * d)
    delta = (c(z1, 0.4) - u(z1, 0.4)) - 0.5 * delta
    d = c(z1, 0.4) + 2 * delta
    z2 = vp.alpha(0.2) * d + vp.sigma(0.2) / vp.sigma(0.4) * (z1 - second * d)
    assert (runs[0] - z2).abs().max() < 1e-12
    for options in ({"solver": "rk45"}, {"parallel": True, "steps": 4}, {"memory": "64GiB", "solver": "ddim"}):
        with pytest.raises(ValueError, match="got momentum"):
            fs.sample(guided, vp, shape=(4, 1, 2, 2), dtype=torch.float64, **options)


def test_autoguidance_and_negative_prompts_are_guidance_away_from_another_denoiser() -> None:
    vp, t = fs.VP(), 0.4
    z, strong, weak = states(vp, t), mixture(vp, FIRST), fs.Mixture(vp, MEANS[FIRST], 0.9)
    found = fs.guide(strong, weak, 2.0)(z, t)
    assert (found - 2 * strong(z, t) + weak(z, t)).abs().max() < 1e-12
    negative = mixture(vp, SECOND)
    both = fs.Composed(mixture(vp), (strong, negative), (3.0, -1.0), perpendicular=True)
    d, pull, push = (m(z, t) for m in (mixture(vp), strong, negative))
    pull, push = (pull - d).flatten(1), (push - d).flatten(1)
    push = push - (push * pull).sum(1, keepdim=True) / pull.square().sum(1, keepdim=True) * pull
    assert (both(z, t) - d - (3 * pull - push).reshape(d.shape)).abs().max() < 1e-12


@pytest.mark.parametrize("name", PROCESSES)
def test_or_and_not_of_classes_are_exact_mixtures(name: str) -> None:
    process = process_of(name)
    t = middle(process)
    z, every = states(process, t), mixture(process)
    one, two = (partial(log_class, process, which) for which in (FIRST, SECOND))
    either = mixture(process, slice(0, 5))
    neither = mixture(process, slice(5, 6))
    parts = (mixture(process, FIRST), mixture(process, SECOND))
    assert (fs.AnyOf(parts, (one, two))(z, t) - either(z, t)).abs().max() < 1e-10
    assert (fs.Complement(every, either, fs.disjunction(one, two))(z, t) - neither(z, t)).abs().max() < 1e-8
    guided = partial(fs.ClassifierGuided, every)
    assert (guided(fs.disjunction(one, two))(z, t) - either(z, t)).abs().max() < 1e-10
    assert (guided(fs.negation(fs.disjunction(one, two)))(z, t) - neither(z, t)).abs().max() < 1e-8
    nested = fs.disjunction(two, fs.negation(fs.disjunction(one, two)))
    assert (guided(nested)(z, t) - mixture(process, slice(2, 6))(z, t)).abs().max() < 1e-8
    p, q = one(z, t).exp(), two(z, t).exp()
    assert (fs.disjunction(one, two, weights=[2.0, 0.5])(z, t) - (2 * p + q / 2).log()).abs().max() < 1e-12
    assert (fs.conjunction(one, two, weights=[2.0, 0.5])(z, t) - (p * p * q.sqrt()).log()).abs().max() < 1e-12
    published = guided(fs.negation(one, weight=2.0))(z, t)
    assert (published - every(z, t) + 2 * (parts[0](z, t) - every(z, t))).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["vp", "cld", "edm"])
def test_and_of_independent_conditions_is_exact(name: str) -> None:
    """Four clusters on a grid: the column depends on the first coordinate alone, the row on the second."""
    process = process_of(name)
    t = middle(process)
    grid = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-2.0, 2.0)], dtype=torch.float64)
    every = fs.Mixture(process, grid, 0.3)
    right, top = (fs.Mixture(process, grid[[i, j]], 0.3) for i, j in ((2, 3), (1, 3)))
    eps = torch.randn(5, *process.state_shape((2,)), dtype=torch.float64)
    z, wanted = process.diffuse(grid[[0, 1, 2, 3, 3]], t, eps), fs.Mixture(process, grid[[3]], 0.3)
    assert (fs.Composed(every, (right, top), (1.0, 1.0))(z, t) - wanted(z, t)).abs().max() < 1e-10

    def log(part: fs.Mixture, z: Tensor, t: float) -> Tensor:
        return fs.marginal_log_prob(part, z, t) - fs.marginal_log_prob(every, z, t)

    both = fs.conjunction(partial(log, right), partial(log, top))
    assert (fs.ClassifierGuided(every, both)(z, t) - wanted(z, t)).abs().max() < 1e-10
    head = fs.Composed(every, (right, top), (1.0, 1.0)).head("guidance", t)
    assert head is not None
    assert (head(z) - (wanted(z, t) - every(z, t))).abs().max() < 1e-10


def test_lace_is_guidance_of_the_latent_normal() -> None:
    """On VP the score of N(0, 1) and the drift cancel: dz/dt = -1/2 beta grad log p(c | g(z))."""
    vp, t = fs.VP(), 0.4
    generator = nn.Linear(2, 3).double().requires_grad_(False)
    logits = lambda z, _: generator(z).tanh()  # noqa: E731
    log = fs.conjunction(lambda z, t: logits(z, t).log_softmax(-1)[:, 0], lambda z, t: logits(z, t)[:, 1])
    guided = fs.ClassifierGuided(fs.Gaussian(vp, 0.0, 1.0), log)
    z = torch.randn(5, 2, dtype=torch.float64).requires_grad_(True)
    (g,) = torch.autograd.grad(log(z, t).sum(), z)
    z = z.detach()
    spread = vp.R_rate(t) * inverse(vp.R(t))
    velocity = spread * z + (vp.M_rate(t) - spread * vp.M(t)) * guided(z, t)
    assert (velocity + 0.5 * vp.GG(t) * g).abs().max() < 1e-10
    exact = fs.ClassifierGuided(fs.Gaussian(vp, 0.0, 1.0), partial(seen_sum, vp))
    x = fs.sample(exact, vp, steps=30, shape=(4000, 2), dtype=torch.float64)
    assert (x.mean(0) - 0.5 * 1.2 / 1.125).abs().max() < 0.05  # of y = x_1 + x_2 + n/2 = 1.2: 1.2 / 2.25


def seen_sum(vp: fs.VP, z: Tensor, t: float) -> Tensor:
    """log p(y = 1.2 | z_t) of y = x_1 + x_2 + n / 2 for N(0, 1) data."""
    a, variance = vp.alpha(t), 2 * vp.sigma(t) ** 2 + 0.25
    return -((1.2 - a * z.sum(1)) ** 2) / (2 * variance)


def test_semantic_guidance_by_each_similarity() -> None:
    vp, t = fs.VP(), 0.4
    z, every = states(vp, t), mixture(vp)
    f, g = torch.randn(5, 3, 2, 2).double(), torch.randn(1, 3, 2, 2).double()
    alike = {by: fs.Similarity(lambda x, t: x, g, by=by, weight=2.0)(f, t) for by in ("cosine", "structure", "gram")}
    a, b = f.flatten(1), g.flatten(1).expand(5, -1)
    assert (alike["cosine"] - 2 * (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1)).abs().max() < 1e-12
    assert (alike["structure"] + 2 * (a - b).square().mean(1)).abs().max() < 1e-12
    grams = [torch.einsum("bcij,bdij->bcd", v, v) / 4 for v in (f, g)]
    assert (alike["gram"] + 2 * (grams[0] - grams[1]).square().mean((1, 2))).abs().max() < 1e-12

    def posteriors(x: Tensor, t: float) -> Tensor:
        return torch.stack([log_class(vp, slice(i, i + 1), x, t) for i in range(6)], 1).exp()

    wanted = torch.tensor([[1.0, 1.0, 0, 0, 0, 0]], dtype=torch.float64)
    likely = lambda f, g: (f * g).sum(1).log()  # noqa: E731
    guided = fs.ClassifierGuided(every, fs.Similarity(posteriors, wanted, by=likely))
    assert (guided(z, t) - mixture(vp, FIRST)(z, t)).abs().max() < 1e-10  # a similarity that is the probability
    several = fs.conjunction(*(fs.Similarity(lambda x, t: x, MEANS[:1], by=by) for by in ("cosine", "gram")))
    toward = fs.ClassifierGuided(every, several, 1e-3, on="x0_hat")
    assert (several(toward(z, t), t) > several(every(z, t), t)).all()
    with pytest.raises(ValueError, match="to compare by cosine"):
        fs.Similarity(lambda x, t: x, torch.zeros(2, 7))(z, t)
    with pytest.raises(ValueError, match="similarity 'cosin'"):
        fs.Similarity(lambda x, t: x, g, by="cosin")


def test_thresholding() -> None:
    vp, t = fs.VP(), 0.4
    d = torch.tensor([[0.5, -0.2, 0.1, 0.3], [4.0, -2.0, 1.0, 0.5]], dtype=torch.float64)
    found = fs.Thresholded(lambda z, t: d, 0.75, process=vp)(d, t)
    s = torch.quantile(d[1].abs(), 0.75)
    assert torch.equal(found[0], d[0])
    assert (found[1] - d[1].clamp(-s, s) / s).abs().max() < 1e-15
    assert torch.equal(fs.Thresholded(lambda z, t: d, None, process=vp)(d, t), d.clamp(-1, 1))
    guided = fs.guide(mixture(vp, FIRST), mixture(vp), 8.0)
    x = fs.sample(fs.Thresholded(guided, bound=2.0), vp, steps=5, shape=(4, 1, 2, 2), dtype=torch.float64)
    assert x.abs().max() < 2.1 < fs.sample(guided, vp, steps=5, shape=(4, 1, 2, 2), dtype=torch.float64).abs().max()
    with pytest.raises(ValueError, match="'base', which the denoiser does not return"):
        fs.sample(fs.Thresholded(guided), vp, solver="ddim-cfgpp", steps=3, shape=(2, 1, 2, 2))


class Conditioned(nn.Module):
    """A scalar by adaptive norm, an image by concatenation, a text by cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 1, 1)
        self.norm, self.adapt = nn.GroupNorm(2, 8, affine=False), nn.Linear(2, 16)
        self.text = nn.MultiheadAttention(8, 2, kdim=5, vdim=5, batch_first=True)

    def forward(self, x: Tensor, t: Tensor, *, scalar: Tensor, image: Tensor, text: Tensor) -> Tensor:
        h = self.enter(torch.cat([x, image.expand(len(x), -1, -1, -1)], 1))
        scale, shift = self.adapt(torch.stack([t, scalar.expand(len(x))], 1))[..., None, None].chunk(2, 1)
        h = self.norm(h) * (1 + scale) + shift
        tokens = h.flatten(2).mT
        h = h + self.text(tokens, text, text)[0].mT.reshape(h.shape)
        return self.leave(h)


def test_conditions_of_every_form_pass_through_wrap_and_guide() -> None:
    vp, t = fs.VP(), 0.4
    net = Conditioned().double().eval().requires_grad_(False)
    z = states(vp, t)
    own = {
        "scalar": torch.arange(5.0).double(),
        "image": torch.randn(5, 1, 2, 2).double(),
        "text": torch.randn(5, 3, 5).double(),
    }
    none = {name: torch.zeros_like(value) for name, value in own.items()}
    calls = []
    net.register_forward_hook(lambda m, a, k: calls.append(len(a[0])))
    one, other = (fs.wrap(partial(net, **c), vp, "noise") for c in (own, none))
    apart = other(z, t) + 2.0 * (one(z, t) - other(z, t))
    calls.clear()
    assert (fs.guide(one, other, 2.0)(z, t) - apart).abs().max() < 1e-12
    assert calls == [10]
    for name in own:  # each of them matters, and goes along with its sample
        changed = fs.wrap(partial(net, **{**own, name: own[name].flip(0)}), vp, "noise")
        assert (changed(z, t) - one(z, t)).abs().max() > 1e-4, name
    index = torch.tensor([4, 2])
    assert (of_samples(one, index, 5)(z[index], t) - one(z, t)[index]).abs().max() < 1e-12
    many = fs.Composed(other, (one, fs.ClassifierGuided(one, partial(bound_log, y=own["scalar"]))), (1.0, 0.5))
    assert (of_samples(many, index, 5)(z[index], t) - many(z, t)[index]).abs().max() < 1e-12


def bound_log(z: Tensor, t: float, *, y: Tensor) -> Tensor:
    return -(z.flatten(1).sum(1) - y).square()


VP = fs.VP()


ONE = fs.Gaussian(VP, 0.0, 1.0)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: fs.guide(ONE, ONE, 1.0, rule=fs.APG()), "scale=1, where it has nothing to do"),
        (lambda: fs.guide(ONE, ONE, 1.0, interval=(0.2, 0.5)), "scale=1, where it has nothing to do"),
        (lambda: fs.guide(ONE, ONE, 2.0, interval=(2.0, 80.0)), "has no time there"),
        (lambda: fs.guide(ONE, ONE, 2.0, rule=fs.APG), "give one as fs.Rescale"),
        (lambda: fs.guide(ONE, ONE, 2.0, rule=0.7), "give one as fs.Rescale"),
        (lambda: fs.APG(parallel=1.0), "which is plain guidance"),
        (lambda: fs.APG(momentum=1.0), "give -1 < momentum < 1"),
        (lambda: fs.APG(norm=0.0), "give a limit above 0"),
        (lambda: fs.Rescale(share=0.0), "give 0 < share <= 1"),
        (lambda: fs.ClassifierGuided(ONE, lambda z, t: z, on="x0"), "choose state or x0_hat"),
        (lambda: fs.ClassifierGuided(lambda z, t: z, lambda z, t: z), "give it as process="),
        (lambda: fs.ClassifierGuided(ONE, lambda z, t: z)(torch.zeros(2, 3), 0.5), "give one a sample"),
        (lambda: fs.ClassifierGuided(ONE, lambda z, t: z[:, 0].detach())(torch.zeros(2, 3), 0.5), "without a gradient"),
        (lambda: fs.ClassifierGuided(ONE, 3.0), "give a function"),
        (lambda: fs.ClassifierGuided(ONE, bound_log, process="vp"), "got process='vp': give a process"),
        (lambda: fs.ClassifierGuided(ONE, bound_log, interval=(0.5, 0.2)), "give (low, high)"),
        (lambda: fs.ReverseMean(step=0.0), "step=0.0"),
        (lambda: fs.Composed(ONE, (ONE,), (1.0, 2.0)), "got 1 parts and 2 weights"),
        (lambda: fs.Composed(ONE, (fs.Gaussian(fs.EDM(), 0.0, 1.0),), (1.0,)), "give all of one process"),
        (lambda: fs.Composed(ONE, (ONE,), (1.0,), perpendicular=True), "wants one below 0 and one above"),
        (lambda: fs.AnyOf((ONE,), ()), "give one of each"),
        (lambda: fs.disjunction(bound_log, weights=[-1.0]), "give weights above 0"),
        (lambda: fs.negation(lambda z, t: z[:, 0] + 1)(torch.zeros(2, 3), 0.5), "give a normalised one"),
        (lambda: fs.Thresholded(ONE, 1.5), "give 0 < quantile <= 1"),
        (lambda: fs.Thresholded(ONE, 0.9, limit=0.5), "at least bound=1.0"),
        (lambda: fs.Thresholded(ONE, None, limit=2.0), "give bound=2.0"),
        (lambda: fs.pigdm(ONE, fs.Observation(lambda x: x, torch.zeros(1, 2)), std=0.0), "std=0.0"),
        (lambda: fs.Observation(lambda x: x, torch.zeros(1, 2), -1.0), "noise=-1.0"),
        (lambda: fs.DDNM(ONE, fs.Observation(lambda x: x, torch.zeros(1, 2)))(torch.zeros(2, 3), 0.5), "give y as"),
    ],
)
def test_bad_input_gets_one_sentence(call, sentence: str) -> None:
    with pytest.raises(ValueError, match=r"^(got|a) .*") as error:
        call()
    assert sentence in str(error.value)


def test_guidance_at_alpha_zero_is_refused() -> None:
    """And runs where the interval leaves it out; times outside, each sample's own too, are the model alone."""
    flow = fs.Flow()
    guided = fs.ClassifierGuided(fs.Gaussian(flow, 0.0, 1.0), lambda z, t: -z.square().sum(1))
    with pytest.raises(ValueError, match="holds no signal"):
        guided(torch.zeros(2, 3), 1.0)
    every, log = mixture(flow), partial(log_class, flow, FIRST)
    late = fs.ClassifierGuided(every, log, interval=(0.0, 0.95))
    z = states(flow, 0.5)
    times = torch.tensor([0.5, 0.97, 0.5, 0.97, 0.2], dtype=torch.float64)
    wanted = torch.where((times > 0.95).reshape(-1, 1, 1, 1), every(z, times), mixture(flow, FIRST)(z, times))
    assert (late(z, times) - wanted).abs().max() < 1e-9
    assert torch.equal(late(z, 0.97), every(z, 0.97))
    grid = torch.linspace(0.999, 0.01, 41, dtype=torch.float64)
    x = fs.sample(late, flow, solver="ltsp", grid=grid, shape=(32, 1, 2, 2), dtype=torch.float64)
    nearest = (x[:, None] - MEANS).square().flatten(2).sum(2).argmin(1)
    assert (nearest < 2).double().mean() > 0.9


@pytest.mark.parametrize("n", [1, 2, 3, 17, 100])
@pytest.mark.parametrize("q", [0.001, 0.25, 0.5, 0.995, 1.0])
def test_a_quantile_of_many_numbers_is_that_of_few(n: int, q: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewstep.denoiser.guidance.threshold.SMALL", 0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        values = torch.randn(n, dtype=torch.float64).to(dtype)
        assert float(quantile(values, q)) == pytest.approx(np.quantile(values.double().numpy(), q), rel=1e-2)
        if dtype == torch.float64:
            assert float(quantile(values, q)) == pytest.approx(np.quantile(values.numpy(), q), rel=1e-14)
    values[0] = torch.nan
    assert quantile(values, q).isnan()


def test_thresholding_of_more_than_two_to_the_24_numbers() -> None:
    """torch.quantile stops there; a picture of 3 x 2400 x 2400 has more."""
    d = 2 * torch.randn(1, 2**24 + 1)
    s = float(np.quantile(d.abs().numpy(), 0.995))
    for options, want in (
        ({}, d.clamp(-s, s) / s),
        ({"limit": 9.0}, d.clamp(-s, s) / s),
        ({"limit": 3.0}, d.clamp(-3, 3) / 3),
        ({"bound": 9.0}, d.clamp(-9, 9)),
        ({"bound": 2.0}, 2 * d.clamp(-s, s) / s),
    ):
        found = fs.Thresholded(lambda z, t: d, **options, process=fs.VP())(d, 0.5)
        assert torch.allclose(found, want, atol=1e-5)


FLAT = torch.tensor([[0.3] * 8, [-0.7] * 8, [0.0] * 8])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0, 7.5])
def test_rescaling_leaves_predictions_without_spread_as_guidance_makes_them(scale, dtype):
    flat, other = FLAT.to(dtype), torch.tensor([[0.1], [0.1], [0.0]], dtype=dtype).expand(3, 8)
    for share in (0.3, 0.7, 1.0):
        combine = fs.Rescale(share=share).at(0.5)
        plain = other + scale * (flat - other)
        assert torch.equal(combine(flat, other, scale), plain)  # all places alike
        one, two = flat[:, :1], other[:, :1]
        assert torch.equal(combine(one, two, scale), two + scale * (one - two))  # one number a sample
        noisy = torch.randn(3, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(combine(noisy, noisy, scale), noisy)  # both halves alike
        wide = combine(2 * noisy, noisy, scale)
        want = noisy + scale * noisy
        torch.testing.assert_close(
            wide, want * (1 + share * (2 / (1 + scale) - 1))
        )  # and the formula where there is some


@pytest.mark.parametrize("rule", [fs.APG(), fs.APG(norm=2.0), fs.APG(parallel=0.5, norm=1.0), fs.APG(momentum=-0.5)])
def test_projected_guidance_of_equal_halves_is_either(rule):
    for d in (FLAT, torch.zeros(3, 8)):
        assert torch.equal(rule.at(0.5)(d, d, 5.0), d)


def test_thresholding_leaves_zeros():
    d = fs.Thresholded(lambda z, t: torch.zeros_like(z), process=fs.VP())
    assert torch.equal(d(torch.ones(2, 5), 0.5), torch.zeros(2, 5))


def test_conditions_that_are_all_impossible_count_alike():
    parts = tuple(fs.Gaussian(fs.VP(), m, 0.5) for m in (-1.0, 1.0))
    never = lambda z, t: torch.full((len(z),), -torch.inf)  # noqa: E731
    d, z = fs.AnyOf(parts, (never, never)), torch.zeros(2, 3)
    torch.testing.assert_close(d(z, 0.5), (parts[0](z, 0.5) + parts[1](z, 0.5)) / 2)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_scales_that_are_no_numbers_are_refused(scale):
    p = fs.VP()
    d, u = fs.Gaussian(p, 0.3, 0.5), fs.Gaussian(p, 0.0, 0.5)
    makes = [
        lambda: fs.guide(d, u, scale),
        lambda: fs.ClassifierGuided(d, lambda z, t: z.sum(1), scale),
        lambda: fs.Complement(d, u, lambda z, t: z.sum(1), scale),
    ]
    for make in makes:
        with pytest.raises(ValueError, match=r"got scale=(nan|-?inf): give a finite number"):
            make()
    with pytest.raises(ValueError, match="got weight="):
        fs.Composed(u, (d,), (scale,))


@pytest.mark.parametrize("how", [{}, {"rule": fs.Rescale()}, {"interval": (0.2, 0.8)}, {"rule": fs.APG(norm=2.0)}])
@pytest.mark.parametrize("solver", ["ddim", "dpmpp-2m", "rk45"])
def test_scales_one_a_sample_are_each_sample_s_own(solver, how):
    p = fs.VP()
    one, other = (fs.wrap(lambda x, t, c=c: torch.tanh(x + c * t[:, None]), p) for c in (0.3, -0.4))
    x, scales = torch.randn(3, 4, dtype=torch.float64), torch.tensor([1.0, 2.5, -0.5])
    run = {"solver": solver} | ({} if solver == "rk45" else {"steps": 4})
    found = fs.sample(fs.guide(one, other, scales, **how), p, x=x, **run)
    for k, scale in enumerate(scales.tolist()):
        own = fs.guide(one, other, scale, **(how if scale != 1 else {}))
        torch.testing.assert_close(found[k : k + 1], fs.sample(own, p, x=x[k : k + 1], **run), rtol=0, atol=1e-9)


def test_a_scale_may_be_a_function_of_the_log_snr():
    p, z = fs.VP(), torch.randn(3, 4, dtype=torch.float64)
    one, other = (fs.wrap(lambda x, t, c=c: torch.tanh(x + c * t[:, None]), p) for c in (0.3, -0.4))
    varying = fs.guide(one, other, lambda log_snr: 1 + 2 * torch.sigmoid(torch.as_tensor(log_snr)))
    for t in (0.2, 0.7, torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)):
        w = 1 + 2 * torch.sigmoid(torch.as_tensor(p.log_snr(t)))
        w = w.reshape(-1, 1)
        wanted = other(z, t) + w * (one(z, t) - other(z, t))
        torch.testing.assert_close(varying(z, t), wanted, rtol=0, atol=1e-12)
    assert 2.7 < varying.guidance <= 3
    assert fs.sample(varying, p, steps=4, x=z).isfinite().all()
    with pytest.raises(ValueError, match=r"scales of shape \(2, 2\)"):
        fs.guide(one, other, torch.ones(2, 2))
    with pytest.raises(ValueError, match="got 2 scales for 3 samples"):
        fs.sample(fs.guide(one, other, torch.ones(2) * 3), p, steps=4, x=z)
