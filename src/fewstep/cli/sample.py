"""`fewstep sample`: the main job. Draws samples and writes a sheet, the numbers and what made them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fewstep.cli.common import Usage, at_least, build, check_device, option, pick

if TYPE_CHECKING:
    from torch import Tensor

    from fewstep.model import Model
    from fewstep.solver import Solver
    from fewstep.tableau import Tableau

__all__ = ["Drawn", "arguments", "describe", "draw", "picture", "run"]

STEPS = 10  # network calls where the command line names none
LEAST = 4  # samples that a distance between sets needs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep sample`."""
    add = parser.add_argument
    add("model", nargs="?", help="a model folder (default: the shipped Fashion-MNIST model)")
    add("--solver", help="a name from `fewstep list solvers` (default: the measured best)")
    text = "an option of the solver, as in eta=0.5; repeatable"
    add("--option", type=option, action="append", default=[], metavar="NAME=VALUE", help=text)
    add("--grid", default="default", help="a name from `fewstep list grids` (default: the process's own)")
    count = parser.add_mutually_exclusive_group()
    count.add_argument("--steps", type=at_least(1), help=f"at most this many network calls (default: {STEPS})")
    count.add_argument("--nfe", type=at_least(1), help="exactly this many network calls, or refused")
    add("--num", type=at_least(1), default=64, help="how many samples (default: 64)")
    add("--label", help="class names or numbers, separated by commas, used in turn (default: every class in turn)")
    add("--seed", type=at_least(0), default=0, help="sample k of a seed is the same in every run (default: 0)")
    add("--batch", type=at_least(1), default=64, help="samples a network call (default: 64)")
    text = "denoise: one more call removes the noise left at the last time (default: state)"
    add("--final", choices=("state", "denoise"), default="state", help=text)
    add("--device", default="cpu", help="where the network runs (default: cpu)")
    add("--quality", action="store_true", help="measure quality against the shipped reference features")
    add("--format", choices=("npz", "safetensors"), default="npz", help="of the samples (default: npz)")
    add("--out", default="out", help="folder for sheet.png, samples and run.json (default: out)")
    add("--dry-run", action="store_true", help="print what would be done as JSON and do nothing")


