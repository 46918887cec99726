"""The optimal reverse variance: closed forms against Monte Carlo, laws, bounds, likelihood, and variance heads."""

from __future__ import annotations

import math

import pytest
import torch

import fewstep as fs
import oracle
from fewstep.check.exact import STD
from fewstep.check.exactness import check_point_mass
from fewstep.process.operator import Diagonal, magnitude
from fewstep.solver import DDIM, DDPM, Analytic, LearnedVariance
from test_equivalences import assert_same

torch.set_num_threads(1)


def of_gaussian(process: fs.Process, grid: torch.Tensor) -> fs.Statistics:
    """eps2 and error2 of a perfect network on N(., STD^2), with nodes at the grid's own times."""
    lam = torch.tensor(sorted(process.log_snr(t) for t in grid.tolist()), dtype=torch.float64)
    if process.kind == "diagonal":
        times = process.inverse_log_snr(lam)
        n = (process.M(times).values / process.R(times).values) ** 2
    else:
        n = (2 * lam).exp()
    error2 = STD**2 * n / (1 + STD**2 * n)
    return fs.Statistics(log_snr=lam, eps2=1 - error2, error2=error2)


def of_mixture(mixture: fs.Mixture, grid: torch.Tensor, count: int = 40000) -> fs.Statistics:
    """Of a 1-D mixture on VP, by its closed-form conditional variance averaged over many states."""
    p, g = mixture.process, torch.Generator().manual_seed(0)
    x0 = mixture.sample(count, g)
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=g)
    times = sorted(grid.tolist(), key=p.log_snr)
    error2 = torch.stack([mixture.head("npr", t)(p.diffuse(x0, t, eps)).mean() for t in times])
    lam = torch.tensor([p.log_snr(t) for t in times], dtype=torch.float64)
    return fs.Statistics(log_snr=lam, eps2=1 - error2, error2=error2)


def variances(table: fs.Tableau) -> list[float]:
    """The variance of the noise each row adds."""
    return [sum(c**2 for s, c in row.form if s[0] == "xi") for row in table.rows[1:]]


@pytest.mark.parametrize("process", fs.PROCESSES)
def test_without_statistics_it_is_ddpm_and_ddim(process):
    p = oracle.process(process)
    grid = oracle.grid(p, 6)
    assert_same(Analytic().tabulate(p, grid), DDPM().tabulate(p, grid), 1e-12)
    for eta in (0.0, 0.4):
        assert_same(Analytic(eta=eta).tabulate(p, grid), DDIM(eta=eta).tabulate(p, grid), 1e-12)


@pytest.mark.parametrize("process", ["vp", "edm", "flow", "cosine", "blurring", "cld"])
@pytest.mark.parametrize("options", [{}, {"eta": 0.0}, {"eta": 0.5}, {"corrected": True}])
def test_the_law_of_gaussian_data_is_exact(process, options):
    """With its own variance every step is the true reverse Gaussian, however long it is."""
    p = oracle.process(process)
    grid = oracle.grid(p, 4)
    table = Analytic(statistics=of_gaussian(p, grid), **options).tabulate(p, grid)
    plain = Analytic(**{k: v for k, v in options.items() if k == "eta"}).tabulate(p, grid)
    assert oracle.law_error(plain) > 0.02
    assert oracle.law_error(table) < 1e-10


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_variance_is_that_of_the_true_step(eta):
    """sigma*^2 = E (x_s - mean)^2 over the joint law of the step, by Monte Carlo."""
    p = fs.VP()
    mixture = oracle.denoiser(p)
    grid = oracle.grid(p, 3)
    table = Analytic(statistics=of_mixture(mixture, grid), eta=eta).tabulate(p, grid)
    t, s = grid[1:3].tolist()
    g = torch.Generator().manual_seed(1)
    x0 = mixture.sample(200000, g)
    eps, xi = torch.randn(2, *x0.shape, dtype=torch.float64, generator=g)
    z = p.diffuse(x0, t, eps)
    row = dict(table.rows[2].form)
    keep, bare = row["z", 1], variances(Analytic(eta=eta).tabulate(p, grid))[1]
    true = keep * z + (p.alpha(s) - keep * p.alpha(t)) * x0 + math.sqrt(bare) * xi
    mean = keep * z + row["y", 1, "x0"] * mixture(z, t)
    assert float((true**2).mean()) == pytest.approx(p.alpha(s) ** 2 * float((x0**2).mean()) + p.sigma(s) ** 2, rel=0.01)
    assert float(((true - mean) ** 2).mean()) == pytest.approx(variances(table)[1], rel=0.01)


