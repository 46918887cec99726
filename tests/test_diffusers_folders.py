"""Pipeline folders as people have them: variants, shards, the cache of the Hub, nulls, foreign weights."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fewstep as fs
from fewstep.cli import main
from fewstep.denoiser.base import range_of
from fewstep.files import load_tensors, save_tensors

diffusers = pytest.importorskip("diffusers")

import diffusers_tiny as tiny  # noqa: E402
from fewstep.interop.diffusers import FewStepScheduler, load_folder  # noqa: E402

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHARDS = f"{WEIGHTS}.index.json"


def pipe(**config: Any) -> Any:
    net = diffusers.UNet2DModel(
        **{
            "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "attention_head_dim": 4,
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        }
        | config
    )  # fmt: skip
    return tiny.quiet(diffusers.DDPMPipeline(net.eval(), diffusers.DDPMScheduler(clip_sample=False)))


def drawn(folder: str | Path, label: Any = None, variant: str | None = None) -> torch.Tensor:
    model = fs.load(folder, variant=variant)
    return fs.sample(model.denoiser(label), model.process, steps=2, shape=(2, *model.shape), seed=0, progress=False)


def changed(file: Path, **new: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | new))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("whole")
    pipe().save_pretrained(at)
    return at


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "pipe"))


def sharded(folder: Path, variant: str | None = None) -> Path:
    net = diffusers.UNet2DModel.from_pretrained(str(folder / "unet"))
    shutil.rmtree(folder / "unet")
    net.save_pretrained(folder / "unet", max_shard_size="20KB", variant=variant)
    return folder / "unet"


def test_every_name_of_a_folder_is_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = drawn(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    for name in (f"{folder}/", "~/pipe", "pipe", "./pipe/unet", folder / "unet"):
        assert torch.equal(drawn(name), want)
    monkeypatch.chdir(folder)
    assert torch.equal(drawn("."), want)
    monkeypatch.chdir(folder / "unet")
    assert torch.equal(drawn("."), want)
    with pytest.raises(ValueError, match="model_index.json is no folder"):
        fs.load(folder / "model_index.json")


def test_the_cache_of_the_hub_is_a_folder(folder: Path) -> None:
    """snapshots/<revision>/file -> ../../blobs/<hash>."""
    want, cache = drawn(folder), folder.parent / "models--some--one"
    snapshot = cache / "snapshots" / "0123abcd"
    for i, file in enumerate(path for path in sorted(folder.rglob("*")) if path.is_file()):
        blob, link = cache / "blobs" / f"{i:064x}", snapshot / file.relative_to(folder)
        for path in (blob, link):
            path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert torch.equal(drawn(snapshot), want)
    (snapshot / "unet" / WEIGHTS).unlink()
    (snapshot / "unet" / WEIGHTS).symlink_to(folder / "unet" / WEIGHTS)
    with pytest.raises(ValueError, match="out of its folder"):
        fs.load(snapshot)


def test_a_link_to_itself_and_a_shard_that_is_no_name_are_refused(folder: Path) -> None:
    link = folder / "unet" / "other.json"
    link.symlink_to(link.name)
    with pytest.raises(ValueError, match="other.json is a link that ends nowhere|is no regular file"):
        fs.load(folder)
    link.unlink()
    index = sharded(folder) / SHARDS
    about = json.loads(index.read_text())
    index.write_text(json.dumps(about | {"weight_map": about["weight_map"] | {"x": ["y"]}}))
    with pytest.raises(ValueError, match=r"names the shard \['y'\]"):
        fs.load(folder)


def test_a_variant_alone_is_read(folder: Path) -> None:
    want, unet = drawn(folder), folder / "unet"
    (unet / WEIGHTS).rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(drawn(folder), want)
    shutil.copy(unet / "diffusion_pytorch_model.fp16.safetensors", unet / "diffusion_pytorch_model.bf16.safetensors")
    with pytest.raises(ValueError, match="the variants bf16, fp16"):
        fs.load(folder)
    assert torch.equal(drawn(folder, variant="fp16"), want)
    other = load_tensors(unet / "diffusion_pytorch_model.bf16.safetensors")
    save_tensors(unet / "diffusion_pytorch_model.bf16.safetensors", {k: t + 0.01 for k, t in other.items()})
    assert not torch.equal(drawn(folder, variant="bf16"), want)
    shutil.copy(unet / "diffusion_pytorch_model.fp16.safetensors", unet / WEIGHTS)
    assert torch.equal(drawn(folder), want)
    assert fs.load(folder, variant="bf16").weights != fs.load(folder).weights
    with pytest.raises(ValueError, match="got variant='fp8' for .*unet, which has the variants bf16, fp16: give one"):
        fs.load(folder, variant="fp8")
    with pytest.raises(ValueError, match="a model folder, whose weights have none"):
        fs.load(variant="fp16")


def test_half_weights_run_in_float32(folder: Path) -> None:
    pipe().to(torch.float16).save_pretrained(folder, variant="fp16")
    (folder / "unet" / WEIGHTS).unlink()
    model = fs.load(folder)
    assert model.dtype == torch.float32
    half = load_tensors(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert all(torch.equal(t, half[name].float()) for name, t in model.net.state_dict().items())
    assert fs.load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_one_network_and_have_a_fingerprint(folder: Path, variant: str | None) -> None:
    want, whole = drawn(folder), fs.load(folder).weights
    unet = sharded(folder, variant)
    assert len([*unet.glob("*.safetensors")]) > 1
    assert torch.equal(drawn(folder), want)
    found = fs.load(folder).weights
    assert found is not None
    assert found == fs.load(folder).weights != whole
    name = sorted(unet.glob("*.safetensors"))[0]
    tensors = load_tensors(name)
    tensors[next(iter(tensors))] += 1
    save_tensors(name, tensors)
    assert fs.load(folder).weights != found


def test_statistics_know_a_sharded_network(folder: Path) -> None:
    sharded(folder)
    model = fs.load(folder)
    for weights in (model.weights, "0" * 64):
        levels = torch.tensor([-4.0, 0.0, 4.0], dtype=torch.float64)
        fs.Statistics(log_snr=levels, eps2=levels.exp(), weights=weights).save(folder / fs.stats.FILE)
        if weights == model.weights:
            assert fs.stats.attach(fs.Analytic(), model).statistics.weights == weights
        else:
            with pytest.raises(ValueError, match="measure the statistics again"):
                fs.stats.attach(fs.Analytic(), model)


def with_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def then(folder: Path) -> None:
        tensors = load_tensors(folder / "unet" / WEIGHTS)
        change(tensors)
        save_tensors(folder / "unet" / WEIGHTS, tensors)

    return then


def with_shards(change: Callable[[dict[str, str], list[str]], Any]) -> Callable[[Path], None]:
    def then(folder: Path) -> None:
        index = sharded(folder) / SHARDS
        about = json.loads(index.read_text())
        change(about["weight_map"], sorted(set(about["weight_map"].values())))
        index.write_text(json.dumps(about))

    return then


def with_config(**new: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder / "unet" / "config.json", **new)


def other_class(folder: Path) -> None:
    net = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, num_layers=1, sample_size=8, in_channels=3
    )
    net.save_pretrained(folder.parent / "dit")
    shutil.copy(folder.parent / "dit" / WEIGHTS, folder / "unet" / WEIGHTS)


def empty(folder: Path) -> None:
    (folder / "unet" / WEIGHTS).unlink()


def pickled(folder: Path) -> None:
    empty(folder)
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")


def a_shard_gone(folder: Path) -> None:
    sorted(sharded(folder).glob("*.safetensors"))[1].unlink()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a tensor missing": (with_tensors(lambda t: t.pop("conv_in.weight")), "has conv_in.weight as missing"),
    "the last missing": (with_tensors(lambda t: t.pop("conv_out.bias")), "has conv_out.bias as missing"),
    "one too many": (with_tensors(lambda t: t.update(more=torch.zeros(1))), "asks for none"),
    "another shape": (with_tensors(lambda t: t.update({"conv_in.bias": torch.zeros(9)})), r"as \(9,\)"),
    "integers": (
        with_tensors(lambda t: t.update({"conv_in.bias": torch.zeros(8, dtype=torch.int64)})),
        "conv_in.bias in I64",
    ),
    "another class's weights": (other_class, "asks for"),
    "a truncated file": (
        lambda d: (d / "unet" / WEIGHTS).write_bytes((d / "unet" / WEIGHTS).read_bytes()[:-40]),
        "truncated",
    ),
    "no weights": (empty, "is missing"),
    "a pickle alone": (pickled, "never opened"),
    "a shard gone": (a_shard_gone, "is missing"),
    "a shard out of the folder": (
        with_shards(lambda names, files: names.update({"conv_in.bias": "../../../x.safetensors"})),
        "names the shard",
    ),
    "an absolute shard": (
        with_shards(lambda names, files: names.update({"conv_in.bias": "/tmp/x.safetensors"})),
        "names the shard",
    ),
    "a pickled shard": (with_shards(lambda names, files: names.update(a="x.bin")), "names the shard 'x.bin'"),
    "a shard that is a number": (with_shards(lambda names, files: names.update(a=3)), "names the shard 3"),
    "a tensor in no shard": (
        with_shards(lambda names, files: names.update(more=files[0])),
        "does not hold, which the index names: more",
    ),
    "a tensor in another shard": (
        with_shards(lambda names, files: names.pop("conv_in.bias")),
        "which the index does not name: conv_in.bias",
    ),
    "no weight_map": (with_shards(lambda names, files: names.clear()), "names the shard None"),
    "an unknown class": (with_config(_class_name="Nothing"), "class 'Nothing'"),
    "a class that is a list": (with_config(_class_name=["x", "y"]), "class"),
    "a class of another kind": (with_config(_class_name="AutoencoderKL"), "takes no time step"),
    "a pipeline as class": (with_config(_class_name="DDPMPipeline"), "class 'DDPMPipeline'"),
    "words for a number": (with_config(layers_per_block="two"), "layers_per_block as 'two'; UNet2DModel takes a whole"),
    "a number for a flag": (with_config(add_attention=1), "add_attention as 1; UNet2DModel takes true or false"),
    "a list of other things": (with_config(block_out_channels=[8, "x"]), "block_out_channels as"),
    "a sample_size of 0": (with_config(sample_size=0), "sample_size=0"),
    "a sample_size of words": (with_config(sample_size="8"), "sample_size as '8'"),
    "a huge sample_size": (with_config(sample_size=10**9), "sample_size=1000000000"),
    "unknown blocks": (with_config(down_block_types=["Nothing", "DownBlock2D"]), "does not describe"),
    "terabytes": (with_config(block_out_channels=[10**6, 10**6]), "asks for"),
    "more than there is": (with_config(block_out_channels=[10**12, 10**12]), "does not describe"),
    "layers without end": (with_config(layers_per_block=10**9), "more parameters than there are weights"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_folders_that_are_not_whole_are_refused(folder: Path, name: str) -> None:
    change, sentence = BROKEN[name]
    change(folder)
    with pytest.raises(ValueError, match=sentence) as caught:
        fs.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("new", "same"),
    [
        ({"layers_per_block": 1, "center_input_sample": None}, True),
        ({"mid_block_scale_factor": None, "dropout": None, "freq_shift": None}, True),
        ({"attention_head_dim": None}, False),  # which has a meaning: one head
        ({"nobody_knows": 3, "_new": None}, True),
    ],
)
def test_null_and_unknown_values_of_a_network(folder: Path, new: dict[str, Any], same: bool) -> None:
    want = drawn(folder)
    changed(folder / "unet" / "config.json", **new)
    assert torch.equal(drawn(folder), want) == same


def test_labels_are_those_of_the_network(tmp_path: Path) -> None:
    pipe(num_class_embeds=5).save_pretrained(tmp_path)
    assert torch.equal(drawn(tmp_path, 4), drawn(tmp_path, torch.tensor([4, 4])))
    assert not torch.equal(drawn(tmp_path, 4), drawn(tmp_path, [4, 3]))
    model = fs.load(tmp_path)
    for label in (5, 7, -1, 1.5, True, "shoe", [[1], [2]], [0, 9], [], torch.ones(2)):
        with pytest.raises(ValueError, match="knows the classes 0 to 4"):
            model.denoiser(label)
    with pytest.raises(ValueError, match="got no label"):
        model.denoiser()
    with pytest.raises(ValueError, match="2 samples came for 3 labels"):
        drawn(tmp_path, [0, 1, 2])


def test_a_label_for_a_network_without_classes_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="has no classes"):
        fs.load(folder).denoiser(3)


@pytest.mark.parametrize("channels", [(32, 64), (8, 16)])
def test_a_network_of_one_axis(tmp_path: Path, channels: tuple[int, int]) -> None:
    """The class gives its attention a head for every 32 channels: of fewer it made one that could not run."""
    net = diffusers.UNet1DModel(
        sample_size=32, in_channels=2, out_channels=2, block_out_channels=channels, extra_in_channels=2 * channels[0],
        down_block_types=("DownBlock1DNoSkip", "DownBlock1D"), up_block_types=("UpBlock1D", "UpBlock1DNoSkip"),
    )  # fmt: skip
    diffusers.DanceDiffusionPipeline(net, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    assert fs.load(tmp_path).shape == (2, 32)
    assert drawn(tmp_path).shape == (2, 2, 32)


def test_a_network_of_no_size_samples_what_it_is_given(folder: Path) -> None:
    want = drawn(folder)
    changed(folder / "unet" / "config.json", sample_size=None)
    with pytest.raises(ValueError, match=r"which sees \(3, height, width\)"):
        drawn(folder)
    model = fs.load(folder)
    assert torch.equal(fs.sample(model.denoiser(), model.process, steps=2, shape=(2, 3, 8, 8), seed=0), want)
    changed(folder / "unet" / "config.json", sample_size=[8, 4])
    assert fs.load(folder).shape == (3, 8, 4)


def test_attention_by_its_old_names_is_read(folder: Path) -> None:
    """Published before diffusers 0.12: query, key, value, proj_attn."""
    want, file = drawn(folder), folder / "unet" / WEIGHTS
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_tensors(file)
    renamed = {}
    for name, t in tensors.items():
        for new, was in old.items():
            name = name.replace(f".{new}.", f".{was}.")
        renamed[name] = t
    assert renamed.keys() != tensors.keys()
    save_tensors(file, renamed)
    assert torch.equal(drawn(folder), want)


def test_a_text_encoder_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tiny.sd().save_pretrained(tmp_path)
    assert fs.load(tmp_path).denoiser(prompt="a cat") is not None
    file = tmp_path / "text_encoder" / "model.safetensors"
    tensors = load_tensors(file)
    tensors.pop(next(name for name in tensors if "q_proj.weight" in name))
    save_tensors(file, tensors, {"format": "pt"})
    with pytest.raises(ValueError, match="its text encoder has no .*q_proj.weight"):
        fs.load(tmp_path).denoiser(prompt="a cat")


@pytest.mark.parametrize(("parts", "within"), [({}, 1.0), ({"vqvae": ["diffusers", "VQModel"]}, math.inf)])
def test_pictures_are_within_their_range_and_latents_in_none(
    folder: Path, parts: dict[str, Any], within: float
) -> None:
    changed(folder / "model_index.json", **parts)
    model = load_folder(folder)
    assert range_of(model.denoiser()) == model.within == within
    assert range_of(load_folder(folder / "unet").denoiser()) == within
    sampled = fs.sample(model.denoiser(), model.process, shape=(2, *model.shape), steps=2, final="denoise")
    assert (float(sampled.abs().max()) <= 1) == (within == 1.0)


def commanded(folder: Path, *words: str) -> np.ndarray:
    """The samples of a command line, which are pictures."""
    out = folder.parent / "out"
    assert main(["sample", str(folder), *words, "--solver", "ddim", "--steps", "2", "--num", "3", "--batch", "2",
                 "--precision", "float32", "--out", str(out)]) == 0  # fmt: skip
    return np.load(out / "samples.npz")["samples"]


def pipelined(pipe: Any, steps: int = 2, **how: Any) -> np.ndarray:
    """The pictures of a pipeline from the same noises, in [-1, 1]."""
    from fewstep.noise import noise_source

    pipe.scheduler = FewStepScheduler.from_config(pipe.scheduler.config, solver="ddim", set_alpha_to_one=True)
    pipe.scheduler.set_timesteps(steps)
    eps = noise_source(seed=0).initial((3, 4, 8, 8), torch.float32, "cpu")
    latents = pipe.scheduler.process.prior(eps, float(pipe.scheduler.table.grid[0]))
    made = pipe(num_inference_steps=steps, output_type="np", latents=latents, **how).images
    return 2 * np.moveaxis(made, -1, 1) - 1


@pytest.mark.filterwarnings("ignore:got a network wrapped")
@pytest.mark.filterwarnings("ignore:got a start x")
def test_prompts_are_drawn_and_decoded_as_the_pipeline_does(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("transformers")
    pipe = tiny.sd()
    pipe.vae.register_to_config(scaling_factor=0.5, shift_factor=None)
    pipe.save_pretrained(tmp_path / "pipe")
    found = commanded(
        tmp_path / "pipe", "--prompt", "a cat", "--prompt", "a, b", "--negative", "dog", "--guidance", "3"
    )
    wanted = pipelined(pipe, prompt=["a cat", "a, b", "a cat"], negative_prompt=["dog"] * 3, guidance_scale=3.0)
    np.testing.assert_allclose(found.clip(-1, 1), wanted, atol=2e-5)
    assert abs(found[0] - found[2]).max() > 0.1
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (about["prompts"], about["negative"], about["labels"]) == (["a cat", "a, b"], "dog", [0, 1, 0])
    capsys.readouterr()
    for words, said in (
        ([], "got no --prompt"),
        (["--prompt", "a", "--negative", "b"], "--negative without"),
        (["--prompt", "a", "--label", "1"], "give one"),
    ):
        assert main(["sample", str(tmp_path / "pipe"), *words]) == 2
        assert said in capsys.readouterr().err
    shutil.rmtree(tmp_path / "pipe" / "vae")
    assert commanded(tmp_path / "pipe", "--prompt", "a cat").shape == (3, 4, 8, 8)
    assert "the samples are latents" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:got a network wrapped")
def test_classes_of_a_pipeline_have_their_names_and_the_one_of_none(tmp_path: Path) -> None:
    pipe = tiny.dit()
    pipe.vae.register_to_config(shift_factor=0.2, scaling_factor=0.7)
    pipe.save_pretrained(tmp_path / "pipe")
    changed(tmp_path / "pipe" / "model_index.json", id2label={"7": "cock, bird", "9": "ostrich"})
    found = commanded(tmp_path / "pipe", "--label", "7,ostrich", "--guidance", "4")
    assert np.array_equal(found, commanded(tmp_path / "pipe", "--label", "Cock,9", "--guidance", "4"))
    model = fs.load(tmp_path / "pipe")
    guided = fs.guide(model.denoiser(torch.tensor([7, 9, 7])), model.denoiser(torch.tensor([1000] * 3)), 4.0)
    z = fs.sample(guided, model.process, solver="ddim", steps=2, shape=(3, 4, 8, 8))
    with torch.no_grad():
        wanted = pipe.vae.decode(z / 0.7 + 0.2).sample
    np.testing.assert_allclose(found, wanted.numpy(), atol=2e-5)


def origin(name: str) -> str:
    """The name that a tensor of the tiny UNet has in checkpoints of latent diffusion."""
    parts = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
             "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
    whole = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
    stem, _, end = name.rpartition(".")
    if stem in whole:
        return f"{whole[stem]}.{end}"
    side, *at, rest = name.split(".", 4 if name[0] in "du" else 3)
    block, kind, k = at if side != "mid_block" else (0, *at)
    place = {"down_blocks": 1 + 2 * int(block), "up_blocks": 2 * int(block) + int(k), "mid_block": 2 * int(k)}[side]
    if kind == "resnets":
        first, _, last = rest.partition(".")
        where = f"{place}" if side == "mid_block" else f"{place}.0"
        rest = f"{parts[first]}.{last}"
    elif kind == "attentions":
        where = "1" if side == "mid_block" else f"{place}.1"
    elif kind == "downsamplers":
        where, rest = f"{place + 1}.0", rest.replace("conv", "op")
    else:
        where = f"{2 * int(block) + 1}.{2 - int(block)}"
    sides = {"down_blocks": "input_blocks", "up_blocks": "output_blocks", "mid_block": "middle_block"}
    return f"{sides[side]}.{where}.{rest}"


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one file by its origin's names, with other networks in it, and its configs beside it."""
    at, net = tmp_path_factory.mktemp("single"), tiny.unet_text()
    tensors = {f"model.diffusion_model.{origin(name)}": t for name, t in net.state_dict().items()}
    save_tensors(at / "model.safetensors", tensors | {"first_stage_model.quant_conv.weight": torch.zeros(1)})
    save_tensors(at / "plain.safetensors", net.state_dict())
    net.save_config(at / "model" / "unet")
    diffusers.DDIMScheduler(beta_schedule="scaled_linear").save_config(at / "model" / "scheduler")
    return at


