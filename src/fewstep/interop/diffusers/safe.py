"""A stranger's folder is looked at before anything of it is read: names as strings, numbers as safetensors, no code.

What diffusers and transformers would run or open on a folder's word is refused here first: Python files and libraries,
classes from elsewhere, `auto_map` and its like, links and shard names that lead out of the folder, and what is no
regular file. A snapshot in the Hub's cache may link to its own blobs. Pickles may lie about; none is ever opened.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from fewstep.files import read_json

__all__ = ["INDEX", "check_folder"]

INDEX = "model_index.json"
CODE = {".py", ".pyc", ".pyo", ".pyd", ".pyw", ".so", ".dll", ".dylib"}
LIBRARIES = ("diffusers", "transformers")
OURS = ["fewstep.interop.diffusers", "FewStepScheduler"]
FOREIGN = ("auto_map", "trust_remote_code", "custom_pipeline", "custom_pipelines", "custom_code")
NAMES = "id2label"  # of model_index.json, words for the classes of a DiT
MOST = 20_000  # files of a folder


def check_folder(folder: Path) -> dict[str, Any]:
    """The library and the class of each part in a pipeline's model_index.json, after the whole folder is checked."""
    root = folder.resolve()
    paths = list(islice(_below(root), MOST + 1))
    if len(paths) > MOST:
        raise ValueError(f"got {folder}, which holds more than {MOST} files: give a folder that save_pretrained wrote")
    for path in paths:
        _check_file(root, path)
    for path in paths:
        if path.name.endswith(("config.json", "index.json")):
            _check_words(path, read_json(path, "a pipeline"))
    index = read_json(root / INDEX, "a pipeline") if (root / INDEX).exists() else {}
    if (name := index.get("_class_name")) is not None and not _is_name(name):
        raise _refused(root / INDEX, f"gives {name!r:.80} as _class_name", "the name of a class in diffusers")
    parts = {key: value for key, value in index.items() if isinstance(value, list | dict) and key != NAMES}
    return {key: _component(root / INDEX, key, value) for key, value in parts.items()}


def _below(folder: Path) -> Iterator[Path]:
    """Everything in a folder and its folders but what begins with a dot, links themselves and not what they lead to."""
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(at) / name for name in (*folders, *files))


def _check_file(root: Path, path: Path) -> None:
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    try:
        within = path.resolve()
    except (OSError, RuntimeError):  # a link to itself; what Python raises differs between versions
        raise _refused(path, "is a link that ends nowhere", "a link within the folder") from None
    if path.is_symlink() and not (within.is_relative_to(root) or within.parent == blobs):
        raise _refused(path, f"is a link to {within}, out of its folder", "a link within the folder")
    if path.suffix.lower() in CODE:
        raise _refused(path, "is code", "a folder without any, since none is ever run")
    if not (path.is_file() or path.is_dir()):
        raise _refused(path, "is no regular file", "a regular file")


def _check_words(path: Path, value: Any) -> None:
    """Refuses what asks for code from elsewhere, at any depth."""
    level = [value]
    while level:
        for entry in level:
            for name in FOREIGN:
                if isinstance(entry, Mapping) and entry.get(name):
                    raise _refused(path, f"has {name}, which asks for code from elsewhere", "a config without it")
        level = [
            v for e in level if isinstance(e, Mapping | list) for v in (e.values() if isinstance(e, Mapping) else e)
        ]


def _component(path: Path, key: str, value: Any) -> tuple[str, str] | None:
    """(library, class) of an entry, None for one that is left out."""
    if value == [None, None]:
        return None
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(word, str) for word in value)
    if not pair or not (value == OURS or _is_name(value[1]) and (value[0] in LIBRARIES or _is_part(value[0]))):
        raise _refused(path, f"gives {value!r:.80} as {key}", "a class of diffusers or transformers, as two words")
    if value[0] == "diffusers":
        import diffusers

        if not hasattr(diffusers, value[1]):
            raise _refused(path, f"gives {value!r:.80} as {key}", f"a class that diffusers {diffusers.__version__} has")
    return value[0], value[1]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[A-Za-z][A-Za-z0-9_]{0,198}", value) is not None


def _is_part(library: str) -> bool:
    """Whether it is one of diffusers' own pipelines, which some of its classes are named after."""
    import diffusers

    return _is_name(library) and (Path(diffusers.__file__).parent / "pipelines" / library / "__init__.py").is_file()


def _refused(path: Path, what: str, allowed: str) -> ValueError:
    return ValueError(f"{path} {what}; allowed is {allowed}; take the folder from where it was made, or mend it.")
