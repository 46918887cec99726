"""What the page of `fewstep ui` answers to requests that it did not make itself, by real requests to a real server."""

from __future__ import annotations

import asyncio
import gc
import http.client
import json
import os
import resource
import secrets
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import fewstep as fs
from fewstep.cli import main
from fewstep.cli.ui import listening, models, serving
from fewstep.page.guard import BODY, Guard
from test_page import Net

pytest.importorskip("gradio")

from fewstep.page import layout
from fewstep.page.choice import SLOTS

# gradio's use of pandas, and the event loops that it leaves open
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
TOKEN = "".join(map(chr, range(97, 119)))
LOADED: list[str | None] = []


def tiny(path: str | Path | None = None, **_: object) -> fs.Model:
    LOADED.append(path if path is None else str(path))
    return fs.Model(net=Net().requires_grad_(False), process=fs.VP(), predicts="noise", time="index", shape=(1, 4, 4),
                    labels=("hat", "coat", "shoe"))  # fmt: skip


class Page:
    """A server on a free port, and what is asked of it."""

    def __init__(self, guard: Guard, folder: Path) -> None:
        self.guard, self.port, self.folder = guard, guard.port, folder

    def ask(self, method: str, path: str, body: str | bytes | None = None, **headers: str) -> tuple[int, str, dict]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            got = connection.getresponse()
            return got.status, got.read().decode("utf-8", "replace"), dict(got.getheaders())
        finally:
            connection.close()

    def click(self, number: int, data: list, session: str | None = None) -> tuple[int, str]:
        body = json.dumps({"data": data, "fn_index": number, "session_hash": session or secrets.token_hex(6)})
        return self.ask("POST", "/gradio_api/queue/join", body, Content_Type="application/json")[:2]

    def answers(self, number: int, data: list) -> list[str]:
        """The HTML that a click puts on the page."""
        session = secrets.token_hex(6)
        assert self.click(number, data, session)[0] == 200
        told = self.ask("GET", f"/gradio_api/queue/data?session_hash={session}")[1]
        return [json.dumps(message["output"]) for line in told.splitlines() if line.startswith("data: ")
                if (message := json.loads(line[6:]))["msg"] in ("process_generating", "process_completed")]  # fmt: skip

    def function(self, inputs: int) -> int:
        """The number of the click with so many inputs, from the page's own configuration."""
        text = self.ask("GET", "/")[1]
        config = json.loads(text.partition("window.gradio_config = ")[2].partition(";</script>")[0])
        return next(one["id"] for one in config["dependencies"] if len(one["inputs"]) == inputs)


@contextmanager
def quiet() -> Iterator[None]:
    """Sweeps the event loops that gradio leaves open without their warnings."""
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        yield
        gc.collect()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch, listening("127.0.0.1", 0) as place:
        patch.setattr(layout, "load", tiny)
        layout._load.cache_clear()
        with quiet():
            app = layout.build({"tiny": None, "other": "a/folder"}, folder)
        guard = Guard(app=app, host="127.0.0.1", address="127.0.0.1", port=place.getsockname()[1])
        with serving(guard, place):
            yield Page(guard, folder)
        layout._load.cache_clear()
        with quiet():
            del app, guard


def sample(**changed: object) -> list:
    """The fields of the page in their order."""
    fields = {"model": "tiny", "solver": "ddim", "second": "nothing", "grid": "default", "steps": 3,
              "label": "every class in turn", "scale": 1, "seed": 0, "num": 2,
              **{f"option {k}": "" for k in range(2 * SLOTS)}}  # fmt: skip
    return list({**fields, **changed}.values())


# ---- who asks


def test_the_page_itself_is_served_by_every_name_of_this_machine(page):
    for name in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        status, text, headers = page.ask("GET", "/", Host=f"{name}:{page.port}")
        assert (status, "window.gradio_config" in text) == (200, True)
    assert headers["content-security-policy"] == "frame-ancestors 'none'"
    assert page.guard.token is None
    assert page.guard.url == f"http://127.0.0.1:{page.port}"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example:{port}",
             "192.168.0.1:{port}", "127.0.0.1:{port}@evil.example", "", "127.0.0.1:{port}:{port}"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/gradio_api/queue/data?session_hash=a", "/assets/x.js", "/made/a/run.py"])
def test_a_foreign_host_is_refused_on_every_route(page, host, path):
    status, text, headers = page.ask("GET", path, Host=host.format(port=page.port))
    assert status == 421
    assert text.endswith(f"which is not this page's: open http://127.0.0.1:{page.port}")
    assert headers["connection"] == "close"


