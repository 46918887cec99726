"""A sampler as one ONNX graph: the network as often as the table calls it, and the table's sums in between.

| input    | shape, type                             | what it is                                                     |
|----------|-----------------------------------------|----------------------------------------------------------------|
| `noise`  | (batch, *state) float32                 | standard normals, of which the start is made                   |
| `labels` | (batch,) int64                          | class numbers, -1 for none; where the model has classes        |
| `xi`     | (number of noises, batch, *state) float32 | standard normals of the steps; where the table draws any     |

The one output, `samples` (batch, *data), is in data space. The file runs wherever ONNX does, without torch and without
this library, and its metadata says what made it.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.denoiser import Wrapped, guide
from fewstep.denoiser.base import range_of
from fewstep.files import atomic, extra, json_text
from fewstep.loop import sample
from fewstep.loop.drive import noises_of
from fewstep.loop.ends import limit_of
from fewstep.loop.plan import Plan
from fewstep.loop.tabulate import right_for
from fewstep.loop.walk import walk
from fewstep.model import Model, call_network
from fewstep.model.draw import conditioned
from fewstep.model.model import wrapped
from fewstep.noise import noise_source
from fewstep.process.config import process_to_json
from fewstep.process.operator import apply
from fewstep.tableau import Tableau

__all__ = ["Sampler", "difference", "export", "inputs"]

OPSET = 18


class Sampler(nn.Module):
    """A model and a table as a module: (noise, labels, xi) -> samples in data space."""

    def __init__(self, model: Model, table: Tableau, guidance: float = 1.0) -> None:
        super().__init__()
        self.net, self.process = model.net, model.process
        model.process.prior(inputs(model, table, 1)["noise"])  # refused where the process has none
        root = model.process.R(table.rows[0].t)
        self.root = root if isinstance(root, float) else root.to(torch.zeros(1))
        self.classes: list[Tensor | None] = []  # of the call under way
        w = guidance - 1 if model.takes_w else None

        def of(classes: Callable[[], Tensor | None]) -> Wrapped:
            def net(x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
                return call_network(model.net, x, t, classes(), model.patch, model.process, s, w)

            return wrapped(net, model.process, model.predicts, model.time, model.sigma_data,
                           destination=model.destination)  # fmt: skip

        denoiser: Any = of(lambda: self.classes[-1])
        if guidance != 1 and w is None:
            denoiser = guide(denoiser, of(lambda: torch.zeros_like(cast(Tensor, self.classes[-1]))), guidance)
        self.plan = Plan.of(table, denoiser, like=torch.zeros(1), reuse=False)
        self.limit = limit_of(table.process, float(table.grid[-1]), range_of(model.denoiser()), table.solver)

    def forward(self, noise: Tensor, labels: Tensor | None = None, xi: Tensor | None = None) -> Tensor:
        """The samples of some noise."""
        self.classes.append(None if labels is None else labels + 1)
        z = walk(self.plan, apply(self.root, noise), [] if xi is None else xi.unbind())
        self.classes.pop()
        return self.process.to_data(z if self.limit == math.inf else z.clamp(-self.limit, self.limit))


def inputs(
    model: Model, table: Tableau, num: int, *, labels: list[int] | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """What the graph is called with for samples 0 to `num` of a seed, which are then those of `fewstep.sample`.

    `labels` are class numbers, one a sample; None is none.
    """
    shape, source = (num, *model.process.state_shape(model.shape)), noise_source(seed=seed)
    made = {"noise": source.initial(shape, torch.float32, "cpu")}
    if model.labels:
        made["labels"] = torch.tensor(labels if labels is not None else [-1] * num)
    if table.noises:
        made["xi"] = torch.stack(list(noises_of(table, source, shape, torch.float32, torch.device("cpu"))))
    return made


def needed() -> None:
    """Refuses, before any work, where the packages that write a graph are not installed."""
    for package in ("onnx", "onnxscript"):
        extra(package, "export", "an ONNX graph")


def export(model: Model, table: Tableau, path: str | Path, *, guidance: float = 1.0) -> Path:
    """Writes the graph to one file; the network is exported in float32.

    Args:
        model: as `fewstep.load(..., dtype=torch.float32)` reads it.
        table: on the model's process; its `x0` form or its network's own prediction.
        guidance: scale of classifier-free guidance, as in `fewstep.guide`: two network evaluations a call.

    Raises:
        ValueError: for a table of another process, or with given rows beside its start.
    """
    needed()
    if model.worded:
        raise ValueError("got a model that is told words: a graph has no input for them; export one of classes")
    if table.process != model.process:
        raise ValueError(f"got a table written for {table.process} and a model of {model.process}: give one of both")
    right_for(model.denoiser(), model.process, table)
    if len(table.given) > 1:
        raise ValueError(f"got a table that is given {', '.join(table.given[1:])}, which a graph has no input for")
    sampler, example = Sampler(model, table, guidance).eval(), inputs(model, table, 2)
    batch = torch.export.Dim("batch", max=63)  # diffusers copies memory from 64 on; the file runs with any batch
    with torch.no_grad(), _quiet():
        sampler(**example)  # what fails, fails here in words; what is computed once for a shape is no part of the graph
        program: Any = torch.onnx.export(
            sampler, kwargs=example, dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(example), output_names=["samples"],
            dynamic_shapes={name: {1 if name == "xi" else 0: batch} for name in example},
        )  # fmt: skip
    about = {
        "process": process_to_json(table.process), "solver": table.solver.config() if table.solver else None,
        "network_calls": table.nfe, "times": table.grid.tolist(), "labels": list(model.labels), "guidance": guidance,
        "weights_sha256": model.weights, "card": table.card and dict(table.card),
    }  # fmt: skip
    program.model.metadata_props["fewstep"] = json_text(about)
    with atomic(Path(path)) as part:
        program.save(part)
    return Path(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells of packages it does without and of its own insides."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def difference(
    model: Model, table: Tableau, path: str | Path, *, guidance: float = 1.0, num: int = 2, seed: int = 0
) -> float:
    """The relative distance |ONNX - torch| / |torch| of some samples, the file run by onnxruntime on one thread."""
    runtime: Any = extra("onnxruntime", "export", "running an ONNX graph")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    labels = [k % len(model.labels) for k in range(num)] if model.labels else None
    given = inputs(model, table, num, labels=labels, seed=seed)
    (found,) = session.run(None, {name: x.numpy() for name, x in given.items()})
    denoiser = conditioned(model, labels, guidance)
    wanted = sample(denoiser, model.process, solver=table, shape=(num, *model.shape), seed=seed, progress=False)
    wanted = model.process.to_data(wanted)
    return float((torch.from_numpy(found) - wanted).norm() / wanted.norm())
