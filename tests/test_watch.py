"""Networks as people have them: that write into their input, reuse their output, were left in training mode."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.interop import k_diffusion
from fewstep.solver import RK45

VP, SIZES = fs.VP(), (8, 20_000, 270_000)  # side by side, in place, block by block; on raw outputs from the second on


def pure(x: Tensor, t: Tensor, y: float | Tensor = 0.0) -> Tensor:
    return torch.tanh(x + (t.reshape(-1, *(1,) * (x.ndim - 1)) + y)) * 0.5


def writes(x: Tensor, t: Tensor, y: float = 0.0) -> Tensor:
    x += t.reshape(-1, *(1,) * (x.ndim - 1)) + y
    return torch.tanh(x) * 0.5


def writes_past_torch(x: Tensor, t: Tensor, y: float = 0.0) -> Tensor:
    x.data += t.reshape(-1, *(1,) * (x.ndim - 1)) + y
    return torch.tanh(x) * 0.5


def writes_as_numpy(x: Tensor, t: Tensor, y: float = 0.0) -> Tensor:
    np.add(x.numpy(), (t.reshape(-1, *(1,) * (x.ndim - 1)) + y).numpy(), out=x.numpy())
    return torch.tanh(x) * 0.5


class Reuses:
    """One output buffer, or several in turn."""

    def __init__(self, count: int = 1, *, numpy: bool = False, view: bool = False) -> None:
        self.count, self.numpy, self.view = count, numpy, view
        self.buffers: dict[tuple[int, ...], itertools.cycle] = {}

    def __call__(self, x: Tensor, t: Tensor, y: float | Tensor = 0.0) -> Tensor:
        out = pure(x, t, y)
        if tuple(x.shape) not in self.buffers:
            with torch.inference_mode(False):
                made = [torch.zeros(out.shape) for _ in range(self.count)]
            self.buffers[tuple(x.shape)] = itertools.cycle([b.numpy() if self.numpy else b for b in made])
        buffer = next(self.buffers[tuple(x.shape)])
        if self.numpy:
            buffer[...] = out.numpy()
            return torch.from_numpy(buffer)
        buffer.copy_(out)
        return buffer[:] if self.view else buffer


class Late(Reuses):
    """A network that writes, and reuses its output, from its fourth call on, as one that captures a graph does."""

    calls = 0

    def __call__(self, x: Tensor, t: Tensor, y: float | Tensor = 0.0) -> Tensor:
        self.calls += 1
        if self.calls < 4:
            return pure(x, t, y)
        out = super().__call__(x, t, y)
        x.zero_()
        return out


class Keeps:
    """A network that holds on to its input, and expects it to stay what it was."""

    last: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor, t: Tensor, y: float | Tensor = 0.0) -> Tensor:
        if self.last is not None and not torch.equal(*self.last):
            return torch.zeros_like(x)
        self.last = x.detach(), x.detach().clone()
        return pure(x, t, y)


NETWORKS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "writes": lambda: writes,
    "writes past torch": lambda: writes_past_torch,
    "writes as numpy": lambda: writes_as_numpy,
    "reuses": Reuses,
    "reuses a view": lambda: Reuses(view=True),
    "reuses two": lambda: Reuses(2),
    "reuses four": lambda: Reuses(4),
    "reuses seven": lambda: Reuses(7),
    "reuses numpy's": lambda: Reuses(numpy=True),
    "late": Late,
    "keeps": Keeps,
}


@pytest.fixture(params=NETWORKS)
def careless(request) -> Callable[..., Tensor]:
    return NETWORKS[request.param]()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("solver", "predicts"),
    [
        ("ddim", "noise"),
        ("dpmpp-2m", "v"),
        ("dpmpp-2m", "data"),
        ("unipc-3", "data"),
        ("heun", "noise"),
        ("edm-sde", "v"),
    ],
)
def test_a_table_has_the_bits_of_the_careful_network(careless, solver, predicts, size):
    run = {"solver": solver, "steps": 6, "shape": (2, size), "seed": 1, "progress": False}
    want = fs.sample(fs.wrap(pure, VP, predicts), VP, **run)
    assert torch.equal(fs.sample(fs.wrap(careless, VP, predicts), VP, **run), want)


def small(net: Callable[..., Tensor], predicts: str = "data", **bound) -> fs.denoiser.Wrapped:
    return fs.wrap(partial(net, **bound) if bound else net, VP, predicts)


def plain(net: Callable[..., Tensor]) -> Callable[[Tensor, float | Tensor], Tensor]:
    """A denoiser that nobody has wrapped."""
    return lambda z, t: net(z, torch.as_tensor(t, dtype=z.dtype).expand(len(z)))


def watched(net: Callable[..., Tensor], **options) -> list[Tensor]:
    seen: list[Tensor] = []
    fs.sample(small(net), VP, steps=5, shape=(2, 6), callback=lambda row, t, z, x0: seen.extend((z, x0)), **options)
    return seen


def scheduled(net: Callable[..., Tensor], prediction: str) -> list[Tensor]:
    from fewstep.interop.diffusers import FewStepScheduler

    scheduler = FewStepScheduler(solver="dpmpp-2m", prediction_type=prediction)
    scheduler.set_timesteps(5)
    x, seen = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), []
    for t in scheduler.timesteps:
        x, x0 = scheduler.step(net(x.clone(), t.expand(1) / 1000), t, x, return_dict=False)
        seen += [x, x0]
    return seen


DOORS: dict[str, Callable[[Callable[..., Tensor]], Tensor | list[Tensor]]] = {
    "callback": watched,
    "callback, multistep": partial(watched, solver="dpmpp-2m"),
    "after": lambda net: fs.sample(small(net), VP, steps=5, shape=(2, 6), after=lambda row, t, z: z.clamp(-1, 1)),
    "differentiable": lambda net: fs.sample(small(net), VP, steps=5, shape=(2, 6), differentiable=True),
    "final": lambda net: fs.sample(small(net), VP, steps=5, shape=(2, 6), final="denoise"),
    "plain": lambda net: fs.sample(plain(net), VP, solver="dpmpp-2m", steps=5, shape=(2, 6)),
    "plain, large": lambda net: fs.sample(plain(net), VP, solver="dpmpp-2m", steps=5, shape=(2, 20_000)),
    "solve": lambda net: fs.solve(small(net), VP, solver="unipc-3", steps=5, shape=(2, 6)).state,
    "rk45": lambda net: fs.sample(small(net), VP, solver=RK45(rtol=0.1, atol=0.1), shape=(2, 6)),
    "plain, rk45": lambda net: fs.sample(plain(net), VP, solver=RK45(rtol=0.1, atol=0.1), shape=(2, 6)),
    "parallel": lambda net: fs.sample(small(net), VP, solver="dpmpp-2m", steps=6, shape=(2, 6), parallel=True),
    "plain, parallel": lambda net: fs.sample(plain(net), VP, solver="ddpm", steps=6, shape=(2, 6), parallel=2),
    "memory": lambda net: fs.sample(small(net), VP, solver="dpmpp-2m", steps=5, shape=(5, 6), memory="64GiB"),
    "guide": lambda net: fs.sample(fs.guide(small(net, y=0.5), small(net, y=-0.2), 3.0), VP, steps=5, shape=(2, 6)),
    "guide, two functions": lambda net: fs.sample(
        fs.guide(*(small(lambda x, t, y=y: net(x, t, y)) for y in (0.5, -0.2)), 3.0), VP, steps=5, shape=(2, 20_000)
    ),
    "ltsp": lambda net: fs.sample(
        fs.guide(small(net, y=0.5), small(net, y=-0.2), 3.0), VP, solver="ltsp", steps=6, shape=(2, 6)
    ),
    "Composed": lambda net: fs.sample(
        fs.Composed(plain(net), (plain(lambda x, t: net(x, t, 0.7)),), (2.0,), process=VP), VP, steps=5, shape=(2, 6)
    ),
    "Guided": lambda net: fs.sample(
        fs.Guided(base=plain(net), shift=plain(lambda x, t: net(x, t, 0.7)), process=VP), VP, steps=5, shape=(2, 6)
    ),
    "encode": lambda net: fs.encode(small(net), VP, torch.linspace(-1, 1, 12).reshape(2, 6), steps=5),
    "decode": lambda net: fs.decode(small(net), VP, torch.linspace(-1, 1, 12).reshape(2, 6), steps=5),
    "k-diffusion": lambda net: k_diffusion.sample("dpmpp_2m")(
        lambda x, s: net(x, s), torch.ones(2, 6) * 14, k_diffusion.get_sigmas("karras", 5), disable=True
    ),
    "scheduler, x0": partial(scheduled, prediction="sample"),
    "scheduler, noise": partial(scheduled, prediction="epsilon"),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_has_the_bits_of_the_careful_network(careless, door):
    got, want = (DOORS[door](net) for net in (careless, pure))
    pairs = zip(got, want, strict=True) if isinstance(want, list) else [(got, want)]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_start_stays_as_it_was(careless):
    x = torch.linspace(-2, 2, 12).reshape(2, 6)
    before = x.clone()
    for options in ({}, {"differentiable": True}, {"solver": RK45(rtol=0.1, atol=0.1)}, {"parallel": True}):
        fs.sample(small(careless), VP, x=x, **options)
        assert torch.equal(x, before)


def test_samples_stay_as_they_were_in_the_next_run(careless):
    first = fs.sample(small(careless), VP, solver="ddim", grid=torch.tensor([1.0, 0.0]), shape=(2, 6))
    before = first.clone()
    fs.sample(small(careless), VP, solver="ddim", grid=torch.tensor([1.0, 0.0]), shape=(2, 6), seed=7)
    assert torch.equal(first, before)


def test_a_fresh_output_is_not_copied():
    addresses: list[int] = []
    made: list[int] = []

    def fresh(z: Tensor, t: float) -> Tensor:
        out = torch.tanh(z)
        made.append(out.data_ptr())
        return out

    fs.sample(fresh, VP, steps=5, shape=(2, 50_000), callback=lambda *told: addresses.append(told[3].data_ptr()))
    assert addresses == made


class Net(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), *layers)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(x)


class Functional(Net):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return nn.functional.dropout(self.layers(x), 0.3, self.training)


class Holder:
    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t)


REACHED = {
    "itself": lambda net: net,
    "its forward": lambda net: net.forward,
    "closed over": lambda net: lambda x, t: net(x, t),
    "partial": lambda net: partial(lambda x, t, net: net(x, t), net=net),
    "held": Holder,
}


@pytest.mark.parametrize("reach", REACHED)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Net(nn.Dropout(0.5)),
        lambda: Net(nn.BatchNorm1d(4)),
        lambda: Net(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))),
        lambda: Net(nn.RReLU()),
        Functional,
    ],
)
def test_a_network_in_training_mode_is_refused_and_left_as_it_was(make, reach):
    net = make()
    before = {name: b.clone() for name, b in net.named_buffers()}
    denoiser = fs.wrap(REACHED[reach](net), VP)
    for options in ({}, {"solver": "rk45"}, {"parallel": True}):
        with pytest.raises(ValueError, match=r"training mode.*call its eval\(\) first"):
            fs.sample(denoiser, VP, steps=4, shape=(8, 4), **options)
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())
    net.eval()
    assert torch.equal(*(fs.sample(denoiser, VP, steps=4, shape=(8, 4)) for _ in range(2)))


def test_each_network_that_a_function_is_bound_to_is_looked_at():
    call = lambda x, t, net: net(x, t)  # noqa: E731
    pair = [fs.wrap(partial(call, net=net), VP) for net in (Net(nn.Dropout(0.5)).eval(), Net(nn.Dropout(0.5)))]
    with pytest.raises(ValueError, match="training mode"):
        fs.sample(fs.guide(*pair, 3.0), VP, steps=4, shape=(8, 4))


def test_training_mode_without_effect_is_no_fault():
    net = Net(nn.Dropout(0.0), nn.SiLU(), nn.LayerNorm(4))
    assert net.training
    assert torch.equal(*(fs.sample(fs.wrap(net, VP), VP, steps=4, shape=(8, 4)) for _ in range(2)))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool, torch.long, torch.uint8])
@pytest.mark.parametrize("options", [{}, {"solver": "rk45"}, {"parallel": True}, {"memory": "64GiB"}])
def test_outputs_that_are_no_real_numbers_are_refused(options, dtype):
    network = lambda x, t: x.to(dtype)  # noqa: E731
    for denoiser in (fs.wrap(network, VP), network):
        with pytest.raises(ValueError, match=r"returned torch\.\w+, .* it must return a real floating-point tensor"):
            fs.sample(denoiser, VP, steps=4, shape=(2, 3), **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_outputs_of_other_precision_are_read(dtype):
    network = lambda x, t: pure(x, t).to(dtype)  # noqa: E731
    got = fs.sample(fs.wrap(network, VP), VP, solver="dpmpp-2m", steps=4, shape=(2, 3))
    want = fs.sample(fs.wrap(lambda x, t: network(x, t).float(), VP), VP, solver="dpmpp-2m", steps=4, shape=(2, 3))
    assert torch.equal(got, want)