@pytest.mark.parametrize("head", ["GET / HTTP/1.0", "GET / HTTP/1.0\r\nHost: a\r\nHost: 127.0.0.1:{port}"])
def test_no_host_or_two_are_refused(page, head):
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as client:
        client.sendall(f"{head.format(port=page.port)}\r\n\r\n".encode())
        assert client.recv(100).split()[1] in (b"421", b"400")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1",
                                    "http://localhost:{port}", "http://127.0.0.1:{port}.evil.example"])  # fmt: skip
def test_a_foreign_origin_is_refused_before_anything_runs(page, origin):
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "a"})
    headers = {"Origin": origin.format(port=page.port), "Content_Type": "application/json"}
    for method, path in (("POST", "/gradio_api/queue/join"), ("GET", "/gradio_api/queue/data"), ("OPTIONS", "/")):
        status, text, answer = page.ask(method, path, body if method == "POST" else None, **headers)
        assert (status, "this page answers itself alone" in text) == (403, True)
        assert not any(name.startswith("access-control") for name in answer)
    assert page.ask("GET", "/", Origin=f"http://127.0.0.1:{page.port}")[0] == 200


# ---- for what


@pytest.mark.parametrize(
    "path", ["upload", "run/predict", "api/run", "call/run", "call/v2/run", "component_server", "process_recording",
             "vibe-edit", "stream/a", "stream/a/close", "login", "reset/../upload", "queue/join/"],
)  # fmt: skip
def test_no_other_route_takes_anything(page, path):
    assert page.ask("POST", f"/gradio_api/{path}", "{}", Content_Type="application/json")[0] == 404


def test_no_route_reads_a_file_of_the_server_or_fetches_for_others(page, tmp_path):
    secret = page.folder.parent / "secret.txt"
    secret.write_text("secret")
    (page.folder / "left").mkdir(exist_ok=True)
    (page.folder / "left" / "samples.npz").symlink_to(secret)
    asked = [f"/gradio_api/file={secret}", f"/gradio_api/file/{secret}", f"/file={secret}",
             "/gradio_api/file=/etc/passwd", "/gradio_api/info", "/config",
             "/gradio_api/proxy=http://127.0.0.1:1/", "/gradio_api/file=http://127.0.0.1:1/", "/made/../secret.txt",
             "/made/%2e%2e/secret.txt", "/made/left/samples.npz", "/made/left/secret.txt", "/made/", "/static/../a",
             "/assets/%2e%2e/%2e%2e/__init__.py", "/docs", "/openapi.json", "/monitoring",
             "/gradio_api/deep_link", "/gradio_api/custom_component/a/client/b/c.js", "/svelte/svelte.js"]  # fmt: skip
    for path in asked:
        status, text, _ = page.ask("GET", path)
        assert (path, status, "secret" in text.replace("/secret.txt", "")) == (path, 404, False)


def test_there_is_no_websocket(page):
    sent: list = []

    async def send(message):
        sent.append(message)

    asyncio.run(page.guard({"type": "websocket", "path": "/", "headers": []}, None, send))  # type: ignore[arg-type]
    assert sent == [{"type": "websocket.close", "code": 1008}]
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec_WebSocket_Version": "13",
        "Sec_WebSocket_Key": "YQ==",
    }
    assert page.ask("GET", "/gradio_api/queue/join", **upgrade)[0] == 404


