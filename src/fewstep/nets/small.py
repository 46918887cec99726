r"""A small network for points and vectors: a multilayer perceptron of (x, t), and of what else it is told.

    x, [t, sin(2^j pi t / 2), cos(2^j pi t / 2)]_j, the same of s, class_labels, w  ->  width, SiLU, ...  ->  x

The second time s, and the guidance w, enter through layers that begin at zero: a network that was trained without them
goes on from where it stands.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["MLP", "Features", "Temporal", "zeroed"]


class Features(nn.Module):
    """A number as itself, and its sines and cosines at octaves from a period of 4."""

    def __init__(self, octaves: int = 5) -> None:
        super().__init__()
        if not 0 < octaves <= 16:
            raise ValueError(f"got octaves={octaves}: give 1 to 16")
        self.rates = [2.0**j * math.pi / 2 for j in range(octaves)]

    @property
    def count(self) -> int:
        return 1 + 2 * len(self.rates)

    def forward(self, t: Tensor) -> Tensor:
        """(batch,) -> (batch, count)."""
        angles = t[:, None] * torch.tensor(self.rates, dtype=t.dtype, device=t.device)
        return torch.cat([t[:, None], angles.sin(), angles.cos()], 1)


class MLP(nn.Module):
    """A perceptron on data of any shape, taken as a vector.

    Args:
        size: numbers in a state.
        width: of the hidden layers.
        depth: how many of them.
        classes: how many labels, 0 meaning none; 0: it takes no labels.
        destination: it takes a second time s.
        guided: it takes a guidance w.
        octaves: of the features of time; None: 5, or 2 with a destination, as derivatives along t ask for slow ones.
        outputs: tensors of the state's shape that it returns; with more than one, a tuple.
        beside: numbers of a y that it sees beside the state; 0: it takes none.
        modes: with more than one output, each has hidden states of its own, which are mixed by so many lowest
            frequencies along them (`Temporal`); 0: they share all layers.
    """

    def __init__(
        self,
        size: int,
        width: int = 96,
        depth: int = 3,
        classes: int = 0,
        destination: bool = False,
        guided: bool = False,
        outputs: int = 1,
        beside: int = 0,
        modes: int = 0,
        octaves: int | None = None,
    ) -> None:
        super().__init__()
        for name, count in (("size", size), ("width", width), ("depth", depth), ("outputs", outputs)):
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"got {name}={count}: give a whole number of at least 1")
        self.config = {"size": size, "width": width, "depth": depth, "classes": classes, "destination": destination,
                       "guided": guided, "outputs": outputs, "beside": beside, "modes": modes,
                       "octaves": octaves}  # fmt: skip
        self.outputs, self.features = outputs, Features((2 if destination else 5) if octaves is None else octaves)
        count = self.features.count
        self.enter = nn.Linear(size + beside + count, width)
        self.second = zeroed(nn.Linear(count, width, bias=False)) if destination else None
        self.guide = zeroed(nn.Linear(count, width, bias=False)) if guided else None
        self.classes = nn.Embedding(classes + 1, width) if classes else None
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.leave = nn.Linear(width, size if modes else size * outputs)
        self.places = nn.Embedding(outputs, width) if modes else None
        self.temporal = nn.ModuleList(Temporal(width, modes) for _ in range(depth - 1) if modes)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        *,
        class_labels: Tensor | None = None,
        w: Tensor | None = None,
        y: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """The output at states x (batch, *shape), times t and s, labels (batch,) and guidance w (batch,)."""
        seen = x if y is None else torch.cat([x.flatten(1), y.to(x).expand(len(x), *y.shape[1:]).flatten(1)], 1)
        h = self.enter(torch.cat([seen.flatten(1), self.features(t)], 1))
        if self.second is not None and s is not None:
            h = h + self.second(self.features(s))
        if self.guide is not None and w is not None:
            h = h + self.guide(self.features(w.to(h.dtype) / 4))
        if self.classes is not None and class_labels is not None:
            h = h + self.classes(class_labels)
        if self.places is not None:
            h = h[:, None] + self.places.weight
        for k, layer in enumerate(self.hidden):
            h = nn.functional.silu(h)
            h = layer(h) + self.temporal[k](h) if self.places is not None else layer(h)
        out = self.leave(nn.functional.silu(h))
        if self.places is not None:
            return tuple(part.reshape(x.shape) for part in out.unbind(1))
        if self.outputs == 1:
            return out.reshape(x.shape)
        return tuple(part.reshape(x.shape) for part in out.chunk(self.outputs, 1))

    def told(self, *, destination: bool, guided: bool) -> MLP:
        """This network, which is told more: it returns the same until it has learned to listen."""
        more = {"destination": destination, "guided": guided, "octaves": len(self.features.rates)}
        with torch.random.fork_rng(devices=[]):
            net = MLP(**self.config | more)  # type: ignore[arg-type]
        net.load_state_dict(self.state_dict(), strict=False)
        return net


class Temporal(nn.Module):
    """irfft(W rfft(h)) along M hidden states (batch, M, width), on the lowest frequencies; it begins at zero.

    References: Zheng et al., 2022, section 4.2, https://arxiv.org/abs/2211.13449.
    """

    def __init__(self, width: int, modes: int) -> None:
        super().__init__()
        self.real = nn.Parameter(torch.zeros(modes, width, width))
        self.imaginary = nn.Parameter(torch.zeros(modes, width, width))

    def forward(self, h: Tensor) -> Tensor:
        """The mixed states, of the same shape."""
        low = torch.fft.rfft(h, dim=1)[:, : len(self.real)]
        mixed = torch.einsum("bkc,kcd->bkd", low, torch.complex(self.real, self.imaginary))
        return torch.fft.irfft(mixed, n=h.shape[1], dim=1)


def zeroed(layer: nn.Linear) -> nn.Linear:
    """The layer, which begins at zero."""
    nn.init.zeros_(layer.weight)
    return layer
