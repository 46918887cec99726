"""Results appear whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os

import pytest
import torch

from fewstep.files import Results, atomic, json_text, load_tensors, read_json, save_tensors


def test_all_files_appear_together(tmp_path):
    folder = tmp_path / "a" / "b"
    with Results(folder) as results:
        results.write("one", lambda file: file.write(b"1"))
        results.write("two", lambda file: file.write(b"2"))
        assert not (folder / "one").exists()
    assert sorted(p.name for p in folder.iterdir()) == ["one", "two"]


def test_an_error_leaves_nothing_and_keeps_what_was_there(tmp_path):
    (tmp_path / "one").write_bytes(b"old")

    def write_half(file):
        file.write(b"new")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError), Results(tmp_path) as results:
        results.write("one", write_half)
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
    assert (tmp_path / "one").read_bytes() == b"old"


def test_folders_made_for_a_failed_run_go_again(tmp_path):
    with pytest.raises(RuntimeError), Results(tmp_path / "a" / "b"):
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, code):
    def full(_descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"cannot write .*one .{os.strerror(code)}"), Results(tmp_path) as results:
        results.write("one", lambda file: file.write(b"1"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="cannot write"), Results(folder):
            pytest.fail("the block must not be entered")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="cannot write"), Results(tmp_path):
        pytest.fail("the block must not be entered")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_rename_that_fails_takes_the_others_back(tmp_path, monkeypatch, failing, links):
    names = ["one", "two", "three"]
    (tmp_path / "one").write_bytes(b"old")
    replace, calls = os.replace, []

    def replace_some(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    def no_link(_source, _target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "replace", replace_some)
    if not links:
        monkeypatch.setattr(os, "link", no_link)

    def write():
        with Results(tmp_path) as results:
            for name in names:
                results.write(name, lambda file: file.write(b"new"))

    with pytest.raises(OSError, match=f"cannot write .*{names[failing - 1]} "):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
    assert (tmp_path / "one").read_bytes() == b"old"


def test_results_replace_what_was_there_and_leave_nothing_else(tmp_path):
    for content in (b"old", b"new"):
        with Results(tmp_path) as results:
            for name in ("one", "two"):
                results.write(name, lambda file, content=content: file.write(content))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"one": b"new", "two": b"new"}


def test_one_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "a" / "b" / "file"

    def write_half():
        with atomic(path) as part:
            part.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_half()
    assert list(tmp_path.iterdir()) == []
    with atomic(path) as part:
        part.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_json_has_no_numbers_that_json_lacks():
    value = {"a": [1.5, math.inf, (-math.inf, math.nan)], "b": "inf", "c": None, "d": True}
    text = json_text(value)

    def refuse(word):
        raise AssertionError(word)

    again = json.loads(text, parse_constant=refuse)
    assert again == {"a": [1.5, "inf", ["-inf", "nan"]], "b": "inf", "c": None, "d": True}


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("levels", [65, 100_000])
def test_json_that_is_nested_too_deep_is_one_sentence(tmp_path, opening, levels):
    path = tmp_path / "deep.json"
    path.write_text('{"a":' + opening * levels)
    with pytest.raises(ValueError, match=r"deep.json cannot be read as JSON"):
        read_json(path, "a folder")
    close = {"[": "[" * levels + "]" * levels, '{"a":': '{"a":' * levels + "1" + "}" * levels}
    if opening in close:
        path.write_text('{"a":' + close[opening] + "}")
        with pytest.raises(ValueError, match=r"nested too deep"):
            read_json(path, "a folder")


def test_json_at_the_bounds_is_read(tmp_path):
    path = tmp_path / "some.json"
    path.write_text("".join(['{"a":' * 64, "-Infinity", "}" * 64]))
    value = read_json(path, "a folder", limit=path.stat().st_size)
    for _ in range(64):
        value = value["a"]
    assert value == -math.inf  # as schedulers of diffusers write it
    with pytest.raises(ValueError, match=r"larger than"):
        read_json(path, "a folder", limit=path.stat().st_size - 1)


@pytest.mark.parametrize("read", [lambda path: read_json(path, "a folder"), load_tensors])
def test_only_regular_files_are_read(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(ValueError, match=f"{name} is no regular file"):
            read(tmp_path / name)


def test_a_header_that_is_too_long_is_not_read(tmp_path):
    path = tmp_path / "weights.safetensors"
    with path.open("wb") as file:
        file.write((40 * 2**20).to_bytes(8, "little"))
        file.truncate(50 * 2**20)
    with pytest.raises(ValueError, match="header says it has 41943040 bytes; at most 16777216"):
        load_tensors(path)
    path.write_bytes((2**64 - 1).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="truncated or corrupt"):
        load_tensors(path)


def test_tensors_lie_in_memory_as_they_did_before_they_were_saved(tmp_path):
    tensors = {f"{n}": torch.arange(n, dtype=torch.float64) for n in (1, 3, 6, 35)}
    save_tensors(tmp_path / "a.safetensors", tensors, {"any": "words"})
    for name, tensor in load_tensors(tmp_path / "a.safetensors").items():
        assert torch.equal(tensor, tensors[name])
        assert tensor.data_ptr() % 64 == tensors[name].data_ptr() % 64 == 0


def test_a_pipe_is_no_sealed_file(tmp_path):
    from fewstep.seal import is_sealed

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is no regular file"):
        is_sealed(tmp_path / "pipe")
