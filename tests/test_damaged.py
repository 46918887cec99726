"""A damaged part file is as good as none, and a damaged checkpoint is refused."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep as fs
import oracle
from bench_toy import study, the
from fewstep.bench.cell import Cell
from fewstep.bench.features import features_of, real
from fewstep.check import matrix
from fewstep.files import load_tensors, save_tensors
from fewstep.saved import Saved
from fewstep.stats import measure
from fewstep.train import train
from fewstep.train.loop import read_header

pytest.importorskip("diffusers")


def damaged(whole: bytes, count: int) -> list[bytes]:
    """Bytes flipped, cut out, put in, repeated; headers of another length, shape and dtype; the checksum taken away."""
    rng = random.Random(0)
    found = []
    for k in range(count):
        at = rng.randrange(len(whole)) if k % 2 else rng.randrange(min(len(whole), 400))
        few = rng.randrange(1, 9)
        found += [
            whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :],
            whole[:at],
            whole[:at] + rng.randbytes(few) + whole[at:],
            whole[:at] + whole[at + few :],
            struct.pack("<Q", rng.choice([0, 1, len(whole), 2**40, 2**63])) + whole[8:],
        ]
    for name, other in {
        b"F64": b"I64",
        b"F32": b"I32",
        b"U8": b"I8",
        b"said": b"sold",
        b"fewstep_sha": b"fewstep_shb",
    }.items():
        found.append(whole.replace(name, other))
    return [one for one in found if one != whole]


def unsealed(path: Path, **changed: torch.Tensor | None) -> None:
    """The same tensors, some of them changed or left out, as another version might have written them."""
    tensors = load_tensors(path) | changed
    save_tensors(path, {k: v for k, v in tensors.items() if v is not None})


def test_a_damaged_part_of_a_fit_is_as_good_as_none(tmp_path, capsys):
    path, said = tmp_path / "part", {"seed": 0}
    saved = Saved(path, said)
    saved.write({"ends": torch.arange(6.0).reshape(3, 2)}, now=True)
    whole = path.read_bytes()
    assert torch.equal(saved.read()["ends"], torch.arange(6.0).reshape(3, 2))
    assert Saved(path, {"seed": 1}).read() == {}
    assert capsys.readouterr().err == ""
    for content in damaged(whole, 60):
        path.write_bytes(content)
        assert saved.read() == {}
    assert "made anew" in capsys.readouterr().err
    for changed in ({"said": torch.tensor(1.5)}, {"said": torch.tensor([-1, 300])}, {"said": None}, {"ends": None},
                    {"ends": torch.tensor(0.5)}):  # fmt: skip
        path.write_bytes(whole)
        unsealed(path, **changed)
        assert saved.read() == {}


def test_a_damaged_part_of_a_measurement_is_as_good_as_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fewstep.saved._EVERY", -1.0)
    p = fs.VP()
    denoiser, out = oracle.denoiser(p), tmp_path / "statistics.safetensors"
    data = torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(4, 2)
    settings = {"nodes": 4, "batch": 2, "v3": False, "progress": False}
    undisturbed = measure(denoiser, p, data, **settings)
    calls = []

    def stopping(z, t):
        calls.append(t)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return denoiser(z, t)

    with pytest.raises(KeyboardInterrupt):
        measure(stopping, p, data, out=out, **settings)
    left = Path(f"{out}.part")
    left.write_bytes(left.read_bytes().replace(b"F64", b"I64"))
    assert measure(denoiser, p, data, out=out, **settings).digest == undisturbed.digest
    assert [p.name for p in tmp_path.glob("statistics*")] == [out.name]


def test_a_damaged_part_of_a_bench_is_made_again(tmp_path, capsys):
    s, cell = study(tmp_path), Cell(run=the("ddim", 5), seed=0)
    whole = s.make(cell, 8)
    path = next(p for p in tmp_path.rglob("*.safetensors") if "error" in load_tensors(p))
    content = path.read_bytes()
    again = [content[:-10], content.replace(b"F64", b"I64"), content.replace(b'"error"', b'"rorre"'), b"", b"{}"]
    for damage in again:
        path.write_bytes(damage)
        made = s.make(cell, 8)
        assert all(torch.equal(made[k], whole[k]) for k in made if k not in ("seconds", "pace"))
    assert capsys.readouterr().err.count("made anew") == len(again)
    path.with_name("0000000-many.safetensors").write_bytes(b"")
    path.with_name("0000000-9x.safetensors").write_bytes(b"")
    assert s.work([cell], 8) == 0


def test_damaged_features_of_real_samples_are_made_again(tmp_path, capsys):
    subject = replace(study(tmp_path).subject, data=torch.arange(32.0).reshape(16, -1))
    seen = real(features_of("pixels", subject), subject, None, tmp_path)
    (path,) = tmp_path.glob("real-*")
    path.write_bytes(path.read_bytes()[:-3])
    again = real(features_of("pixels", subject), subject, None, tmp_path)
    assert torch.equal(seen.reference, again.reference)
    assert "made anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b'{"verdicts": 3}', b'{"verdicts": [{"name": "order"}]}', b"[" * 100_000,
     b'{"verdicts": [{"name": "order", "process": "vp", "status": "good", "measured": null, "claimed": null}]}'],
)  # fmt: skip
def test_a_damaged_cell_of_a_check_is_checked_again(tmp_path, content, capsys):
    store = matrix.Store(tmp_path)
    first = matrix.report("ddim", ["vp"], store, only=["repeat"])
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(content)
    assert matrix.report("ddim", ["vp"], store, only=["repeat"]) == first
    assert "made anew" in capsys.readouterr().err


@pytest.fixture
def run(tmp_path: Path):
    """A training run of two steps, and how to go on with it."""
    rng = np.random.default_rng(0)
    data = tmp_path / "data.npz"
    np.savez(data, x=rng.integers(0, 256, (16, 8, 8)).astype(np.uint8))
    options = {"batch": 8, "channels": (4, 4), "patch": 1, "hours": 1e6, "sheet_every": None}
    out = tmp_path / "run"

    def go(images: int, **more) -> None:
        train(data, out, images=images, **(options | more))

    go(16, quiet=True)
    return out / "checkpoint.safetensors", go


def test_a_checkpoint_with_changed_bytes_is_refused(run):
    checkpoint, go = run
    whole = checkpoint.read_bytes()
    assert read_header(checkpoint)["sealed"]
    for content in damaged(whole, 60):
        checkpoint.write_bytes(content)
        with pytest.raises(ValueError, match="is not a whole training checkpoint"):
            read_header(checkpoint)
    for at in (50, len(whole) // 2, len(whole) - 1):
        checkpoint.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match="is not a whole training checkpoint"):
            go(24, quiet=True)


def test_an_old_checkpoint_is_said_and_a_wrong_one_refused(run, capsys):
    checkpoint, go = run
    tensors = load_tensors(checkpoint)
    header = {k: v for k, v in read_header(checkpoint).items() if k != "sealed"}

    def write(**changes) -> None:
        save_tensors(checkpoint, tensors, {"fewstep": json.dumps(header | changes)})

    write()
    go(24)
    assert "it has no checksum" in capsys.readouterr().err
    assert read_header(checkpoint)["sealed"]
    wrong = [{"step": -1}, {"step": 1.5}, {"step": "1"}, {"seconds": "x"}, {"seconds": -1.0}, {"seconds": float("nan")},
             {"config": []}, {"setup": 3}, {"format": 2}]  # fmt: skip
    for changes in wrong:
        write(**changes)
        with pytest.raises(ValueError, match="is not a whole training checkpoint"):
            go(24, quiet=True)
    for name, value in {"lr": "0.1", "images": None, "batch": 8.5, "ema": [1], "seed": True}.items():
        write(config=header["config"] | {name: value})
        with pytest.raises(ValueError, match=f"the checkpoint holds {name} = "):
            train(checkpoint.parent.parent / "data.npz", checkpoint.parent, quiet=True)