def run(args: argparse.Namespace) -> None:
    """Samples a model: a sheet of pictures, the samples, and run.json that says how they were made."""
    import fewstep as fs

    if args.solver:  # a wrong name is refused before the model is loaded
        build(fs.SOLVERS, args.solver, "solver", args.option)
    if args.quality and args.num < LEAST:
        raise Usage(f"got --quality with --num {args.num}: quality is measured on at least {LEAST} samples")
    check_device(args.device)
    grid = pick(fs.GRIDS, args.grid, "grid")
    model = fs.load(args.model, device=args.device)
    name = args.solver or fs.DEFAULT_SOLVERS[model.process.kind]
    solver = build(fs.SOLVERS, name, "solver", args.option)
    labels = class_labels(args.label, model.labels, args.num)
    table = fs.tabulate(solver, model.process, grid=grid, **budget(args))
    record = describe(model, solver, table.grid, grid=args.grid, final=args.final, num=args.num, labels=labels,
                      seed=args.seed, batch=args.batch, device=args.device)  # fmt: skip
    if args.dry_run:
        print(json.dumps(record, indent=2))
        return

    from fewstep.cli.files import Results
    from fewstep.ui import Bar

    measure = quality_of(model) if args.quality else None
    with Results(args.out) as results:
        total = -(-args.num // args.batch) * (table.nfe + (args.final == "denoise"))
        with Bar(total, "sampling") as bar:
            drawn = draw(model, table, num=args.num, labels=labels, seed=args.seed, batch=args.batch,
                         final=args.final, device=args.device, on_call=bar.advance)  # fmt: skip
        record |= {"network_calls": drawn.calls, "seconds": round(drawn.seconds, 3)}
        if measure is not None:
            record["quality"] = measure(drawn.samples)
        sheet = results.write("sheet.png", picture(drawn.samples))
        samples = results.write(f"samples.{args.format}", WRITERS[args.format](drawn.samples, labels))
        text = json.dumps(record, indent=2) + "\n"
        results.write("run.json", lambda file: file.write(text.encode()))
    print(f"{args.num} samples, {drawn.calls} network calls each, {drawn.seconds:.1f} s: {sheet}, {samples}")
    if "quality" in record:
        print(", ".join(f"{key} {value:.4g}" for key, value in record["quality"].items()))


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What `draw` returns: `samples` (num, *shape) in data space, `calls` counted for each sample, `seconds`."""

    samples: Tensor
    calls: int
    seconds: float


def budget(args: argparse.Namespace) -> dict[str, int]:
    """Returns the network calls of the table: `--steps` or `--nfe`, less the one that `--final denoise` spends."""
    name, calls = ("nfe", args.nfe) if args.nfe else ("steps", args.steps or STEPS)
    if args.final == "denoise":
        calls -= 1
        if not calls:
            raise Usage(f"got --{name} 1 with --final denoise, which spends one call after the steps: give at least 2")
    return {name: calls}


def draw(
    model: Model,
    table: Tableau,
    *,
    num: int,
    labels: Sequence[int] | None,
    seed: int,
    batch: int,
    final: str = "state",
    device: str = "cpu",
    on_call: Callable[[], object] | None = None,
) -> Drawn:
    """Samples `num` images, `batch` at a time; sample k has the noise and the label of its number, whatever the batch.

    Arguments:
        model: a loaded model.
        table: a table on the model's process.
        labels: class numbers, shape (num,), or None for a model without classes.
        on_call: called once for every network call.
    """
    import torch

    import fewstep as fs

    parts, calls, began = [], set(), time.perf_counter()
    for first in range(0, num, batch):
        size = min(batch, num - first)
        denoiser = fs.Counted(model.denoiser(labels and labels[first : first + size]))
        watched = denoiser if on_call is None else _Watched(denoiser, on_call)
        z = fs.sample(
            watched,
            model.process,
            solver=table,
            shape=(size, *model.shape),
            seed=seed,
            first=first,
            final=final,
            device=device,
        )
        parts.append((model.process.to_data(z) if final == "state" else z).float().cpu())
        calls.add(denoiser.calls)
    if len(calls) > 1:
        raise AssertionError(f"batches of one run took {sorted(calls)} network calls")
    return Drawn(torch.cat(parts), calls.pop(), time.perf_counter() - began)


class _Watched:
    """A denoiser that reports each of its calls."""

    def __init__(self, denoiser: Any, on_call: Callable[[], object]) -> None:
        self.denoiser, self.on_call = denoiser, on_call
        self.needs_grad = getattr(denoiser, "needs_grad", False)

    def __call__(self, z: Tensor, t: Any) -> Tensor:
        out = self.denoiser(z, t)
        self.on_call()
        return out


def quality_of(model: Model) -> Callable[[Tensor], dict[str, float]]:
    """Returns samples -> quality numbers; refuses at once a model whose images the shipped classifier cannot see."""
    import torch

    from fewstep.quality import load_classifier, load_reference

    classifier, reference = load_classifier(), load_reference()
    classifier.features(torch.zeros(1, *model.shape))
    return lambda samples: reference.quality(classifier.features(samples)).as_dict()


def class_labels(text: str | None, names: Sequence[str], num: int) -> list[int] | None:
    """Returns the class number of every sample: the classes of `text` ("sneaker,9"), or all of `names`, in turn."""
    if not names:
        if text is not None:
            raise Usage(f"got the label {text!r}, but this model was trained without classes; leave --label out.")
        return None
    numbers = {name.lower(): k for k, name in enumerate(names)} | {str(k): k for k in range(len(names))}
    words = range(len(names)) if text is None else (part.strip().lower() for part in text.split(","))
    chosen = [pick(numbers, str(word), "label") for word in words]
    return [chosen[k % len(chosen)] for k in range(num)]


def describe(model: Model, solver: Solver, times: Tensor, **more: Any) -> dict[str, Any]:
    """Returns what makes the samples, ready for JSON: solver, process, times, model, `more`, versions."""
    import torch

    import fewstep as fs
    from fewstep.files import sha256
    from fewstep.model import WEIGHTS
    from fewstep.process.config import process_to_json

    folder = model.path
    return {
        "solver": solver.config(),
        "process": process_to_json(model.process),
        "times": [float(t) for t in times],
        "model": {
            "folder": str(folder),
            "sha256": sha256(folder / WEIGHTS) if folder else None,
            "dtype": str(model.dtype),
        },
        **more,
        "versions": {"fewstep": fs.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": {"system": platform.system(), "processor": platform.machine(), "threads": torch.get_num_threads()},
    }


def picture(samples: Tensor) -> Callable[[Any], None]:
    """Returns a writer of a PNG sheet of samples in [-1, 1], shape (n, 1 or 3, height, width)."""
    from fewstep.files import extra
    from fewstep.ui import sheet

    image = extra("PIL.Image", "ui", "writing a PNG sheet")
    pixels = ((samples.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    return lambda file: image.fromarray(sheet(pixels)).save(file, format="PNG")


def npz(samples: Tensor, labels: Sequence[int] | None) -> Callable[[Any], None]:
    """Returns a writer of samples (float32, data space) and labels as one npz file."""
    import numpy as np

    arrays = {"samples": samples.numpy()} | ({} if labels is None else {"labels": np.asarray(labels)})
    return lambda file: np.savez(file, **arrays)  # type: ignore[arg-type] - the next argument in line is a flag


def safetensors(samples: Tensor, labels: Sequence[int] | None) -> Callable[[Any], None]:
    """Returns a writer of samples (float32, data space) and labels as one safetensors file."""
    import torch

    from fewstep.files import extra

    save = extra("safetensors.torch", "diffusers", "writing safetensors").save
    tensors = {"samples": samples.contiguous()} | ({} if labels is None else {"labels": torch.tensor(labels)})
    return lambda file: file.write(save(tensors))


WRITERS = {"npz": npz, "safetensors": safetensors}
