"""Trained models: a network with its process, labels and facts; as folders; and samples of them."""

from __future__ import annotations

from fewstep.model.folder import save_model
from fewstep.model.model import NETWORKS, Model, build_network, call_network

__all__ = ["NETWORKS", "Model", "build_network", "call_network", "save_model"]
