"""A run that stands at its next call, so that somebody else makes the calls: a pipeline, a server, a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser.base import Denoises, as_denoiser
from fewstep.loop.drive import noises_of
from fewstep.loop.ends import start_state
from fewstep.loop.plan import Instruction, Plan
from fewstep.loop.walk import After, Callback, walk
from fewstep.noise import Noise, NoiseSource, noise_source
from fewstep.tableau import Symbol, Tableau
from fewstep.words import typed

__all__ = ["Standing"]


class Standing:
    """A run of a table at its next call: `ask` is what the network is to be called with, `tell` hands in what it said.

    Runs of one network share its calls, whatever their tables, solvers and lengths:

        runs = [fs.Standing.of(table, shape=(4, 2), seed=seed) for seed, table in enumerate(tables)]
        while asking := [run for run in runs if not run.done]:
            states, times = zip(*(run.ask for run in asking))
            answers = denoiser(torch.cat(states), torch.cat(times))
            for run, answer in zip(asking, answers.split([len(z) for z in states])):
                run.tell(answer)

    Attributes:
        table: the table.
        state: (batch, *state shape) at the next call; once `done`, the end, which is `sample`'s to rounding. (`sample`
            sets what the default solver makes into the range that a network tells of its data; here nobody knows it.)
        made: how many calls were made.
    """

    def __init__(
        self, table: Tableau, *, answers: Callable[[Denoises], Denoises] = as_denoiser, like: Tensor | None = None
    ) -> None:
        """A run without a start, for those who hand in the states too (`onward`); `of` has one.

        Args:
            table: the table.
            answers: makes the denoiser of what returns the outputs that are told.
            like: a tensor of the dtype and on the device of the states.
        """
        self.table, self.made, self.state = table, 0, torch.empty(0)
        self.plan = Plan.of(table, answers(lambda _z, _t: self._told), like=like, reuse=False)
        self.calls = [step.row for step in self.plan.instructions if step.at is not None]
        self.live: dict[Symbol, Tensor] = {}
        self._told: Any = None
        self._noises: Iterable[Tensor] = ()
        self._given: Mapping[str, Tensor] | None = None

    @staticmethod
    @typed
    def of(
        table: Tableau,
        *,
        shape: tuple[int, ...] | None = None,
        x: Tensor | None = None,
        seed: int = 0,
        first: int = 0,
        noise: Noise | NoiseSource | torch.Generator | Tensor | None = None,
        given: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Standing:
        """A run of a table at its first call; the arguments are those of `sample`."""
        source = noise_source(noise, seed, first)
        start = start_state(table.process, table.rows[0].t, shape, x, source, dtype, device)
        run = Standing(table, like=start)
        run._noises = iter(noises_of(table, source, tuple(start.shape), start.dtype, start.device))
        run._given = given
        rows = run.plan.instructions
        until = run.calls[0] if run.calls else len(rows) - 1
        run.state = run._walk((*rows[:until], _made_only(rows[until])), start, run._noises, 0)
        return run

    @property
    def done(self) -> bool:
        """Whether all calls were made."""
        return self.made == len(self.calls)

    @property
    def ask(self) -> tuple[Tensor, Tensor]:
        """The states (batch, *state shape) and the times (batch,), float64, that the network is to be called with."""
        if self.done:
            raise ValueError("got a run that has made all its calls: take its state")
        at = self.plan.instructions[self.calls[self.made]].at
        return self.state, torch.tensor([at], dtype=torch.float64).expand(len(self.state))

    @property
    def span(self) -> tuple[int, int]:
        """The row of the call, and that of the next one or the last."""
        after = self.calls[self.made + 1 :]
        return self.calls[self.made], after[0] if after else len(self.plan.instructions) - 1

    def tell(self, outputs: Tensor | Mapping[str, Tensor]) -> None:
        """Goes on to the next call, or to the end, with what a denoiser returns at `ask`.

        Args:
            outputs: x0_hat in data space, (batch, *data shape), or a mapping with "x0" and further heads.
        """
        if self.done:
            raise ValueError("got outputs for a run that has made all its calls: take its state")
        self.onward(outputs, self.state, self._noises)

    def onward(
        self,
        outputs: Any,
        z: Tensor,
        noises: Iterable[Tensor],
        *,
        after: After | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """The state at the next call, or the end, of what was told of the state z, whatever `state` was."""
        rows, (k, last) = self.plan.instructions, self.span
        there = () if last == k else (*rows[k + 1 : last], _made_only(rows[last]))
        self._told = outputs
        here = rows[k]._replace(given="start")
        self.state = self._walk((here, *there), z, noises, rows[k].draw, after=after, callback=callback)
        self.made += 1
        return self.state

    def _walk(
        self, steps: tuple[Instruction, ...], z: Tensor, noises: Iterable[Tensor], drawn: int, **hooks: Any
    ) -> Tensor:
        plan = Plan(self.plan.process, self.plan.output, steps, reuse=False, columns=self.plan.columns)
        with torch.no_grad():
            return walk(plan, z, noises, given=self._given, live=self.live, drawn=drawn, **hooks)


def _made_only(step: Instruction) -> Instruction:
    """The instruction without its call."""
    return step._replace(call=None, offered={})
