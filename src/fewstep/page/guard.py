"""Who may ask the page for what: every request passes here before gradio sees it.

| asked                                             | answered                                                    |
|---------------------------------------------------|-------------------------------------------------------------|
| a Host that is not the page's (DNS rebinding)     | 421                                                         |
| an Origin that is not the Host (another page)     | 403                                                         |
| without the token, where others can reach it      | 403; the address printed at the start sets a cookie once    |
| a route that the page itself does not use         | 404: no upload, no file of the server, no proxy, no API     |
| a body above `BODY`, or where none belongs        | 413 before it is read, by its length or after `BODY` bytes  |
| a body other than plain values                    | 422: a file, an address or a path in disguise gets nowhere  |
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import math
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs

__all__ = ["Guard"]

BODY = 2**16  # bytes; what a click sends has under a thousand
SECONDS = 10  # for a body to arrive
VALUES, LETTERS = 48, 400  # of a click: how many, and how long a text among them
READ = re.compile(
    r"/|/(assets|static)/[\w./@+-]+|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt"
    r"|/made/\w+/(samples\.npz|sheet\.png|run\.json|run\.py)"
    r"|/gradio_api/(app_id|heartbeat/\w+|queue/data)"
)
WRITTEN = re.compile(r"/gradio_api/(queue/join|cancel|reset)")
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"same-origin"),  # the token is in no address that another page sees
]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _Refused(Exception):
    """A status and the sentence that goes with it."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """An ASGI application in front of another."""

    app: Callable[..., Awaitable[None]]  # the page
    host: str  # the name it is served on, as given at the start
    address: str  # the IP address that name stands for
    port: int  # where
    # what a visitor must bring; by default a random one where others than this machine reach the address
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.token is None and not ipaddress.ip_address(self.address).is_loopback:
            object.__setattr__(self, "token", secrets.token_urlsafe(24))

    @property
    def url(self) -> str:
        """What a person opens."""
        name = socket.gethostname() if ipaddress.ip_address(self.address).is_unspecified else _bracketed(self.host)
        return f"http://{name}:{self.port}" + (f"/?token={self.token}" if self.token else "")

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":  # the page uses none
            await send({"type": "websocket.close", "code": 1008})
        else:
            try:
                cookie = self._admits(scope)
                if cookie is not None:
                    await _answer(send, 303, "", [(b"location", b"/"), (b"set-cookie", cookie)])
                    return
                body = await _body(scope, receive)
            except _Refused as refused:
                status, sentence = refused.args
                await _answer(send, status, sentence)
                return
            await self.app(scope, _replayed(body, receive), _with_headers(send))

    def _admits(self, scope: Message) -> bytes | None:
        """Refuses a request by its head, or returns the cookie of a first visit; None lets it pass."""
        hosts, origins = (_values(scope, name) for name in (b"host", b"origin"))
        if len(hosts) != 1 or not self._is_ours(hosts[0].lower()):
            raise _Refused(421, f"got the Host {', '.join(hosts) or 'of nobody'}, which is not this page's: open "
                                f"{self.url.partition('?')[0]}")  # fmt: skip
        if any(origin != f"http://{hosts[0]}" for origin in origins):
            raise _Refused(403, f"got a request from {', '.join(origins)}: this page answers itself alone; open it in "
                                "a tab of its own")  # fmt: skip
        path, method = scope["path"], scope["method"]
        if self.token:
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if path == "/" and method == "GET" and _same(given, self.token):
                return f"{self._cookie}={self.token}; HttpOnly; SameSite=Lax; Path=/".encode()
            if not any(_same(kept, self.token) for kept in _cookies(scope, self._cookie)):
                raise _Refused(403, "got no token, or a wrong one: open the whole address that `fewstep ui` printed")
        allowed = {"GET": READ, "HEAD": READ, "POST": WRITTEN}.get(method)
        if allowed is None or ".." in path or not allowed.fullmatch(path):
            raise _Refused(404, f"got {method} {path[:100]!r}, which this page does not have: open "
                                f"{self.url.partition('?')[0]}")  # fmt: skip
        return None

    @property
    def _cookie(self) -> str:
        return f"fewstep-{self.port}"  # cookies of a host are shared by its ports

    def _is_ours(self, host: str) -> bool:
        """Whether a Host header names this page. A number cannot be rebound, so where all are served any one may."""
        name, _, port = host.rpartition(":") if re.search(r":\d+$", host) else (host, "", "80")
        if port != str(self.port):
            return False
        names = {"localhost", "127.0.0.1", "[::1]", _bracketed(self.host).lower(), _bracketed(self.address)}
        if not ipaddress.ip_address(self.address).is_unspecified:
            return name in names
        with suppress(ValueError):
            return bool(ipaddress.ip_address(name.strip("[]")))
        return name in names | {socket.gethostname().lower()}


async def _body(scope: Message, receive: Receive) -> bytes:
    """The body of a request that may have one, checked; nothing beyond `BODY` is read."""
    refused = _Refused(413, f"got a body of more than {BODY} bytes, which this page does not take: send less")
    (length, *_), most = _values(scope, b"content-length") or ["0"], BODY if scope["method"] == "POST" else 0
    if not (length.isascii() and length.isdecimal()) or int(length[:20]) > most:
        raise refused
    if most == 0:
        if _values(scope, b"transfer-encoding"):
            raise refused
        return b""
    body, more = b"", True
    try:
        async with asyncio.timeout(SECONDS):
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
                if len(body) > most:
                    raise refused
    except TimeoutError:
        raise _Refused(408, f"got no whole body within {SECONDS} seconds: send it again") from None
    if not _plain(body):
        raise _Refused(422, "got a body that no click on this page sends: give JSON whose data are plain values")
    return body


def _plain(body: bytes) -> bool:
    """Whether a body is a JSON object whose data are a few numbers and short texts: nothing that gradio would fetch."""
    try:
        sent = json.loads(body, parse_constant=lambda _: 1 / 0)
    except (ValueError, RecursionError, ZeroDivisionError):
        return False
    data = sent.get("data") or [] if isinstance(sent, dict) else None
    return isinstance(data, list) and len(data) <= VALUES and all(
        value is None or (len(value) <= LETTERS if isinstance(value, str) else isinstance(value, bool | int | float)
                          and math.isfinite(value))
        for value in data
    )  # fmt: skip


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that begins with a body read before."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
        await send(message)

    return sent


async def _answer(send: Send, status: int, sentence: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """A whole answer; the connection ends with it, and what else was being sent is not read."""
    text = sentence.encode("utf-8", "replace")
    own = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode()),
           (b"connection", b"close"), *HEADERS]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": [*own, *(headers or [])]})
    await send({"type": "http.response.body", "body": text})


def _values(scope: Message, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _cookies(scope: Message, name: str) -> list[str]:
    with suppress(Exception):  # a malformed one is none
        return [jar[name].value for jar in map(SimpleCookie, _values(scope, b"cookie")) if name in jar]
    return []


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _bracketed(name: str) -> str:
    return f"[{name}]" if ":" in name and not name.startswith("[") else name
