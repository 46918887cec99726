"""Many writers of one file, killed writers, signals while files get their names, files that hold their checksum."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from fewstep import parts
from fewstep.files import Results, atomic, kept_tensors, load_tensors, read_record, save_tensors, whole_folder
from fewstep.parts import sweep
from fewstep.signals import terminable

SIZE = 200_000


def write_often(path: Path, letter: bytes, times: int) -> None:
    for _ in range(times):
        with atomic(path) as part, part.open("wb") as file:
            for _ in range(4):
                file.write(letter * (SIZE // 4))


def write_set(folder: Path, word: str, after: float = 0.0) -> None:
    with Results(folder) as results:
        for name in ("sheet", "samples"):
            results.write(name, lambda file, name=name: file.write(f"{name} of {word}".encode()))
            time.sleep(after)
        results.record("run.json", {"word": word})


def in_threads(*calls) -> None:
    failed = []

    def run(call):
        try:
            call()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_threads_and_processes_may_write_one_file(tmp_path):
    path, torn, done = tmp_path / "file", [], threading.Event()
    code = (
        f"from tests_writers import write_often; from pathlib import Path; write_often(Path({str(path)!r}), b'%s', 10)"
    )
    code = code.replace("tests_writers", Path(__file__).stem)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    children = [subprocess.Popen([sys.executable, "-c", code % letter], env=environment) for letter in "xy"]

    def read():
        while not done.is_set():
            with suppress(FileNotFoundError):
                found = path.read_bytes()
                if len(found) != SIZE or found != found[:1] * SIZE:
                    torn.append(found[:1])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        in_threads(*(lambda letter=letter: write_often(path, letter, 10) for letter in (b"a", b"b", b"c", b"d")))
        assert [child.wait(120) for child in children] == [0, 0]
    finally:
        done.set()
        reader.join()
    assert not torn
    assert os.listdir(tmp_path) == ["file"]


def test_a_set_is_one_writers(tmp_path):
    folder = tmp_path / "out"
    words = [f"{k:03}" for k in range(24)]

    def write(mine):
        for word in mine:
            write_set(folder, word)

    def read():
        for _ in range(200):
            with suppress(ValueError):  # refused: nothing yet, or between two sets
                word = read_record(folder / "run.json")["word"]
                assert word in words

    in_threads(*(lambda k=k: write(words[k::4]) for k in range(4)), read)
    word = read_record(folder / "run.json")["word"]
    assert (folder / "sheet").read_text() == f"sheet of {word}"
    assert (folder / "samples").read_text() == f"samples of {word}"
    assert sorted(os.listdir(folder)) == ["run.json", "samples", "sheet"]


def test_no_record_stands_beside_files_of_two_sets(tmp_path, monkeypatch):
    replace, seen = os.replace, []

    def watched(source, target):
        seen.append((Path(target).name, (tmp_path / "run.json").exists()))
        replace(source, target)

    write_set(tmp_path, "old")
    monkeypatch.setattr(os, "replace", watched)
    write_set(tmp_path, "new")
    assert seen == [("sheet", False), ("samples", False), ("run.json", False)]
    assert read_record(tmp_path / "run.json")["word"] == "new"


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_mixed_set_is_refused(tmp_path, damage):
    write_set(tmp_path, "old")
    if damage == "changed":
        (tmp_path / "samples").write_text("samples of new")
    else:
        (tmp_path / "samples").unlink()
    with pytest.raises(ValueError, match=r"samples is not the file that run\.json beside it records"):
        read_record(tmp_path / "run.json")


@pytest.mark.parametrize("files", ['["a"]', '{"../secret": "0"}', '{"": "0"}', '{"..": "0"}'])
def test_a_record_of_no_checksums_is_refused(tmp_path, files):
    (tmp_path / "run.json").write_text(f'{{"files": {files}}}')
    with pytest.raises(ValueError, match=r"run\.json"):
        read_record(tmp_path / "run.json")


def test_machines_of_long_names_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    named = []
    for node in ("compute-cluster-west-node-1", "compute-cluster-west-node-2", "a_b", "a-b", "", "compute-\u00e9"):
        monkeypatch.setattr(parts.platform, "node", lambda node=node: node)
        named.append(parts._machine())
        assert re.fullmatch(r"[A-Za-z0-9-]+", named[-1])
    assert len(set(named)) == len(named)


def left(folder: Path, process: int, *, kind: str = "part", machine: str = parts._MACHINE, name: str = "file") -> Path:
    path = folder / f".{name}.{machine}.{process}.0123abcd.{kind}"
    path.write_bytes(b"half")
    return path


def test_what_killed_runs_left_is_swept_and_nothing_else(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    while Path(f"/proc/{zombie.pid}").exists() and "Z (" not in Path(f"/proc/{zombie.pid}/status").read_text():
        time.sleep(0.01)
    try:
        alive = [left(tmp_path, child.pid), left(tmp_path, os.getpid())]
        dead = [left(tmp_path, zombie.pid), left(tmp_path, 999_999_999), left(tmp_path, 999_999_999, kind="old")]
        elsewhere = left(tmp_path, child.pid, machine="other-0")
        old = left(tmp_path, 1, machine="other-1")
        os.utime(old, (0, 0))
        theirs = [tmp_path / name for name in (".file.part", ".file.99.part", "file.part", ".x.host-0.99.0123abcd.bak")]
        for path in theirs:
            path.write_bytes(b"")
            os.utime(path, (0, 0))
        write_set(tmp_path, "new")
        assert not any(path.exists() for path in [*dead, old])
        assert all(path.exists() for path in [*alive, elsewhere, *theirs])
        child.communicate(b"\n")
        sweep(tmp_path)
        assert not alive[0].exists()
    finally:
        child.kill()
        child.wait()
        zombie.wait()


def test_an_old_folder_without_successor_is_put_back(tmp_path):
    for name in ("lost", "there"):
        (tmp_path / f".{name}.{parts._MACHINE}.999999999.0123abcd.old").mkdir()
        (tmp_path / f".{name}.{parts._MACHINE}.999999999.0123abcd.old" / "weights").write_text("old")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "weights").write_text("new")
    half = tmp_path / f".half.{parts._MACHINE}.999999999.0123abcd.part"
    half.mkdir()
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["lost", "there"]
    assert [(tmp_path / name / "weights").read_text() for name in ("lost", "there")] == ["old", "new"]


def test_a_folder_is_replaced_whole_or_stays(tmp_path):
    def write(word: str, *, fails: bool = False) -> None:
        with whole_folder(tmp_path / "model") as part:
            (part / "weights").write_text(word)
            if fails:
                raise RuntimeError("stop")

    write("old")
    with pytest.raises(RuntimeError):
        write("half", fails=True)
    assert (tmp_path / "model" / "weights").read_text() == "old"
    write("new")
    assert (tmp_path / "model" / "weights").read_text() == "new"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", range(1, 4))
def test_a_signal_between_renames_waits_for_the_last(tmp_path, monkeypatch, number, at):
    write_set(tmp_path, "old")
    replace, calls = os.replace, []

    def interrupted(source, target):
        calls.append(target)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), terminable():
        write_set(tmp_path, "new")
    assert read_record(tmp_path / "run.json")["word"] == "new"
    assert sorted(os.listdir(tmp_path)) == ["run.json", "samples", "sheet"]


def test_a_signal_in_the_work_leaves_nothing(tmp_path):
    def work(file):
        file.write(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt), terminable(), Results(tmp_path / "out") as results:
        results.write("sheet", work)
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


TENSORS = {
    "b": torch.arange(3.0),
    "a": torch.ones(2, 2, dtype=torch.int64),
    "said": torch.tensor([1], dtype=torch.uint8),
}


def test_each_changed_byte_of_a_sealed_file_is_seen(tmp_path, capsys):
    path = tmp_path / "part"
    save_tensors(path, TENSORS, {"fewstep": '{"a": "\\"fewstep_sha256\\":"}'}, sealed=True)
    whole = path.read_bytes()
    assert all(torch.equal(v, TENSORS[k]) for k, v in kept_tensors(path).items())
    assert capsys.readouterr().err == ""
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1, 0x20)[at % 2]]) + whole[at + 1 :])
        assert kept_tensors(path) == {}, at
    assert capsys.readouterr().err.count("made anew, since it cannot be taken up") == len(whole)
    for damaged in (whole[:-1], whole + b"\0", whole[:20], b"", whole.replace(b"fewstep_sha256", b"fewstep_sha257")):
        path.write_bytes(damaged)
        assert kept_tensors(path) == {}
    save_tensors(path, TENSORS)  # as another version did
    assert kept_tensors(path) == {}
    assert "it has no checksum" in capsys.readouterr().err
    assert set(load_tensors(path)) == set(TENSORS)


def test_the_same_tensors_and_metadata_give_the_same_bytes(tmp_path):
    about = {letter: letter for letter in "fewstp"}
    code = f"import torch; from fewstep.files import save_tensors; save_tensors({str(tmp_path / 'b')!r}, "
    code += f"{{'x': torch.zeros(2)}}, {about!r})"
    save_tensors(tmp_path / "a", {"x": torch.zeros(2)}, about)
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    raw = (tmp_path / "a").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"] == about