# ---- how much


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/", "/gradio_api/cancel"])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_large_body_is_refused_before_it_is_sent(page, path, chunked, method):
    size, piece, before = 300 * 2**20, bytes(2**16), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    if chunked:
        piece = f"{len(piece):x}\r\n".encode() + piece + b"\r\n"
    sent = 0
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as client:
        client.sendall(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n{length}\r\n\r\n".encode())
        try:
            while sent < size:
                client.sendall(piece)
                sent += len(piece)
        except (BrokenPipeError, ConnectionResetError):
            pass
        with_answer = client.recv(2**16)
    assert sent < 30 * 2**20  # what the two sockets hold between them
    status = int(with_answer.split()[1])
    assert status == (413 if (path, method) in POSSIBLE else 404)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 2**10


POSSIBLE = [("/gradio_api/queue/join", "POST"), ("/gradio_api/cancel", "POST"), ("/", "GET")]


@pytest.mark.parametrize("length", ["1e9", "-1", "9" * 5000, "65537", "\u0663"])
def test_a_length_that_is_none_or_too_large_is_refused(page, length):
    headers = [(b"host", f"127.0.0.1:{page.port}".encode()), (b"content-length", length.encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/gradio_api/queue/join",
        "headers": headers,
        "query_string": b"",
    }
    sent: list = []

    async def send(message):
        sent.append(message)

    asyncio.run(page.guard(scope, None, send))  # nothing is received
    assert sent[0]["status"] == 413


@pytest.mark.parametrize("data", [
    [{"path": "http://127.0.0.1:1/x", "meta": {"_type": "gradio.FileData"}}], [["a"]], {"a": 1}, "text", ["a" * 401],
    [0] * 49, 5,
])  # fmt: skip
def test_what_is_no_plain_value_goes_no_further(page, data):
    body = json.dumps({"data": data, "fn_index": 0, "session_hash": "a"})
    status, text, _ = page.ask("POST", "/gradio_api/queue/join", body, Content_Type="application/json")
    assert (status, "plain values" in text) == (422, True)


@pytest.mark.parametrize("body", ['{"data": [NaN]}', '{"data": [1e999]}', "[" * 60000, "\xff", "", "1" * 5000, "null"])
def test_what_is_no_json_goes_no_further(page, body):
    got = page.ask("POST", "/gradio_api/queue/join", body.encode("latin-1"), Content_Type="application/json")
    assert got[0] == 422


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"num": 10**6}, "got num=1000000: give a number from 1 to 256"),
        ({"num": -1}, "got num=-1: give a number from 1 to 256"),
        ({"seed": 1e300}, "got seed=1000000000"),
        ({"option 0": "1e999"}, "eta"),
        ({"option 0": "0, statistics='/etc/passwd'"}, "got eta="),
        ({"option 0": "x" * 60}, "got eta='xxx"),
    ],
)
def test_a_value_without_measure_is_refused_in_a_sentence(page, changed, sentence):
    said = page.answers(page.function(len(sample())), sample(**changed))
    assert any("refused" in one and sentence in one for one in said), said
    assert len(list(page.folder.glob("*/run.json"))) == 1  # the one that the page opens on
    assert not any("<img" in one for one in said)  # nothing stale stays
    assert any('"elem_classes": ["wrong"]' in one for one in said)  # at its field


@pytest.mark.parametrize("changed", [{"model": "/etc"}, {"model": "../models/fashion-vp"}, {"steps": 10**9},
                                     {"scale": 1e9}, {"steps": "many"}, {"solver": "/a/table.json"}])  # fmt: skip
def test_what_the_page_does_not_offer_does_not_run(page, changed, capfd):
    LOADED.clear()
    said = page.answers(page.function(len(sample())), sample(**changed))
    assert said
    assert not any("img" in one for one in said)
    assert LOADED == []


def test_a_model_is_one_of_those_named_at_the_start(monkeypatch):
    monkeypatch.setattr(layout, "load", tiny)
    layout._load.cache_clear()
    with pytest.raises(ValueError, match="got model '/etc', which is not known: "):
        layout._model({"tiny": None}, "/etc")


def test_many_clicks_wait_in_a_bounded_queue(page):
    number, slow = page.function(len(sample())), sample(steps=100, num=1, solver="euler")
    visits = [(secrets.token_hex(6)) for _ in range(40)]
    got = [page.click(number, slow, visit)[0] for visit in visits]
    assert got[0] == 200
    assert set(got) == {200, 503}
    assert got.count(200) <= layout.QUEUE + 10  # some are done meanwhile
    queue = next(route.app for route in page.guard.app.routes if getattr(route, "path", None) == "").get_blocks()._queue
    assert len(queue) <= layout.QUEUE
    assert queue.pending_messages_per_session.max_size == layout.SESSIONS
    for visit in visits:
        for event in list(queue.pending_event_ids_session.get(visit, ())):
            body = {"session_hash": visit, "fn_index": number, "event_id": event}
            assert page.ask("POST", "/gradio_api/cancel", json.dumps(body), Content_Type="application/json")[0] == 200
    assert len(queue) == 0
    assert page.ask("GET", "/")[0] == 200


def test_what_a_run_made_can_be_fetched_and_the_oldest_goes(page, monkeypatch):
    monkeypatch.setattr(layout, "KEPT", 2)
    number = page.function(len(sample()))
    for seed in range(3):
        said = page.answers(number, sample(seed=seed))[-1]
        path = said.partition('href=\\"')[2].partition('\\"')[0]
        assert path.startswith("made/")
        status, _, _ = page.ask("GET", f"/{path}")
        assert status == 200
    assert len(list(page.folder.iterdir())) == 3  # and the first, which the page opens on


# ---- where others can reach it


