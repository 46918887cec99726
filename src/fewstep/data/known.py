"""Data sets that are recognised."""

from __future__ import annotations

__all__ = ["KNOWN_DATA"]

# Licence and attribution of data sets that are recognised by the fingerprint of their images and labels.
KNOWN_DATA = {
    "1f243a60b4b748a4": "Fashion-MNIST, Copyright (c) 2017 Zalando SE, https://tech.zalando.com, MIT licence "
    "(Xiao, Rasul and Vollgraf 2017, https://arxiv.org/abs/1708.07747)",
}
