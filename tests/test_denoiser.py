"""Networks become denoisers, predictions convert into each other, oracles are exact."""

from __future__ import annotations

import math
import tracemalloc

import pytest
import torch

import fewstep as fs
from fewstep.denoiser import PREDICTIONS, conversion, statistic, view
from fewstep.process.operator import apply, inverse, magnitude, transpose
from test_process import SIZE, inner_times, make


def predictions(process, x0, eps, t) -> dict[str, torch.Tensor]:
    """What a perfect network of every kind returns, for x0 in the process's coordinates."""
    m, r = process.M(t), process.R(t)
    found = {"data": process.from_coordinates(x0), "noise": eps, "score": -apply(transpose(inverse(r)), eps)}
    if process.kind != "block":
        return found | {"v": apply(m, eps) - apply(r, x0), "flow": eps - x0}
    lam = torch.as_tensor(process.log_snr(t), dtype=torch.float64).reshape(-1, *[1] * (x0.ndim - 1))
    noise = apply(statistic(process, t), apply(r, eps)) * lam.exp()  # of unit variance
    alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
    return found | {"v": alpha * noise - sigma * x0, "flow": noise - x0}


@pytest.mark.parametrize("name", list(fs.PROCESSES))
@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("vector", [False, True])
def test_round_trips_among_all_predictions(name, prediction, vector):
    process = make(name)
    t = inner_times(process, 4)
    t = t if vector else float(t[1])
    x0 = process.coordinates(torch.randn(4, 1, *SIZE, dtype=torch.float64))
    eps = torch.randn(4, *process.state_shape((1, *SIZE)), dtype=torch.float64)
    z = apply(process.M(t), x0) + apply(process.R(t), eps)
    found = predictions(process, x0, eps, t)[prediction]
    x = fs.wrap(lambda *_: found, process, prediction)(z, t)
    data = process.from_coordinates(x0)
    p, q = conversion(prediction, process, t)
    lost = max(1.0, *(magnitude(c) for c in (p, q)))
    assert (x - data).abs().max() < 1e-12 * lost  # dividing by a faint signal magnifies rounding, nothing else does
    again = predictions(
        process,
        process.coordinates(x),
        apply(inverse(process.R(t)), z - apply(process.M(t), process.coordinates(x))),
        t,
    )
    for kind, value in predictions(process, x0, eps, t).items():
        assert (again[kind] - value).abs().max() < 1e-11 * lost * max(1.0, float(value.abs().max())), kind


def test_edm_preconditioning_against_its_table():
    """Karras et al. 2022, table 1: D = c_skip x + c_out F(c_in x, log(sigma)/4), in VE coordinates."""
    edm, vp, sigma, data = fs.EDM(), fs.VP(), 1.7, 0.5
    network = lambda x, t: torch.sin(3 * x) * t[:, None]  # noqa: E731
    x = torch.randn(5, 3, dtype=torch.float64)
    total = sigma**2 + data**2
    c_in, c_skip, c_out = total**-0.5, data**2 / total, sigma * data * total**-0.5
    want = c_skip * x + c_out * torch.sin(3 * c_in * x) * math.log(sigma) / 4
    assert torch.allclose(fs.wrap(network, edm, "edm", sigma_data=0.5, dtype=torch.float64)(x, sigma), want, atol=1e-12)
    t = vp.inverse_log_snr(-math.log(sigma))
    assert torch.allclose(
        fs.wrap(network, vp, "edm", sigma_data=0.5, dtype=torch.float64)(vp.alpha(t) * x, t), want, atol=1e-12
    )


