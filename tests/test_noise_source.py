"""Where a run takes its noise from: the path, a generator, a ready tensor."""

from __future__ import annotations

import torch

from fewstep.noise import (
    BrownianPath,
    GeneratorSource,
    Noise,
    NoiseSource,
    TensorSource,
    noise_source,
)
from test_noise import CPU, F64, requests


def test_sources_are_sources() -> None:
    for given in (None, Noise(seed=5), torch.Generator(), torch.zeros(2, 3, 4)):
        source = noise_source(given, seed=1)
        assert isinstance(source, NoiseSource)
        assert noise_source(source) is source


def test_noise_source_passes_seed_and_first() -> None:
    shape = (2, 5)
    expected = Noise(seed=9, first=4).normal("initial", 0, shape, dtype=F64)
    for source in (
        noise_source(None, 9, 4),
        noise_source(Noise(9, 4), seed=1),
        noise_source(torch.zeros(1, *shape), seed=9, first=4),
    ):
        assert torch.equal(source.initial(shape, F64, CPU), expected)


def test_intervals_are_made_when_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    iterator = noise_source(generator).intervals(requests([0.0, 0.5, 1.0]), (2, 3), F64, CPU)
    assert torch.equal(generator.get_state(), before)
    next(iterator)
    assert not torch.equal(generator.get_state(), before)


def test_requests_of_another_stream() -> None:
    """They are draws of that stream by index, whatever their positions, and leave the path alone."""
    shape, source = (2, 3), noise_source(seed=3)
    asked = [(0.1, 0.4, "path", 0), (0.9, 0.9, "churn", 5), (0.4, 0.6, "path", 1)]
    first, churn, last = source.intervals(asked, shape, F64, CPU)
    assert torch.equal(churn, Noise(seed=3).normal("churn", 5, shape, dtype=F64))
    path = BrownianPath(Noise(seed=3), shape, F64, CPU, points=[0.1, 0.6, 0.4])
    assert torch.equal(first, path.increment(0.1, 0.4))
    assert torch.equal(last, path.increment(0.4, 0.6))


def test_generator_draws_in_order_and_replays() -> None:
    shape, asked = (2, 3), requests([0.0, 0.5, 1.0])
    source = GeneratorSource(torch.Generator().manual_seed(4))
    mark = source.snapshot()
    eps, steps = source.initial(shape, F64, CPU), list(source.intervals(asked, shape, F64, CPU))
    reference = torch.Generator().manual_seed(4)
    for x in (eps, *steps):
        assert torch.equal(x, torch.randn(shape, generator=reference, dtype=F64))
    assert not torch.equal(source.initial(shape, F64, CPU), eps)
    source.restore(mark)
    assert torch.equal(source.initial(shape, F64, CPU), eps)
    assert torch.equal(torch.stack(list(source.intervals(asked, shape, F64, CPU))), torch.stack(steps))


def test_stateless_sources_replay() -> None:
    shape, asked = (2, 3), requests([0.0, 0.5, 1.0])
    for source in (noise_source(seed=2), noise_source(torch.randn(2, *shape))):
        runs = []
        for _ in range(2):
            source.restore(source.snapshot())
            runs.append(torch.stack([source.initial(shape, F64, CPU), *source.intervals(asked, shape, F64, CPU)]))
        assert torch.equal(*runs)


def test_tensor_rows_in_order() -> None:
    noise = torch.randn(4, 2, 3)
    out = list(TensorSource(noise).intervals(requests([0.0, 0.5, 1.0]), (2, 3), F64, CPU))
    assert torch.equal(torch.stack(out), noise[:2].double())
    assert list(TensorSource(noise).intervals([], (2, 3), F64, CPU)) == []