def test_a_checkpoint_of_one_file_is_its_network(single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket, "create_connection", None)  # nothing is asked for outside
    model, net = fs.load(single / "model.safetensors"), tiny.unet_text()
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in model.net.state_dict().items())
    assert model.predicts == "noise"
    assert model.process == FewStepScheduler.from_config(single / "model" / "scheduler").process
    plain = fs.load(single / "plain.safetensors", config=single / "model")
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in plain.net.state_dict().items())
    assert plain.weights != model.weights
    z, text = torch.zeros(1, *model.shape), torch.zeros(1, 4, 16)
    assert torch.equal(*(m.denoiser(encoder_hidden_states=text)(z, 0.5) for m in (model, plain)))


def test_what_a_checkpoint_of_one_file_lacks_is_named(single: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="plain.safetensors, which says neither .* config=FOLDER with unet/config"):
        fs.load(single / "plain.safetensors")
    for suffix in (".ckpt", ".pt"):
        torch.save({}, tmp_path / f"model{suffix}")
        with pytest.raises(ValueError, match=f"model{suffix} is a pickled file, which can run code"):
            fs.load(tmp_path / f"model{suffix}", config=single / "model")
    for folder, lacking in (
        ("unet", r"unet/config.json or transformer/config.json"),
        ("scheduler", "scheduler_config"),
    ):
        configs = Path(shutil.copytree(single / "model", tmp_path / folder))
        shutil.rmtree(configs / folder)
        with pytest.raises(ValueError, match=f"which has no .*{lacking}"):
            fs.load(single / "model.safetensors", config=configs)
    tensors = load_tensors(single / "model.safetensors")
    tensors.pop("model.diffusion_model.out.2.bias")
    save_tensors(tmp_path / "less.safetensors", tensors)
    with pytest.raises(ValueError, match="less.safetensors (does not hold|has conv_out.bias as missing)"):
        fs.load(tmp_path / "less.safetensors", config=single / "model")
    with pytest.raises(ValueError, match="no checkpoint of one file: leave it out"):
        fs.load(config=single / "model")