@pytest.mark.parametrize(
    ("convention", "want"),
    [("t", 0.3), ("index", 299.0), ("sigma", None), ("log-sigma/4", None), (lambda t: 999 * t, 299.7)],
)
def test_time_conventions(convention, want):
    vp, seen = fs.VP(), []
    level = vp.sigma(0.3) / vp.alpha(0.3)
    want = {"sigma": level, "log-sigma/4": math.log(level) / 4}.get(convention, want) if want is None else want
    denoiser = fs.wrap(lambda x, t: (seen.append(t), x)[1], vp, time=convention)
    denoiser(torch.zeros(2, 3), 0.3)
    denoiser(torch.zeros(2, 3), torch.tensor([0.3, 0.3], dtype=torch.float64))
    for t in seen:
        assert t.shape == (2,)
        assert t.dtype == torch.float32
        assert torch.allclose(t, torch.full((2,), want), rtol=1e-6)


def test_wrap_refuses_what_it_does_not_know():
    for options, sentence in (({"predicts": "nois"}, "did you mean noise"), ({"time": "tt"}, "got time 'tt'")):
        with pytest.raises(ValueError, match=sentence):
            fs.wrap(lambda x, t: x, fs.VP(), **options)
    with pytest.raises(ValueError, match="scalar processes"):
        fs.wrap(lambda x, t: x, fs.CLD(), "edm")
    with pytest.raises(TypeError):
        fs.wrap(lambda x, t: x, fs.VP(), predict="noise")
    with pytest.raises(ValueError, match="must return a tensor"):
        fs.wrap(lambda x, t: None, fs.VP())(torch.zeros(1, 2), 0.5)


def test_networks_may_return_tuples_and_outputs():
    z = torch.randn(2, 3)
    for out in (lambda x: x, lambda x: (x, None), lambda x: type("Output", (), {"sample": x})()):
        d = fs.wrap(lambda x, t, out=out: out(x), fs.VP(), "data")
        assert torch.equal(d(z, 0.5), z)


def posterior_mean(process, mu, std, weights, z, t):
    """E[x0 | z] of a mixture by dense linear algebra, one sample, no structure used."""
    n, size = mu[0].numel(), z[0].numel()
    eye = torch.eye(n, dtype=torch.float64).reshape(n, *mu.shape[1:])
    m = torch.stack([apply(process.M(t), process.coordinates(e[None]))[0].flatten() for e in eye], 1)
    noise = torch.eye(size, dtype=torch.float64).reshape(size, *z.shape[1:])
    r = torch.stack([apply(process.R(t), e[None])[0].flatten() for e in noise], 1)
    top, found = [], []
    for k in range(len(mu)):
        cov = std[k] ** 2 * m @ m.T + r @ r.T
        gap = z[0].flatten() - m @ mu[k].flatten()
        solved = torch.linalg.solve(cov, gap)
        top.append(weights[k].log() - 0.5 * gap @ solved - 0.5 * torch.linalg.slogdet(cov)[1])
        found.append(mu[k].flatten() + std[k] ** 2 * m.T @ solved)
    return (torch.stack(top).softmax(0)[:, None] * torch.stack(found)).sum(0).reshape(mu.shape[1:])


@pytest.mark.parametrize("name", list(fs.PROCESSES))
def test_oracles_are_bayes_rule(name):
    process = make(name)
    mu = torch.randn(3, 1, *SIZE, dtype=torch.float64)
    std, weights = torch.tensor([0.3, 0.1, 0.6]).double(), torch.tensor([0.2, 0.5, 0.3]).double()
    x0 = mu[:2] + 0.1
    for t in inner_times(process, 3).tolist():
        z = process.diffuse(x0, t, torch.randn(2, *process.state_shape((1, *SIZE)), dtype=torch.float64))
        got = fs.Mixture(process, mu, std, weights)(z, t)
        want = torch.stack([posterior_mean(process, mu, std, weights, one[None], t) for one in z])
        assert torch.allclose(got, want, atol=1e-8)
        assert torch.allclose(fs.Dataset(process, mu, chunk=2)(z, t), fs.Mixture(process, mu, 0.0)(z, t), atol=1e-8)
        vector = torch.full((2,), t, dtype=torch.float64)
        assert torch.allclose(fs.Mixture(process, mu, std, weights)(z, vector), got, atol=1e-12)
        gaussian = fs.Gaussian(process, 0.2, 0.4)(z, t)
        assert torch.allclose(
            gaussian, fs.Mixture(process, torch.full((1, 1, *SIZE), 0.2, dtype=torch.float64), 0.4)(z, t), atol=1e-12
        )


