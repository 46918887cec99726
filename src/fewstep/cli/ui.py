"""`fewstep ui`: the local page."""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fewstep.cli.common import only

__all__ = ["arguments", "run"]

SHIPPED = "Fashion-MNIST, shipped"
CONNECTIONS = 64  # at once; the browser of one visitor opens six


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep ui`."""
    add = parser.add_argument
    add("model", nargs="*", help="model folders to choose from (default: the shipped Fashion-MNIST model)")
    add("--models", metavar="DIR", help="a folder whose model folders can be chosen too")
    add(
        "--port",
        type=only(int, range(1, 65536).__contains__, "whole numbers from 1 to 65535"),
        default=7860,
        help="where the page is served (default: 7860)",
    )
    text = "by default this machine alone sees the page (default: 127.0.0.1); others need the token in its address"
    add("--host", default="127.0.0.1", help=text)
    add("--open", action="store_true", help="open the page in the browser")


def run(args: argparse.Namespace) -> None:
    """Serves a local page: choose a sampler, watch it run, take samples, record and Python with you.

    Two solvers run side by side from the same noise; a playground shows paths in the plane. Ctrl-C ends it.
    """
    from fewstep.files import extra

    named = models(args.model, args.models)
    with (
        listening(args.host, args.port) as place,
        tempfile.TemporaryDirectory(prefix="fewstep-") as folder,
        suppress(KeyboardInterrupt),
    ):
        made = Path(folder) / "made"
        made.mkdir()
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read at import
        extra("gradio", "ui", "the local page")
        from fewstep.page.guard import Guard
        from fewstep.page.layout import build

        guard = Guard(app=build(named, made), host=args.host, address=place.getsockname()[0], port=args.port)
        with serving(guard, place):
            print(f"fewstep ui is on {guard.url} until Ctrl-C", flush=True)
            if args.open:
                webbrowser.open(guard.url)
            threading.Event().wait()


def models(paths: list[str], folder: str | None) -> dict[str, str | None]:
    """The model folders that can be chosen, by their names on the page; None is the shipped model."""
    named: dict[str, str | None] = {path: path for path in paths}
    if folder is not None:
        whole = sorted(
            path.parent for kind in ("fewstep.json", "model_index.json") for path in Path(folder).glob(f"*/{kind}")
        )
        if not whole:
            raise ValueError(f"got --models {folder}, in which there is no model folder: name the folder above them")
        named |= {path.name: str(path) for path in whole}
    return named or {SHIPPED: None}


@contextmanager
def serving(app: Any, place: socket.socket) -> Iterator[None]:
    """Serves an ASGI application on a bound socket, beside what runs in the block."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(
        app, http="h11", ws="none", log_level="critical", proxy_headers=False, server_header=False,
        limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=1))  # fmt: skip
    thread = threading.Thread(target=server.run, args=([place],), daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            thread.join(0.01)
        if not server.started:
            raise OSError("the page could not be started: see what is said above")
        yield
    finally:
        server.should_exit = True
        thread.join(5)


def listening(host: str, port: int) -> socket.socket:
    """A socket bound to where the page will be served; an OSError where it cannot be."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        why, *_ = str(error.strerror).split(" (while")
        raise OSError(f"cannot serve on {host}:{port} ({why}): choose another --host or --port") from None
