r"""A network of diffusers that is told more than a time: where a row leads, s, and a guidance w.

    emb(t)  ->  emb(t) + A f(s / scale) + B f(w / 4),   A, B zero where training begins, f as a perceptron's features

wherever the network embeds its time, so that it returns what it did until it has learned to listen. This holds for
every class whose times go through `TimestepEmbedding`: UNets add it in each block, transformers scale and shift by it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.nets.small import Features, zeroed

__all__ = ["Told"]

BESIDE = ("class_embedding", "add_embedding")  # embeddings of what is no time


class Told(nn.Module):
    """The network around another; see the module's docstring.

    Args:
        net: called as net(x, t, class_labels=y), of a class of diffusers.
        destination: it is told s.
        guided: it is told w.
        scale: of its times: 1000 where they count to it.
        octaves: of the features.
    """

    def __init__(self, net: nn.Module, destination: bool, guided: bool, scale: float = 1.0, octaves: int = 4) -> None:
        super().__init__()
        given: Any = net.config
        more = {"destination": destination, "guided": guided, "scale": scale, "octaves": octaves}
        self.config = {k: v for k, v in given.items() if not k.startswith("_")} | {
            "network": type(net).__name__,
            **more,
        }
        self.scale, self.destination, self.guided = scale, destination, guided
        self.features = Features(octaves)
        heard: list[Tensor] = []  # what every embedding of a call adds to its own
        self.heard, size = heard, self.features.count
        for name, module in [*net.named_modules()]:
            owner, _, own = name.rpartition(".")
            if type(module).__name__ == "TimestepEmbedding" and own not in BESIDE:
                setattr(net.get_submodule(owner), own, Hearing(module, size, heard, destination, guided))
            if destination and callable(change := getattr(module, "set_processor", None)):
                change(_plain_attention())  # fused attention has no derivative forward
        if not any(isinstance(module, Hearing) for module in net.modules()):
            raise ValueError(f"got a {type(net).__name__}, which embeds no time: give a network of diffusers that does")
        self.net = net

    def forward(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, *, class_labels: Tensor | None = None,
        w: Tensor | None = None,
    ) -> Any:  # fmt: skip
        """As the network inside; s defaults to t, and w to 0."""
        s = t if s is None else s
        w = torch.zeros_like(t) if w is None else w
        self.heard.extend([self.features(s / self.scale), self.features(w.to(s.dtype) / 4)])
        try:
            return self.net(x, t, class_labels=class_labels)
        finally:
            self.heard.clear()


class Hearing(nn.Module):
    """The embedding of a time, and what else a call is told."""

    def __init__(self, net: Any, count: int, heard: list[Tensor], destination: bool, guided: bool) -> None:
        super().__init__()
        self.net, self.heard = net, heard
        width = (net.linear_1 if net.linear_2 is None else net.linear_2).out_features
        self.second = zeroed(nn.Linear(count, width, bias=False)) if destination else None
        self.guide = zeroed(nn.Linear(count, width, bias=False)) if guided else None

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        out = self.net(sample, condition)
        for layer, features in zip((self.second, self.guide), self.heard, strict=True):
            out = out if layer is None else out + layer(features.to(layer.weight.dtype)).to(out.dtype)
        return out


def _plain_attention() -> Any:
    from diffusers.models.attention_processor import AttnProcessor

    return AttnProcessor()