def test_oracle_at_the_ends_of_flow():
    mixture = fs.Mixture(fs.Flow(), torch.tensor([[1.0], [-3.0]]), 0.1)
    assert torch.allclose(mixture(torch.randn(4, 1).double(), 1.0), torch.full((4, 1), -1.0).double())


def test_dataset_of_sixty_thousand_images_fits_in_a_gibibyte():
    images = torch.randint(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8)
    vp = fs.VP()
    dataset = fs.Dataset(vp, images, scale=2 / 255, shift=-1.0)
    clean = images[:3].double() * 2 / 255 - 1
    z = vp.diffuse(clean, 0.01, torch.randn(clean.shape, dtype=torch.float64))
    allocated = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                allocated.append(out.numel() * out.element_size())
            return out

    tracemalloc.start()
    with Watch():
        found = dataset(z, 0.01)
    tracemalloc.stop()
    assert torch.allclose(found, clean, atol=1e-6)  # random images are far apart: the nearest one wins
    assert max(allocated) * 6 + images.numel() < 2**30


def test_counted():
    counted = fs.Counted(fs.Gaussian(fs.VP(), 0.0, 1.0))
    counted(torch.zeros(3, 2), 0.5)
    counted.at(0.5)(torch.zeros(4, 2))
    assert (counted.calls, counted.evaluations) == (2, 7)


def test_counted_reports_each_call_both_ways():
    seen = []
    denoiser = fs.Counted(fs.Gaussian(fs.VP(), mean=0.0, std=1.0), on_call=lambda: seen.append(denoiser.calls))
    denoiser(torch.zeros(3, 1), 0.5)
    denoiser.at(0.25)(torch.zeros(2, 1))
    assert seen == [1, 2]
    assert denoiser.evaluations == 5


def test_a_block_network_sees_the_statistic():
    """On CLD the input of a v network is x0 and noise of unit total square, at the process's log-SNR."""
    process, t = fs.CLD(), 0.4
    x0, eps = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 2, 3, dtype=torch.float64)
    seen = []
    fs.wrap(lambda x, _: seen.append(x) or x, process, "v")(process.diffuse(x0, t, eps), t)
    lam = torch.tensor(process.log_snr(t), dtype=torch.float64)
    clean = apply(view("v", process, t), process.diffuse(x0, t, 0 * eps))
    assert (clean - torch.sigmoid(2 * lam).sqrt() * x0).abs().max() < 1e-14
    covariance = view("v", process, t) * process.Sigma(t) * transpose(view("v", process, t))
    assert abs(float(covariance.values) - float(torch.sigmoid(-2 * lam))) < 1e-14
    assert (seen[0] - clean - apply(view("v", process, t) * process.R(t), eps)).abs().max() < 1e-14


@pytest.mark.parametrize("target", ["vp", "sub-vp", "cosine", "ve", "edm", "flow", "discrete", "cld"])
@pytest.mark.parametrize("vector", [False, True])
def test_a_retimed_denoiser_is_the_one_of_the_other_process(target, vector):
    """A mixture's exact denoiser on VP, seen on another process, is its exact denoiser there."""
    torch.manual_seed(0)
    mixture = {"means": torch.randn(3, 2, dtype=torch.float64), "stds": 0.4, "weights": torch.tensor([0.2, 0.3, 0.5])}
    source, process = fs.VP(beta_max=30.0, t_min=1e-6), make(target)
    here = fs.retime(fs.Mixture(process=source, **mixture), process)
    t = inner_times(process, 4) if vector else float(inner_times(process, 4)[2])
    z = process.diffuse(torch.randn(4, 2, dtype=torch.float64), t, torch.randn(4, *process.state_shape((2,))).double())
    assert (here(z, t) - fs.Mixture(process=process, **mixture)(z, t)).abs().max() < 1e-9


