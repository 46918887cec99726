r"""How a row is made: one pass over its inputs, by the form that measures best for the size of the state.

Most rows read one state that no later row needs, and some outputs: z_k = c z_i + sum_j w_j y_j. So z_k is written over
z_i, and of what is left to choose `benchmarks/row_cost.py` says (a processor; numbers in a state):

| state        | form                                                                              |
|--------------|-----------------------------------------------------------------------------------|
| up to 2^15   | `SideBySide`: outputs are copied into columns of Y as they come, then z <- c z + Y w |
| more         | `InPlace`: z <- c z, then z <- z + w_j y_j for each j                              |
| from 2^19 on | the same for one block of 2^17 numbers after the other, which stays in the cache   |
| from 2^19 on | with `compile`, and on a GPU with it: one compiled kernel                          |
| any          | `Fresh`: new tensors, where somebody may look at the old ones or differentiate     |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial

import torch
from torch import Tensor

from fewstep.loop.plan import Columns, Instruction
from fewstep.process.operator import Coefficient, apply
from fewstep.tableau.form import Symbol

__all__ = ["Fresh", "InPlace", "Rows", "SideBySide"]

BLOCK = 2**17
LARGE = 2**19


class Rows(ABC):
    """The live tensors of a walk by symbol, and how they become the next row."""

    def __init__(self, live: dict[Symbol, Tensor]) -> None:
        self.live = live
        self.columns: Mapping[Symbol, Tensor] = {}  # where outputs are kept that may be written there at once

    @abstractmethod
    def make(self, step: Instruction) -> Tensor:
        """The state of a row; lets go of what no later row reads."""

    @abstractmethod
    def keep(self, symbol: Symbol, y: Tensor, z: Tensor) -> None:
        """Keeps an output of the call at z."""

    @abstractmethod
    def derive(self, symbol: Symbol, z: Tensor, p: Coefficient, y: Tensor, q: Coefficient) -> None:
        """Keeps p z + q y, what a derived head is."""

    @abstractmethod
    def spend(self, step: Instruction) -> None:
        """Lets go of a state that only its own call has read."""


class Fresh(Rows):
    """Every row is a new tensor, which may be kept or differentiated."""

    def make(self, step: Instruction) -> Tensor:
        z = _sum([(self.live[s], c) for s, c in step.terms])
        _free(self.live, step.free)
        return z

    def keep(self, symbol: Symbol, y: Tensor, z: Tensor) -> None:
        self.live[symbol] = y

    def derive(self, symbol: Symbol, z: Tensor, p: Coefficient, y: Tensor, q: Coefficient) -> None:
        self.live[symbol] = _sum([(z, p), (y, q)])

    def spend(self, step: Instruction) -> None:
        del self.live[step.state]


class InPlace(Rows):
    """A row is written over the state that it is the last to read, or else over one that was let go of before."""

    def __init__(self, live: dict[Symbol, Tensor], start: Tensor, *, compile: bool = False) -> None:
        super().__init__(live)
        self.pool: list[Tensor] = []
        self.into: Callable[..., Tensor] = _chain
        if compile and (start.device.type != "cpu" or start.numel() >= LARGE):
            self.into = _compiled()
        elif start.device.type == "cpu" and start.numel() >= LARGE:
            self.into = partial(_by_block, start.new_empty(BLOCK))

    def make(self, step: Instruction) -> Tensor:
        (x, c), *rest = [(self.live[s], c) for s, c in step.terms]
        if isinstance(c, float):
            z = self.into(x, c, rest, x if step.over else self.pool.pop() if self.pool else torch.empty_like(x))
        else:
            z = _add(apply(c, x), rest)
        self.pool.extend(self.live[s] for s in step.ours)
        _free(self.live, step.free)
        return z

    def keep(self, symbol: Symbol, y: Tensor, z: Tensor) -> None:
        self.live[symbol] = _apart(y, z)

    def derive(self, symbol: Symbol, z: Tensor, p: Coefficient, y: Tensor, q: Coefficient) -> None:
        self.live[symbol] = _add(apply(p, z), [(y, q)])

    def spend(self, step: Instruction) -> None:
        z = self.live.pop(step.state)
        if step.given is None:
            self.pool.append(z)


class SideBySide(Rows):
    """As `InPlace`, but a row adds all its outputs at once: they lie in the columns of one matrix."""

    def __init__(self, columns: Columns, start: Tensor) -> None:
        super().__init__({})
        n = start.numel()
        matrix = start.new_empty(columns.count, n)
        self.columns = {s: matrix[at].view(start.shape) for s, at in columns.at.items()}
        strided = {
            (first, by, count): matrix.as_strided((n, count), (1, by * n), first * n)
            for first, by, count in {run for row in columns.runs for run in row}
        }
        weights = iter(columns.weights.to(start).split([run[2] for row in columns.runs for run in row]))
        self.sums = [
            ([(strided[run], next(weights)) for run in runs], rest)
            for runs, rest in zip(columns.runs, columns.rest, strict=True)
        ]
        self.own: dict[Symbol, tuple[Tensor, Tensor]] = {}  # the states made here: as a vector, and in their shape
        self.pool: list[tuple[Tensor, Tensor]] = []
        self.like = start

    def make(self, step: Instruction) -> Tensor:
        symbol, c = step.terms[0]
        if step.over:
            vector, z = self.own.pop(symbol)
        else:
            vector, z = self.pool.pop() if self.pool else self._new()
            x = self.live[symbol]
            torch.mul(x, c, out=z) if isinstance(c, float) else z.copy_(apply(c, x))
            c = 1.0
        runs, rest = self.sums[step.row]
        for columns, weights in runs:
            vector.addmv_(columns, weights, beta=c)
            c = 1.0
        if c != 1.0:
            z.mul_(c)
        if rest:
            _add(z, [(self.live[s], c) for s, c in rest])
        self.own[step.state] = vector, z
        for symbol in step.ours:
            self.pool.append(self.own.pop(symbol))
        _free(self.live, step.free)
        return z

    def keep(self, symbol: Symbol, y: Tensor, z: Tensor) -> None:
        column = self.columns.get(symbol)
        self.live[symbol] = _apart(y, z) if column is None else y if y is column else column.copy_(y)

    def derive(self, symbol: Symbol, z: Tensor, p: Coefficient, y: Tensor, q: Coefficient) -> None:
        column = self.columns.get(symbol)
        if column is not None and isinstance(p, float):
            self.live[symbol] = _add(torch.mul(z, p, out=column), [(y, q)])
        else:
            self.keep(symbol, _add(apply(p, z), [(y, q)]), z)

    def spend(self, step: Instruction) -> None:
        del self.live[step.state]
        if step.given is None:
            self.pool.append(self.own.pop(step.state))

    def _new(self) -> tuple[Tensor, Tensor]:
        vector = self.like.new_empty(self.like.numel())
        return vector, vector.view(self.like.shape)


def _sum(terms: Sequence[tuple[Tensor, Coefficient]]) -> Tensor:
    """The sum of coefficient * tensor, in new tensors."""
    (x, c), *rest = terms
    total = apply(c, x)
    for x, c in rest:
        total = total.add(x, alpha=c) if isinstance(c, float) else total.add(apply(c, x))
    return total


def _apart(y: Tensor, z: Tensor) -> Tensor:
    """An output, or a copy of one that is a view of the state: later rows are written over that."""
    return y.clone() if y.untyped_storage().data_ptr() == z.untyped_storage().data_ptr() else y


def _add(total: Tensor, terms: Iterable[tuple[Tensor, Coefficient]]) -> Tensor:
    """Adds terms to a tensor in place."""
    for x, c in terms:
        total.add_(x, alpha=c) if isinstance(c, float) else total.add_(apply(c, x))
    return total


def _chain(x: Tensor, c: float, terms: Sequence[tuple[Tensor, Coefficient]], out: Tensor) -> Tensor:
    """The sum c x + terms into `out`, which may be x."""
    return _add(x.mul_(c) if out is x else torch.mul(x, c, out=out), terms)


@cache
def _compiled() -> Callable[..., Tensor]:
    """The same as one kernel."""
    return torch.compile(lambda x, c, terms, out: out.copy_(_sum([(x, c), *terms])))


def _by_block(bracket: Tensor, x: Tensor, c: float, terms: Sequence[tuple[Tensor, Coefficient]], out: Tensor) -> Tensor:
    """The same, a block of the bracket's size after the other, where all of them lie in memory alike.

    As c x + w (y + (v / w) y' + ...): what is in the bracket stays in the cache, and its first two terms are read from
    memory side by side, which is faster than one after the other.
    """
    if not all(isinstance(w, float) and y.is_contiguous() for y, w in [(x, c), (out, c), *terms]):
        return _chain(x, c, terms, out)
    terms = sorted(terms, key=lambda term: -abs(term[1]))  # no ratio above 1
    ratios = [w / terms[0][1] for _, w in terms]
    parts, *others = (y.view(-1).split(len(bracket)) for y in (x, *(y for y, _ in terms)))
    made = parts if out is x else out.view(-1).split(len(bracket))
    for part, into, *ys in zip(parts, made, *others, strict=True):
        if len(ys) > 1:
            room = bracket if len(part) == len(bracket) else bracket[: len(part)]
            total = torch.add(ys[0], ys[1], alpha=ratios[1], out=room)
            for y, ratio in zip(ys[2:], ratios[2:], strict=True):
                total.add_(y, alpha=ratio)
            ys = [total]
        _chain(part, c, [(y, terms[0][1]) for y in ys], into)
    return out


def _free(live: dict[Symbol, Tensor], symbols: Iterable[Symbol]) -> None:
    """Lets go of what no later row reads."""
    for symbol in symbols:
        del live[symbol]
