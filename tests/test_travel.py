"""Schedulers and denoisers are pickled, copied and saved by torch, and go on as they were."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fewstep as fs
from fewstep.denoiser import presets

pytest.importorskip("diffusers")

from diffusers_march import FLOW, SD, march, net, noise  # noqa: E402
from fewstep.interop.diffusers import FewStepScheduler  # noqa: E402


def saved(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "torch.save": saved,
    "deepcopy": deepcopy,
}
CONFIGS = {
    "clip_sample": SD | {"clip_sample": True, "clip_sample_range": 0.5},
    "thresholding": SD | {"thresholding": True, "sample_max_value": 1.5},
    "flow": FLOW | {"use_karras_sigmas": True},
    "inverted flow": FLOW | {"invert_sigmas": True},
    "edm": {"sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80.0, "prediction_type": "epsilon"},
    "zero snr": SD | {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("solver", "config"), [*(("unipc-3", name) for name in CONFIGS), ("dpmpp-2m-sde", "thresholding"), ("heun", "flow")]
)
def test_a_scheduler_travels(solver: str, config: str, way: str) -> None:
    """New, set, in the middle of a run, with a later begin, and after it."""
    copied, x = WAYS[way], noise()
    s = FewStepScheduler.from_config(CONFIGS[config], solver=solver)
    twin = copied(s)
    for one in (s, twin):
        one.set_timesteps(6)
    want = march(s, x)
    assert torch.equal(march(twin, x), want)
    assert torch.equal(march(copied(s), x), want)  # after a run, without set_timesteps
    z = x
    for t in s.timesteps[:2]:
        z = s.step(net(s.scale_model_input(z, t), t), t, z).prev_sample
    twin, y = copied(s), z.clone()
    for t in s.timesteps[2:]:
        z, y = (one.step(net(one.scale_model_input(v, t), t), t, v).prev_sample for one, v in ((s, z), (twin, y)))
    assert torch.equal(z, want)
    assert torch.equal(y, want)
    s.set_begin_index(2)
    twin = copied(s)
    assert twin.begin_index == 2
    assert torch.equal(march(twin, x), march(s, x))


@pytest.mark.parametrize("way", WAYS)
def test_a_scheduler_of_a_table_travels(way: str) -> None:
    s = FewStepScheduler.from_config(SD, solver=fs.tabulate("dpmpp-2m", FewStepScheduler(**SD).process, steps=4))
    assert torch.equal(march(WAYS[way](s), noise()), march(s, noise()))


class Scaled(nn.Module):
    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
        return self.scale * x * torch.cos(t).reshape(-1, *[1] * (x.ndim - 1))


class TimeFirst(Scaled):
    def forward(self, t: Tensor, x: Tensor, **_: Any) -> Tensor:
        return super().forward(x, t)


A, B = fs.wrap(Scaled(), fs.VP(), "v", time="index"), fs.wrap(Scaled(0.3), fs.VP(), "v", time="index")
DENOISERS: dict[str, Any] = {
    **{f"wrap {kind}": fs.wrap(Scaled(), fs.VP(), kind) for kind in ("noise", "data", "v", "score")},
    "wrap edm": fs.wrap(Scaled(), fs.EDM(), "edm", sigma_data=0.5),
    "guide": fs.guide(A, B, 3.0, interval=(0.2, 0.8)),
    "thresholded": fs.Thresholded(A, 0.9),
    "static": fs.Thresholded(A, None),
    "retimed": fs.retime(A, fs.Flow()),
    "differentiated": fs.Differentiated(A, fs.VP()),
    "mixture": fs.Mixture(fs.VP(), torch.zeros(2, 3), torch.ones(2)),
    "torchcfm": presets.torchcfm(TimeFirst()),
    "flow_matching": presets.flow_matching(Scaled()),
    "consistency": presets.consistency(Scaled()),
    "edm": presets.edm(Scaled()),
    "score_sde": presets.score_sde(Scaled(), fs.VP()),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_travels(name: str, way: str) -> None:
    d, z = DENOISERS[name], torch.randn(2, 3)
    assert torch.equal(WAYS[way](d)(z, 0.5), d(z, 0.5))