def test_a_retimed_denoiser_samples_from_the_singular_end_and_refuses_what_it_cannot():
    gaussian = fs.Gaussian(process=fs.VP(), mean=torch.tensor([1.0, -2.0]), std=torch.tensor([0.5, 1.5]))
    flow = fs.Flow()
    x = fs.sample(fs.retime(gaussian, flow), flow, solver="dpmpp-2m", steps=40, shape=(4000, 2), seed=1)
    assert (x.mean(0) - torch.tensor([1.0, -2.0])).abs().max() < 0.1
    assert (x.std(0) - torch.tensor([0.5, 1.5])).abs().max() < 0.05
    with pytest.raises(ValueError, match="log-SNRs of their own"):
        fs.retime(gaussian, fs.Blurring(size=(2, 2)))
    with pytest.raises(ValueError, match="give it as source="):
        fs.retime(lambda z, t: z, flow)


SHAPED = {
    "mixture": (lambda p: fs.Mixture(p, torch.zeros(3, 2), 0.5), (2,)),
    "stds": (lambda p: fs.Gaussian(p, 0.0, torch.ones(2)), (2,)),
    "data set": (lambda p: fs.Dataset(p, torch.zeros(3, 1, 4, 4)), (1, 4, 4)),
}


@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize("process", [fs.VP(), fs.CLD()], ids=lambda p: type(p).__name__)
def test_a_state_of_another_shape_is_one_sentence(process, name):
    make, own = SHAPED[name]
    denoiser = make(process)
    assert denoiser(torch.zeros(5, *process.state_shape(own)), 0.5).shape == (5, *own)
    for other in ((3,), (), (1, 5, 5)):
        with pytest.raises(ValueError, match="got a state for data of shape .* and a denoiser of data of shape"):
            denoiser(torch.zeros(5, *process.state_shape(other)), 0.5)


class Embeds(torch.nn.Module):
    """A network that looks its time up."""

    def __init__(self):
        super().__init__()
        self.times = torch.nn.Embedding(1000, 2)

    def forward(self, x, t):
        return x + self.times(t)


def test_a_network_that_looks_its_time_up_is_told_whole_numbers():
    rows, net = torch.arange(2000.0).reshape(1000, 2), Embeds()
    seen = []
    d = fs.wrap(lambda x, t: seen.append(t) or rows[t], fs.VP(), "data", time="index-int")
    for t, row in ((0.5, 499), (1.0, 999), (1e-5, 0)):
        assert torch.equal(d(torch.zeros(1, 2), t)[0], rows[row])
    assert {t.dtype for t in seen} == {torch.int64}
    each = d(torch.zeros(2, 2), torch.tensor([0.25, 0.5], dtype=torch.float64))
    assert torch.equal(each, rows[[249, 499]])
    for wrong in (net, lambda x, t: x + rows[t]):
        with pytest.raises(ValueError, match="time='index-int'"):
            fs.sample(fs.wrap(wrong, fs.VP(), time="index"), fs.VP(), steps=2, shape=(3, 2), progress=False)
    assert fs.sample(fs.wrap(net, fs.VP(), time="index-int"), fs.VP(), steps=2, shape=(3, 2)).isfinite().all()
    with pytest.raises(ValueError, match="share of a table"):
        fs.wrap(net, fs.EDM(), time="index-int")


def test_a_dict_of_one_tensor_or_of_a_sample_is_read():
    z = torch.randn(3, 2)
    for out in ({"eps": z}, {"sample": z, "more": 1}):
        assert torch.equal(fs.wrap(lambda x, t, out=out: out, fs.VP(), "data")(z, 0.5), z)
    with pytest.raises(ValueError, match="dict of 'a', 'b'"):
        fs.wrap(lambda x, t: {"a": z, "b": z}, fs.VP())(z, 0.5)


def test_a_shape_without_a_batch_is_named():
    model = fs.load()
    for shape in ((1, 28, 28), (28, 28)):
        with pytest.raises(ValueError, match="without a batch in front"):
            fs.sample(model.denoiser(), model.process, steps=2, shape=shape, progress=False)
