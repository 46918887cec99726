r"""Pictures by words: a UNet of diffusers that is told a few words in place of a class.

    words -> numbers n_1 ... n_L (0: none) -> e_l = E[n_l], e_0 always there
    heads h: sum_l softmax_l(k_h . e_l) e_l   ->   one vector, which the UNet adds to its embedding of the time

A text is the words in it, in small letters and without an order. A word of the vocabulary is one number; any other is
told by those of its pieces of three letters that the vocabulary has (Bojanowski et al., 2017,
https://arxiv.org/abs/1607.04606), so that a word nobody trained on still says something. The vocabulary is a list in
config.json: nothing is hashed, and nothing but lists is read. No words at all are the unconditional network, which
classifier-free guidance asks for.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.files import extra

__all__ = ["LONGEST", "WordedUNet", "vocabulary_of"]

LONGEST = 64  # numbers of a text, the rest is not read
MOST = 20_000  # words and pieces of a vocabulary


def split(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return re.findall(r"\w+", text.casefold())


def pieces(word: str) -> list[str]:
    """Three letters each, with the ends marked: "cat" -> "#^ca", "#cat", "#at$"; no word has a "#"."""
    ends = f"^{word}$"
    return [f"#{ends[k : k + 3]}" for k in range(len(ends) - 2)] or [f"#{ends}"]


def vocabulary_of(texts: Iterable[str]) -> tuple[str, ...]:
    """The words that several texts have, and the pieces of all others, the commonest first."""
    counts = Counter(word for text in texts for word in set(split(text)))
    known = Counter({word: n for word, n in counts.items() if n > 1})
    rest = Counter(piece for word in counts if word not in known for piece in set(pieces(word)))
    order = lambda found: sorted(found, key=lambda name: (-found[name], name))  # noqa: E731
    return tuple([*order(known), *order(rest)][:MOST])


class WordedUNet(nn.Module):
    """A `UNet2DModel` of plain blocks, and the words that it is told.

    Args:
        vocabulary: words, and pieces of words that begin with "#".
        sample_size, in_channels, out_channels, layers_per_block, block_out_channels, norm_num_groups: the UNet's own.
        width: numbers of a word.
        heads: vectors that are read out of a text.
    """

    def __init__(
        self,
        vocabulary: tuple[str, ...],
        sample_size: int | tuple[int, int],
        in_channels: int,
        out_channels: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: int = 1,
        norm_num_groups: int = 16,
        width: int = 96,
        heads: int = 4,
    ) -> None:
        super().__init__()
        own = {"sample_size": sample_size, "in_channels": in_channels, "out_channels": out_channels,
               "layers_per_block": layers_per_block, "block_out_channels": tuple(block_out_channels),
               "norm_num_groups": norm_num_groups}  # fmt: skip
        self.config: dict[str, Any] = {"vocabulary": tuple(vocabulary), **own, "width": width, "heads": heads}
        self.numbers = {word: k + 1 for k, word in enumerate(vocabulary)}
        n = len(block_out_channels)
        self.unet = extra("diffusers", "diffusers", "a WordedUNet").UNet2DModel(
            **own, down_block_types=("DownBlock2D",) * n, up_block_types=("UpBlock2D",) * n, add_attention=False,
            class_embed_type="identity",
        )  # fmt: skip
        self.words = nn.Embedding(len(vocabulary) + 1, width)
        self.keys = nn.Linear(width, heads, bias=False)
        self.told = nn.Linear(heads * width, 4 * block_out_channels[0])

    @property
    def known(self) -> list[str]:
        """The words of the vocabulary, the commonest first."""
        return [word for word in self.numbers if not word.startswith("#")]

    def read(self, texts: Sequence[str]) -> Tensor:
        """The numbers of texts, (texts, LONGEST) int64, with zeros behind."""
        out = torch.zeros(len(texts), LONGEST, dtype=torch.long)
        for row, text in zip(out, texts, strict=True):
            parts = (part for word in split(text) for part in ([word] if word in self.numbers else pieces(word)))
            known = [self.numbers[part] for part in parts if part in self.numbers][:LONGEST]
            row[: len(known)] = torch.tensor(known, dtype=torch.long)
        return out

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor) -> Any:
        """What the UNet returns for x (B, C, H, W), times t and words (B, L), or (B,) of zeros: none."""
        numbers = class_labels.reshape(len(x), -1)
        none = torch.zeros_like(numbers[:, :1])
        e = self.words(torch.cat([none, numbers], 1))  # the first is always there
        scores = self.keys(e).masked_fill(torch.cat([none != 0, numbers == 0], 1)[..., None], -1e4)
        read = torch.einsum("blh,blw->bhw", scores.softmax(1).to(e.dtype), e)
        return self.unet(x, t, class_labels=self.told(read.flatten(1)))
