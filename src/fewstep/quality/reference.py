"""Reference features: what real images look like in the classifier's feature space, so that no data set is needed.

`test` is what samples are compared with; `held_out` are training images the classifier never saw, for the
data-to-data floor: the value a perfect model would reach with as many samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.files import load_tensors, save_tensors
from fewstep.quality.classifier import SHIPPED
from fewstep.quality.metrics import Quality, compare

__all__ = ["Reference", "load_reference", "save_reference"]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Features of real images, float32."""

    test: Tensor  # (n, d), the test set
    test_labels: Tensor  # (n,) int64
    held_out: Tensor  # (m, d), training images unseen by the classifier, in random order
    held_out_labels: Tensor  # (m,) int64

    def quality(self, features: Tensor, *, k: int = 5) -> Quality:
        """All quality numbers of samples with these features against the test set."""
        return compare(self.test, features, k=k)

    def floor(self, size: int, *, k: int = 5) -> Quality:
        """The quality numbers of the first `size` held-out real images: what a perfect model reaches."""
        if not 4 <= size <= len(self.held_out):
            raise ValueError(
                f"a floor for {size} samples was asked for; there are {len(self.held_out)} held-out images; "
                f"choose 4 to {len(self.held_out)} samples."
            )
        return self.quality(self.held_out[:size], k=k)


def save_reference(path: str | Path, reference: Reference) -> None:
    """Writes features as float16 and labels as uint8 in one safetensors file."""
    tensors = {"test": reference.test.half(), "held_out": reference.held_out.half()}
    labels = {"test_labels": reference.test_labels, "held_out_labels": reference.held_out_labels}
    save_tensors(path, tensors | {k: v.to(torch.uint8) for k, v in labels.items()})


def load_reference(path: str | Path | None = None) -> Reference:
    """The reference of a file written by `save_reference`; None: the shipped Fashion-MNIST one."""
    path = SHIPPED / "reference.safetensors" if path is None else Path(path)
    tensors = load_tensors(path)
    names = ("test", "test_labels", "held_out", "held_out_labels")
    if set(tensors) != set(names):
        raise ValueError(f"{path} holds {sorted(tensors)}; a reference file holds {sorted(names)}; name another file.")
    for rows, labels in (("test", "test_labels"), ("held_out", "held_out_labels")):
        shapes = tuple(tensors[rows].shape), tuple(tensors[labels].shape)
        one_space = shapes[0][1:] == tuple(tensors["test"].shape[1:]) and len(shapes[0]) == 2
        if not one_space or shapes[0][0] < 4 or shapes[1] != shapes[0][:1]:
            raise ValueError(
                f"{path} holds {rows} of shape {shapes[0]} and {labels} of {shapes[1]}; features (n, d) of at least 4 "
                "pictures, with one label each and one d, are needed; write the file again."
            )
    return Reference(**{n: tensors[n].long() if n.endswith("labels") else tensors[n].float() for n in names})
