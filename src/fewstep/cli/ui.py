"""`fewstep ui`: the local page."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import tempfile
import threading
from contextlib import suppress

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fewstep ui`."""
    add = parser.add_argument
    add("model", nargs="?", help="a model folder (default: the shipped Fashion-MNIST model)")
    add("--port", type=port, default=7860, help="where the page is served (default: 7860)")
    add("--host", default="127.0.0.1", help="by default this machine alone sees the page (default: 127.0.0.1)")
    add("--open", action="store_true", help="open the page in the browser")


def run(args: argparse.Namespace) -> None:
    """Serves a local page: choose a sampler, watch it run, take samples, record and Python with you.

    Two solvers run side by side from the same noise; a playground shows paths in the plane. Ctrl-C ends it.
    """
    from fewstep.files import extra

    refuse_taken(args.host, args.port)
    with tempfile.TemporaryDirectory(prefix="fewstep-") as folder, suppress(KeyboardInterrupt):
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read at import
        gr = extra("gradio", "ui", "the local page")
        import fewstep as fs
        from fewstep.page import html
        from fewstep.page.layout import SHIPPED, build

        page = build({SHIPPED if args.model is None else args.model: fs.load(args.model)}, folder)
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        page.launch(server_name=args.host, server_port=args.port, prevent_thread_lock=True, quiet=True, share=False,
                    inbrowser=args.open, footer_links=[], run_history=False, allowed_paths=[folder], css=html.STYLE,
                    theme=gr.themes.Base(**fonts))  # fmt: skip
        print(f"fewstep ui is on http://{args.host}:{args.port} until Ctrl-C", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def port(text: str) -> int:
    """Argparse type: a port."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"got {text}, but ports are whole numbers from 1 to 65535")
    return int(text)


def refuse_taken(host: str, port: int) -> None:
    """Refuses a place where the page cannot be served."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        why, *_ = str(error.strerror).split(" (while")
        raise OSError(f"cannot serve on {host}:{port} ({why}): choose another --host or --port") from None