def bound(solver: fs.Solver, mixture: fs.Mixture, statistics: fs.Statistics, grid: torch.Tensor) -> float:
    """The part of the likelihood bound that the variance decides, nats a coordinate: sum of E KL over the steps."""
    p, total = mixture.process, 0.0
    lower, used = variances(DDPM().tabulate(p, grid)), variances(solver.tabulate(p, grid))
    for t, s, tau2, sigma2 in zip(grid[:-1].tolist(), grid[1:].tolist(), lower, used, strict=True):
        missed = p.alpha(s) - p.alpha(t) * p.sigma(s) ** 2 * p.alpha(t) / (p.alpha(s) * p.sigma(t) ** 2)
        off = tau2 + missed**2 * statistics.data_variance(p, t)
        total += 0.5 * (math.log(sigma2 / tau2) - 1 + off / sigma2)
    return total


def test_the_likelihood_at_ten_steps_is_better_than_with_either_fixed_variance():
    p = fs.VP()
    mixture = fs.Mixture(p, torch.tensor([[-0.5], [0.7]]), torch.tensor([0.1, 0.05]))
    grid = fs.GRIDS["uniform"](p, 10)
    statistics = of_mixture(mixture, grid)
    found = {
        name: bound(solver, mixture, statistics, grid)
        for name, solver in {
            "beta": DDPM(variance="beta"),
            "posterior": DDPM(),
            "analytic": Analytic(statistics=statistics),
        }.items()
    }
    assert found["analytic"] < min(found["beta"], found["posterior"]) - 0.1, found
    better = fs.analytic_grid(of_mixture(mixture, fs.GRIDS["log-snr"](p, 60), 4000), p, 10)
    fine = of_mixture(mixture, better)
    assert bound(Analytic(statistics=fine), mixture, fine, better) < found["analytic"] - 0.05


@pytest.mark.parametrize("process", ["vp", "blurring", "cld"])
def test_the_noise_of_the_last_steps_is_clipped(process):
    p = oracle.process(process)
    grid = oracle.grid(p, 4)
    free, clipped = (Analytic(clip_last=k, clip_pixel=1.0).tabulate(p, grid) for k in (0, 2))
    top = 2 / 255 * math.sqrt(math.pi / 2)
    for k in (1, 2, 3, 4):
        a, b = (dict(t.rows[k].form)["xi", k - 1] for t in (free, clipped))
        if k < 3:
            assert a == b
        elif isinstance(a, Diagonal):
            assert torch.equal(b.values, a.values.clamp(max=top))
            assert float(a.values.max()) > top
        elif process == "vp":
            assert b == pytest.approx(top)
        else:
            assert max(magnitude(b * b), 0.0) <= top**2 + 1e-12
    every, more = (Analytic(clip_last=k, clip_pixel=1.0).tabulate(p, grid) for k in (4, 6))
    assert [row.form for row in every.rows] == [row.form for row in more.rows]