def test_a_page_that_others_reach_asks_for_its_token(tmp_path):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"the page"})

    with listening("0.0.0.0", 0) as place:
        port = place.getsockname()[1]
        guard = Guard(app=app, host="0.0.0.0", address=place.getsockname()[0], port=port)
        assert guard.url.startswith(f"http://{socket.gethostname()}:{port}/?token=")
        assert len(guard.token or "") >= 32
        assert (guard.token or "?") not in repr(guard)
        with serving(guard, place):
            page = Page(guard, tmp_path)
            routes = [("GET", "/"), ("GET", "/assets/a.js"), ("GET", "/made/a/run.py"),
                      ("POST", "/gradio_api/queue/join"),
                      ("GET", "/gradio_api/queue/data?session_hash=a"), ("GET", "/gradio_api/heartbeat/a")]  # fmt: skip
            wrong = [{}, {"Cookie": f"fewstep-{port}=wrong"}, {"Cookie": f"fewstep-{port}="}, {"Cookie": "\xff;=;,"},
                     {"Cookie": f"other={guard.token}"}]  # fmt: skip
            for (method, path), headers in ((route, given) for route in routes for given in wrong):
                status, text, _ = page.ask(method, path, "{}" if method == "POST" else None, **headers)
                assert (status, "open the whole address that `fewstep ui` printed" in text) == (403, True)
            for given in ("wrong", "", (guard.token or "")[:-1], f"{guard.token}x", "%ff%00", "\u00e9".encode().hex()):
                assert page.ask("GET", f"/?token={given}")[0] == 403
            assert page.ask("POST", f"/gradio_api/queue/join?token={guard.token}", "{}")[0] == 403

            status, _, headers = page.ask("GET", f"/?token={guard.token}")
            assert (status, headers["location"]) == (303, "/")
            cookie = headers["set-cookie"].partition(";")[0]
            assert headers["set-cookie"] == f"{cookie}; HttpOnly; SameSite=Lax; Path=/"
            for host in (f"127.0.0.1:{port}", f"10.1.2.3:{port}", f"[::1]:{port}", f"{socket.gethostname()}:{port}"):
                assert page.ask("GET", "/", Cookie=cookie, Host=host)[:2] == (200, "the page")
            for host in (f"evil.example:{port}", f"10.1.2.3.evil.example:{port}", "10.1.2.3"):
                assert page.ask("GET", "/", Cookie=cookie, Host=host)[0] == 421


def test_a_guessed_token_is_compared_in_constant_time(monkeypatch):
    seen = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: seen.append((a, b)) or a == b)
    guard = Guard(app=lambda *_: asyncio.sleep(0), host="h", address="10.0.0.1", port=1, token=TOKEN)
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"token=abc", "headers": [(b"host", b"h:1")]}

    async def send(message):
        seen.append(message.get("status"))

    asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
    assert seen[0] == (b"abc", TOKEN.encode())
    assert 403 in seen


@pytest.mark.parametrize(
    ("host", "asks"), [("127.0.0.1", False), ("127.0.0.7", False), ("localhost", False), ("", True)]
)
def test_loopback_alone_needs_no_token(host, asks):
    with listening(host, 0) as place:
        guard = Guard(app=lambda *_: asyncio.sleep(0), host=host, address=place.getsockname()[0], port=80)
    assert bool(guard.token) == asks


# ---- what can be chosen


def test_the_models_of_a_folder_are_offered_by_name(tmp_path):
    for name in ("b", "a", "no-model"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "fewstep.json").write_text("{}")
    (tmp_path / "a" / "model_index.json").write_text("{}")
    assert models([], str(tmp_path)) == {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}
    assert models(["x/y"], str(tmp_path)) == {"x/y": "x/y", "a": str(tmp_path / "a"), "b": str(tmp_path / "b")}
    assert models([], None) == {"Fashion-MNIST, shipped": None}
    with pytest.raises(ValueError, match="in which there is no model folder: name the folder above them"):
        models([], str(tmp_path / "a"))


def test_a_folder_without_models_ends_the_command_in_a_sentence(tmp_path, capsys):
    assert main(["ui", "--models", os.fspath(tmp_path), "--port", "7999"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_guard_lets_a_click_of_the_page_through_to_the_bit(page):
    said = page.answers(page.function(len(sample())), sample())
    assert any("ddim: 3 network calls each" in one for one in said)
    stored = sorted(page.folder.glob("*/samples.npz"), key=lambda file: file.stat().st_mtime)[-1]
    import numpy as np

    denoiser = tiny().denoiser([0, 1])
    x = fs.sample(denoiser, fs.VP(), solver=fs.tabulate("ddim", fs.VP(), steps=3, grid=fs.to_zero(fs.GRIDS["default"],
                  append=False)), shape=(2, 1, 4, 4), seed=0)  # fmt: skip
    assert torch.equal(torch.from_numpy(np.load(stored)["samples"]), x)


def test_the_bound_of_a_body_is_above_what_a_click_sends():
    assert len(json.dumps({"data": sample(), "fn_index": 0, "session_hash": "a" * 12, "event_data": None})) < BODY / 100
