"""Loads folders of each hostile kind under an audit hook; prints what came of each as JSON.

Every folder holds code that would leave a mark; the hook lists what of a folder was compiled, run or opened that is not
JSON, text or safetensors, and whether a pickle looked for a class.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch

import fewstep as fs
from fewstep.interop.diffusers import FewStepScheduler

watched: list[str] = []
under = ""
DATA = (".json", ".safetensors", ".txt", ".model")


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not under:
        return
    if event == "pickle.find_class":
        watched.append(f"pickle {arguments}")
    elif event in ("open", "exec", "compile", "import"):
        found = [
            str(getattr(a, "co_filename", a)) for a in arguments if isinstance(a, str) or hasattr(a, "co_filename")
        ]
        watched.extend(f"{event} {f}" for f in found if under in f and not f.endswith(DATA) and Path(f).suffix)


CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from diffusers import DDPMPipeline as Mine, DDPMScheduler as MyScheduler, UNet2DModel as MyNet
"""


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def changed(file: Path, **new: Any) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | new))


def coded(folder: Path, file: str) -> None:
    (folder / file).write_text(CODE.format(mark=str(folder.parent / "mark")))


def pipeline_file(folder: Path) -> None:
    coded(folder, "pipeline.py")
    changed(folder / "model_index.json", _class_name=["pipeline", "Mine"])


def own_pipeline(folder: Path) -> None:
    coded(folder, "my_pipeline.py")
    changed(folder / "model_index.json", _class_name="Mine", custom_pipeline="my_pipeline")


def own_scheduler(folder: Path) -> None:
    coded(folder, "scheduler/mine.py")
    changed(folder / "model_index.json", scheduler=["mine", "MyScheduler"])


def own_network(folder: Path) -> None:
    coded(folder, "unet/mine.py")
    changed(folder / "model_index.json", unet=["mine", "MyNet"])
    changed(folder / "unet" / "config.json", _class_name=["mine", "MyNet"], auto_map={"AutoModel": "mine.MyNet"})


def named(**new: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "model_index.json", **new)


def auto_map(folder: Path) -> None:
    coded(folder, "unet/mine.pyx")  # no name of code: the words alone
    changed(folder / "unet" / "config.json", auto_map={"AutoModel": "mine.MyNet"})


def tokenizer(folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    changed(folder / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.T", None]})


def library(folder: Path) -> None:
    (folder / "unet" / "kernel.so").write_bytes(b"\x7fELF")


def pickled(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"w": Bomb(folder.parent / "mark")}, folder / "unet" / "diffusion_pytorch_model.bin")


def link(name: str) -> Callable[[Path], None]:
    def then(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir()
        shutil.move(folder / name, outside / Path(name).name)
        (folder / name).symlink_to(outside / Path(name).name)

    return then


def shard(name: str) -> Callable[[Path], None]:
    def then(folder: Path) -> None:
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        outside = shutil.move(file, folder.parent / "other.safetensors")
        from fewstep.files import load_tensors

        names = dict.fromkeys(load_tensors(outside), name.format(outside=outside))
        (folder / "unet" / f"{file.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))

    return then


def fifo(name: str) -> Callable[[Path], None]:
    def then(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return then


def device(folder: Path) -> None:
    (folder / "unet" / "config.json").unlink()
    (folder / "unet" / "config.json").symlink_to("/dev/zero")


def deep(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text('{"a":' * 10**5 + "1" + "}" * 10**5) and None


def wide(folder: Path) -> None:
    with (folder / "unet" / "config.json").open("wb") as file:
        file.truncate(2**34)


def long_header(folder: Path) -> None:
    with (folder / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.write((2**33).to_bytes(8, "little"))
        file.truncate(2**34)


def network(**new: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "unet" / "config.json", **new)


def scheduler(**new: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "scheduler" / "scheduler_config.json", **new)


HOSTILE: dict[str, Callable[[Path], None]] = {
    "pipeline.py": pipeline_file,
    "custom_pipeline": own_pipeline,
    "a scheduler's code": own_scheduler,
    "a network's code": own_network,
    "a stray .py": lambda d: coded(d, "unet/modeling.py"),
    "a .pyc": lambda d: (d / "x.pyc").write_bytes(b"\0") and None,
    "a library": library,
    "auto_map": auto_map,
    "a tokenizer's auto_map": tokenizer,
    "trust_remote_code": named(trust_remote_code=True),
    "class of os": named(scheduler=["os", "system"]),
    "class of a path": named(scheduler=["../evil", "X"]),
    "class of builtins": named(unet=["builtins", "eval"]),
    "hidden class": named(unet=["diffusers", "__import__"]),
    "three words": named(unet=["diffusers", "UNet2DModel", "evil"]),
    "a number as class": named(unet=["diffusers", 3]),
    "an object as class": named(unet={"diffusers": "UNet2DModel"}),
    "a pipeline of a path": named(_class_name="../evil/Mine"),
    "a pickle alone": pickled,
    "a linked config": link("unet/config.json"),
    "linked weights": link("unet/diffusion_pytorch_model.safetensors"),
    "a linked folder": link("unet"),
    "a linked index": link("model_index.json"),
    "a shard above": shard("../../other.safetensors"),
    "an absolute shard": shard("{outside}"),
    "a FIFO as config": fifo("unet/config.json"),
    "a FIFO as weights": fifo("unet/diffusion_pytorch_model.safetensors"),
    "a FIFO beside": fifo("unet/more.json"),
    "a device as config": device,
    "a deep index": deep("model_index.json"),
    "a deep config": deep("unet/config.json"),
    "a deep scheduler": deep("scheduler/scheduler_config.json"),
    "16 GB of config": wide,
    "8 GB of header": long_header,
    "terabytes of network": network(block_out_channels=[10**6, 10**6]),
    "layers without end": network(layers_per_block=10**9),
    "a scheduler of os": scheduler(_class_name="os.system"),
    "a scheduler of a path": scheduler(_class_name=["mine", "MyScheduler"]),
    "a scheduler of terabytes": scheduler(num_train_timesteps=10**12),
}


def main() -> None:
    global under
    diffusers.utils.logging.set_verbosity(60)
    sys.addaudithook(hook)
    whole = Path(tempfile.mkdtemp())
    net = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    diffusers.DDPMPipeline(net, diffusers.DDPMScheduler()).save_pretrained(whole / "pipe")
    fs.load(whole / "pipe")
    report = {"diffusers": diffusers.__version__, "cases": {}}
    for name, change in HOSTILE.items():
        folder = Path(tempfile.mkdtemp()) / "pipe"
        shutil.copytree(whole / "pipe", folder)
        change(folder)
        watched.clear()
        begun, under = time.perf_counter(), str(folder.parent)
        outcomes = []
        doors: list[Callable[[], Any]] = [lambda at=folder: fs.load(at), lambda at=folder: fs.load(at / "unet")]
        if name.startswith(("a scheduler of", "a deep scheduler")):
            doors += [lambda at=folder: FewStepScheduler.from_pretrained(at)]
        for door in doors:
            try:
                door()
                outcomes.append("loaded")
            except Exception as error:
                outcomes.append(f"{type(error).__name__}: {error}")
        under = ""
        report["cases"][name] = {
            "outcomes": outcomes,
            "seconds": time.perf_counter() - begun,
            "events": [*watched],
            "mark": (folder.parent / "mark").exists(),
        }
        shutil.rmtree(folder.parent)
    shutil.rmtree(whole)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
