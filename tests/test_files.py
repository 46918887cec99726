"""Results appear whole or not at all."""

from __future__ import annotations

import errno
import os

import pytest

from fewstep.cli.files import Results


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