# --- variance heads -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["vp", "edm", "flow", "blurring"])
@pytest.mark.parametrize("head", ["sn", "npr"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_with_perfect_heads_the_law_of_gaussian_data_is_exact(process, head, eta):
    p = oracle.process(process)
    table = LearnedVariance(head=head, eta=eta).tabulate(p, oracle.grid(p, 4))
    assert oracle.law_error(table) < 1e-10
    check_point_mass(table)


@pytest.mark.parametrize("process", ["vp", "edm", "blurring"])
def test_the_oracles_head_is_the_variance_of_the_noise(process):
    """E[eps^2 | z] - E[eps | z]^2, by Monte Carlo over a narrow range of z; and n Var(x0 | z) of Gaussian data."""
    p = oracle.process(process)
    t = float(oracle.grid(p, 2)[1])
    gaussian = fs.Gaussian(p, torch.zeros(p.size if process == "blurring" else (1,)), STD)
    z = torch.randn(5, *gaussian.means.shape[1:], dtype=torch.float64)
    n = (p.M(t) * p.M(t)) * (1.0 / p.Sigma(t) if process != "blurring" else Diagonal(1 / p.Sigma(t).values, 2))
    n = getattr(n, "values", n)
    exact = STD**2 * n / (1 + STD**2 * n)
    assert float((gaussian.head("sn", t)(z) - exact).abs().max()) < 1e-12
    if process == "blurring":
        return
    mixture, g = oracle.denoiser(p), torch.Generator().manual_seed(0)
    x0 = mixture.sample(400000, g)
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=g)
    z = p.diffuse(x0, t, eps)
    at = float(z.median())
    near = eps[(z - at).abs() < 0.02 * float(z.std())]
    assert float(near.var()) == pytest.approx(float(mixture.head("npr", t)(torch.full((1, 1), at).double())), rel=0.05)


class Biased:
    """A mixture whose noise is off by a constant, with the heads that were trained on it."""

    def __init__(self, mixture: fs.Mixture, off: float, head: str) -> None:
        self.mixture, self.off, self.name = mixture, off, head
        self.process = mixture.process

    def __call__(self, z, t):
        p = self.process
        x0 = self.mixture(z, t) - p.sigma(t) / p.alpha(t) * self.off
        true = self.mixture.head("npr", t)(z)
        eps = (z - p.alpha(t) * x0) / p.sigma(t)
        square = true + (eps - self.off) ** 2  # h = E[eps^2 | z], which knows nothing of the mean's error
        return {"x0": x0, self.name: true + self.off**2 if self.name == "npr" else (square - eps**2).clamp(min=0)}


@pytest.mark.parametrize("head", ["sn", "npr"])
def test_npr_has_the_right_variance_around_a_biased_mean(head):
    """E (x_s - mean)^2 of the true step around it is what `npr` adds, wherever the state is; `sn` misses it."""
    p = fs.VP()
    mixture, grid = oracle.denoiser(p), oracle.grid(p, 3)
    t, s = grid[1:3].tolist()
    g = torch.Generator().manual_seed(1)
    x0 = mixture.sample(200000, g)
    eps, xi = torch.randn(2, *x0.shape, dtype=torch.float64, generator=g)
    z = p.diffuse(x0, t, eps)
    biased = Biased(mixture, 0.4, head)
    found = biased(z, t)
    row = dict(LearnedVariance(head=head, eta=0.5).tabulate(p, grid).rows[2].form)
    tau = next(c for symbol, c in row.items() if symbol[0] == "xi")
    scale = next(c for symbol, c in row.items() if symbol[0] == "root")
    predicted = tau**2 + scale**2 * found[head]
    true = row["z", 1] * z + row["y", 1, "x0"] * x0 + tau * xi
    mean = row["z", 1] * z + row["y", 1, "x0"] * found["x0"]
    by_state = z[:, 0].argsort().chunk(4)
    off = [float(predicted[part].mean() / ((true - mean)[part] ** 2).mean()) - 1 for part in by_state]
    assert max(map(abs, off)) < 0.02 if head == "npr" else max(map(abs, off)) > 0.2, off


def test_samples_have_the_variance_of_the_data_in_three_steps():
    """Where ddpm's are too narrow: the mixture's own law, through the loop."""
    p = fs.VP()
    mixture = oracle.denoiser(p)
    exact = float(mixture.sample(200000, torch.Generator().manual_seed(0)).var())
    grid = oracle.grid(p, 3)
    run = lambda solver: fs.sample(  # noqa: E731
        mixture, p, solver=solver, grid=grid, x=oracle.starts(p, float(grid[0]), 20000), seed=3
    )
    target = p.alpha(float(grid[-1])) ** 2 * exact + p.sigma(float(grid[-1])) ** 2
    for solver in ("sn-ddpm", "npr-ddpm", Analytic(statistics=of_mixture(mixture, grid))):
        assert float(run(solver).var()) == pytest.approx(target, rel=0.03), solver
    assert float(run("ddpm").var()) < 0.9 * target


@pytest.mark.parametrize("head", ["sn", "npr"])
@pytest.mark.parametrize("predicts", ["noise", "v"])
def test_a_network_with_two_outputs(head, predicts):
    """The wrapped network gives the samples of the closed form; the raw rewriting too."""
    p = fs.VP()
    mixture = oracle.denoiser(p)

    def net(x, t):
        u = float(t[0])
        x0, eps2 = mixture(x, u), mixture.head("npr", u)(x)
        eps = (x - p.alpha(u) * x0) / p.sigma(u)
        out = eps if predicts == "noise" else p.alpha(u) * eps - p.sigma(u) * x0
        return out, eps2 + eps**2 if head == "sn" else eps2

    denoiser = fs.variance_head(net, p, head, predicts=predicts)
    table = LearnedVariance(head=head).tabulate(p, oracle.grid(p, 4))
    x = oracle.starts(p, float(table.grid[0]), 8)
    ours, exact = (fs.sample(d, p, solver=table, x=x, seed=2) for d in (denoiser, mixture))
    assert float((ours - exact).abs().max()) < 1e-9
    raw = fs.sample(denoiser, p, solver=table.in_terms_of(predicts), x=x, seed=2)
    assert float((raw - exact).abs().max()) < 1e-9


def test_what_does_not_fit_is_refused():
    p = fs.VP()
    with pytest.raises(ValueError, match="reads output 'npr', which the denoiser does not return"):
        fs.sample(lambda z, t: z, p, solver="npr-ddpm", steps=2, shape=(1, 1))
    with pytest.raises(ValueError, match="both of shape"):
        fs.variance_head(lambda x, t: x, p)(torch.zeros(1, 1), 0.5)
    with pytest.raises(ValueError, match="variance head: give a process of numbers or frequencies"):
        fs.variance_head(lambda x, t: x, fs.CLD())
    with pytest.raises(ValueError, match="choose sn or npr"):
        LearnedVariance(head="x")
    with pytest.raises(ValueError, match="give a number in"):
        Analytic(eta=2.0)
    with pytest.raises(ValueError, match="got a int as statistics"):
        Analytic(statistics=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="without eps2"):
        Analytic(statistics=fs.Statistics(log_snr=torch.arange(3.0)))
    with pytest.raises(ValueError, match="without error2"):
        Analytic(statistics=fs.Statistics(log_snr=torch.arange(3.0), eps2=torch.ones(3)), corrected=True)
    grid = torch.tensor([1.0, 0.5, 0.0]).double()
    with pytest.raises(ValueError, match="where alpha = 0"):
        LearnedVariance().tabulate(fs.Flow(), grid)
    blurring, scalar = oracle.process("blurring"), of_gaussian(fs.VP(), oracle.grid(fs.VP(), 3))
    with pytest.raises(ValueError, match="one variance a frequency"):
        Analytic(statistics=scalar).tabulate(blurring, oracle.grid(blurring, 3))


def test_a_table_with_statistics_per_frequency_is_saved_as_its_rule(tmp_path):
    p = oracle.process("blurring")
    grid = oracle.grid(p, 3)
    file = of_gaussian(p, grid).save(tmp_path / "statistics.safetensors")
    table = Analytic(statistics=str(file)).tabulate(p, grid)
    table.save(tmp_path / "table")
    assert fs.Tableau.load(tmp_path / "table") == table
    file.unlink()
    with pytest.raises(ValueError, match="whose file .* is not there"):
        fs.Tableau.load(tmp_path / "table")
