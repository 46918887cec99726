"""The probe of precision, memory format and threads: what it chooses, what it keeps, what it leaves as it was."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fewstep as fs
from fewstep import pace as module, parts
from fewstep.data import Images
from fewstep.files import load_tensors
from fewstep.pace import Pace, choose
from fewstep.train import train

# Milliseconds a call, by precision and memory format: the shipped network as measured on one thread.
AMX = {("float32", "contiguous"): 39, ("float32", "channels-last"): 38, ("bfloat16", "contiguous"): 24,
       ("bfloat16", "channels-last"): 25}  # fmt: skip
AVX2 = {("float32", "contiguous"): 49, ("float32", "channels-last"): 44, ("bfloat16", "contiguous"): 849,
        ("bfloat16", "channels-last"): 204}  # fmt: skip
SSE = {("float32", "contiguous"): 104, ("float32", "channels-last"): 129, ("bfloat16", "contiguous"): 842,
       ("bfloat16", "channels-last"): 386}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_MADE", {})
    return tmp_path / "cache"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 1, 3))


def prepare(net: nn.Module):
    """Calls of a network with the way back, which change all that they can: buffers, gradients, random numbers."""

    def made(pace: Pace, size: int):
        net.to(pace.dtype)
        pace.place(net)
        x = torch.ones(size, 1, 8, 8, dtype=pace.dtype)
        return lambda: [net(x).sum().backward(), net.zero_grad(set_to_none=True)]

    return made


def timed(monkeypatch: pytest.MonkeyPatch, table, threads=lambda pace: 1.0) -> list[Pace]:
    """Replaces the timing by a table of milliseconds; returns the list of what is called."""
    seen: list[Pace] = []

    def once(prepare, pace: Pace, size: int, clock) -> float:
        seen.append(pace)
        return table[pace.precision, pace.memory_format] * threads(pace) * size / 8000

    monkeypatch.setattr(module, "_once", once)
    return seen


@pytest.mark.parametrize(
    ("table", "best"),
    [
        (AMX, ("bfloat16", "contiguous")),
        (AVX2, ("float32", "channels-last")),
        (SSE, ("float32", "contiguous")),
        (AVX2 | {("float32", "channels-last"): 47}, ("float32", "contiguous")),  # 4 % is no gain
        (AMX | {("bfloat16", "contiguous"): float("inf")}, ("bfloat16", "channels-last")),  # a kernel that lacks
        (dict.fromkeys(AMX, float("inf")), ("float32", "contiguous")),
        (dict.fromkeys(AMX, 0.1) | {("bfloat16", "contiguous"): 0.05}, ("float32", "contiguous")),  # too short to tell
    ],
)
def test_the_fastest_is_chosen_and_what_is_hopeless_is_not_called_again(monkeypatch, table, best):
    seen = timed(monkeypatch, table)
    found = choose(network(), prepare, use="test", given=Pace(threads=1))
    assert (found.precision, found.memory_format, found.threads) == (*best, 1)
    if table is AVX2:
        assert sum(pace.precision == "bfloat16" for pace in seen) == 2


def test_a_network_too_large_or_too_slow_to_try_keeps_the_default(monkeypatch):
    seen = timed(monkeypatch, AMX)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_LARGE", 0)
        assert choose(network(), prepare, use="large", given=Pace(threads=1)).precision == "float32"
    assert not seen
    clock = iter(range(0, 10_000, 2))  # two seconds pass between looks
    monkeypatch.setattr(module.time, "thread_time", lambda: float(next(clock)))
    assert choose(network(), prepare, use="slow", given=Pace(threads=1)).precision == "float32"
    assert set(seen) == {Pace(precision="float32", memory_format="contiguous", threads=1)}


def test_threads_are_fewer_where_that_is_clearly_faster(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setattr(module, "_busy", lambda: False)
    timed(monkeypatch, AMX, lambda pace: 1 / min(pace.threads, 12) + pace.threads / 100)
    assert choose(network(), prepare, use="test").threads == 8
    monkeypatch.setattr(module, "_busy", lambda: True)  # others' work would be timed with it
    assert choose(network(), prepare, use="another").threads == 64


def test_a_choice_is_kept_and_a_damaged_or_unwritable_cache_is_as_good_as_none(cache, monkeypatch):
    seen = timed(monkeypatch, AVX2)
    first = choose(network(), prepare, use="test")
    (path,) = cache.iterdir()
    assert json.loads(path.read_text())["pace"] == asdict(first)
    timed(monkeypatch, SSE)
    for made in ({}, module._MADE):
        monkeypatch.setattr(module, "_MADE", made)
        assert choose(network(), prepare, use="test") == first
    for damage in (b"", b"{}", b'{"pace": {"precision": "float128"}}', b'{"pace": 3}', b"\xff", b"[]",
                   b'{"pace": {"threads": true}}', path.read_bytes()[:40]):  # fmt: skip
        monkeypatch.setattr(module, "_MADE", {})
        path.write_bytes(damage)
        assert choose(network(), prepare, use="test").memory_format == "contiguous"
        assert json.loads(path.read_text())["pace"]["memory_format"] == "contiguous"
    seen = timed(monkeypatch, SSE)
    monkeypatch.setenv("FEWSTEP_CACHE", str(path / "no-folder"))
    found, calls = choose(network(), prepare, use="test"), len(seen)
    timed(monkeypatch, AVX2)
    assert choose(network(), prepare, use="test") == found
    assert len(seen) == calls > 0


def test_each_machine_network_and_use_has_its_own(cache, monkeypatch):
    timed(monkeypatch, AVX2)
    choose(network(), prepare, use="sample")
    choose(network(), prepare, use="train")
    choose(nn.Sequential(*network(), nn.Flatten()), prepare, use="train")  # the same parameters
    choose(nn.Sequential(nn.Conv2d(1, 9, 3)), prepare, use="train")
    monkeypatch.setenv("DNNL_DEFAULT_FPMATH_MODE", "ANY")  # kernels of another speed
    choose(network(), prepare, use="train")
    assert len(list(cache.iterdir())) == 4


def test_the_network_is_as_it_was():
    net = network()
    before = {name: (tensor.clone(), tensor.data_ptr(), tensor.stride()) for name, tensor in net.state_dict().items()}
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    found = choose(net, prepare(net), use="test")
    assert None not in asdict(found).values()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert (tensor.data_ptr(), tensor.stride()) == before[name][1:]
    assert all(p.grad is None and p.dtype == torch.float32 for p in net.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_what_is_given_stays_and_a_gpu_is_not_timed(monkeypatch):
    seen = timed(monkeypatch, AMX)
    given = Pace(precision="float32", memory_format="channels-last", threads=3)
    assert choose(network(), prepare, use="test", given=given) == given
    found = choose(network(), prepare, use="test", device="cuda", given=Pace(threads=2), gpu="bfloat16")
    assert found == Pace(precision="bfloat16", memory_format="contiguous", threads=2)
    assert not seen
    assert choose(network(), prepare, use="test", given=Pace(precision="float32")).precision == "float32"
    assert {pace.precision for pace in seen} == {"float32"}


@pytest.mark.parametrize(
    ("options", "word"),
    [({"precision": "float8"}, "float16"), ({"memory_format": "nhwc"}, "channels-last"), ({"threads": 0}, "threads=0"),
     ({"threads": 1.5}, "whole number"), ({"threads": 100_000}, "at most 1024")],
)  # fmt: skip
def test_what_is_no_pace_is_refused(options, word):
    with pytest.raises(ValueError, match=word):
        Pace(**options)


@pytest.mark.parametrize("precision", ["float16", "float64"])
def test_what_cannot_be_trained_in_is_refused_before_anything_is_written(tmp_path, precision):
    data = Images(images=np.zeros((8, 8, 8), np.uint8), labels=None, names=(), source="none")
    with pytest.raises(ValueError, match=f"precision='{precision}' to train in: give float32 or bfloat16"):
        train(data, tmp_path / "run", images=8, batch=4, channels=(4, 4), patch=1, quiet=True,
              pace=Pace(precision=precision))  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_model_runs_at_its_pace_and_its_states_are_plain(monkeypatch):
    pytest.importorskip("diffusers")
    timed(monkeypatch, AVX2)
    model = fs.load()
    assert model.pace == Pace(precision="float32", memory_format="channels-last", threads=torch.get_num_threads())
    weight = model.net.conv_in.weight
    assert weight.dtype == model.dtype == torch.float32
    assert weight.is_contiguous(memory_format=torch.channels_last)
    plain = fs.load(dtype=torch.float32, pace=Pace(memory_format="contiguous"))
    x, wanted = (fs.sample(m.denoiser(3), m.process, steps=3, shape=(2, *m.shape), seed=0) for m in (model, plain))
    assert x.is_contiguous()
    assert torch.allclose(x, wanted, atol=1e-4)
    assert fs.load(dtype=torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"dtype.*precision"):
        fs.load(dtype=torch.bfloat16, pace=Pace(precision="float32"))


TINY = {"batch": 8, "channels": (4, 4), "patch": 1, "hours": 1e6, "sheet_every": None, "quiet": True}


def test_a_training_goes_on_at_the_pace_it_began_with(tmp_path, monkeypatch):
    pytest.importorskip("diffusers")

    rng = np.random.default_rng(0)
    data = Images(images=rng.integers(0, 256, (40, 8, 8)).astype(np.uint8), labels=None, names=(), source="noise")
    table = {**AMX, ("bfloat16", "channels-last"): 20}
    timed(monkeypatch, table)
    train(data, tmp_path / "parts", images=8 * 5, **TINY)
    facts = json.loads((tmp_path / "parts" / "model" / "fewstep.json").read_text())["training"]
    assert facts["pace"] == {"precision": "bfloat16", "memory_format": "channels-last", "threads": 1}
    assert "bfloat16 autocast, channels-last, threads: 1" in (tmp_path / "parts" / "model" / "README.md").read_text()
    monkeypatch.setattr(module, "_MADE", {})
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path / "another"))  # as on another machine
    seen = timed(monkeypatch, SSE)
    for other in ({"precision": "float32"}, {"memory_format": "contiguous"}):
        with pytest.raises(ValueError, match=f"was made with {next(iter(other))}"):
            train(data, tmp_path / "parts", images=8 * 12, pace=Pace(**other), **TINY)
    train(data, tmp_path / "again", images=8 * 5, pace=Pace(**facts["pace"]), **TINY)
    for name in ("parts", "again"):
        train(data, tmp_path / name, images=8 * 12, **TINY)
    assert not seen
    ends = [load_tensors(tmp_path / name / "checkpoint.safetensors") for name in ("parts", "again")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_of_two_processes_that_measure_at_once_the_first_decides_for_both(cache, monkeypatch):
    table = dict(AVX2)
    timed(monkeypatch, table)
    measured = module._measured

    def overtaken(*arguments):
        monkeypatch.setattr(module, "_measured", measured)
        first = choose(network(), prepare, use="test")  # the other process
        monkeypatch.setattr(module, "_MADE", {})
        table.update(SSE)
        assert measured(*arguments) != first
        return measured(*arguments)

    monkeypatch.setattr(module, "_measured", overtaken)
    assert choose(network(), prepare, use="test").memory_format == "channels-last"
    assert len(list(cache.iterdir())) == 1


def test_what_a_killed_run_left_in_the_cache_is_known_by_its_name(monkeypatch):
    named, link = [], os.link
    monkeypatch.setattr(os, "link", lambda part, path: [named.append(part.name), link(part, path)])
    timed(monkeypatch, AVX2)
    choose(network(), prepare, use="test")
    assert named
    assert all(parts._PART.fullmatch(name) for name in named)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels-last"])
def test_a_network_is_differentiated_forward_in_every_format(memory_format):
    pytest.importorskip("diffusers")
    model = fs.load(dtype=torch.float32, pace=Pace(precision="float32", memory_format=memory_format, threads=1))
    denoiser = fs.Differentiated(model.denoiser(3), model.process)
    z = torch.randn(1, *model.shape)
    found = denoiser.head("derivative", 0.5)(z) if hasattr(denoiser, "head") else denoiser(z, 0.5)["derivative"]
    assert found.shape == z.shape
    assert bool(found.isfinite().all())
