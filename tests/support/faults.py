"""A proxy before an S3 server that answers some requests with faults, as real storage does."""

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

OPERATIONS = ("GET", "HEAD", "LIST", "PUT", "PART", "COMPLETE", "COPY", "DELETE")
TRANSIENT = ("500", "503", "reset", "half", "stall")
"""An answer 500 or 503 SlowDown, a connection reset before the answer or in its middle, none."""

_CODES = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect")


@dataclass
class Faults:
    """Which requests get which fault, and which had one."""

    kinds: tuple[str, ...] = ()
    """Of TRANSIENT, or `403`, or `lost`: what was asked is done, and the answer lost."""
    operations: tuple[str, ...] = OPERATIONS
    """Of OPERATIONS."""
    share: float = 1.0
    """How likely a request gets a fault."""
    most_per_request: int = 2
    """Faults of one and the same request (method, key, query) until it is let through."""
    keys: str = ""
    """Only keys that hold this text."""
    stall_seconds: float = 5.0
    """How long a stalled request hangs; then its connection is closed."""
    seed: int = 0
    """Of the choice."""
    injected: Counter[str] = field(default_factory=Counter)
    """Faults so far, by `operation kind`."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._of_request: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def choose(self, operation: str, method: str, path: str) -> str | None:
        """The fault of this request, if it gets one."""
        with self._lock:
            request = method, path
            if (
                not self.kinds
                or operation not in self.operations
                or self.keys not in path
                or self._of_request[request] >= self.most_per_request
                or self._random.random() >= self.share
            ):
                return None
            self._of_request[request] += 1
            kind = self._random.choice(self.kinds)
            self.injected[f"{operation} {kind}"] += 1
            return kind


def operation_of(method: str, path: str, headers: Iterable[str]) -> str:
    """What S3 calls a request."""
    query = urlsplit(path).query
    if method == "PUT":
        if "x-amz-copy-source" in {name.lower() for name in headers}:
            return "COPY"
        return "PART" if "partNumber=" in query else "PUT"
    if method == "POST":
        return "DELETE" if query.startswith("delete") else "COMPLETE"
    if method == "GET" and ("list-type" in query or "prefix=" in query):
        return "LIST"
    return method


class FaultProxy:
    """Listens on loopback and hands requests on to `upstream`, after the faults of `faults`.

    `requests` and `sent_bytes` count what was answered, by (operation, path without query).
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.faults = Faults()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.sent_bytes: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def count(self, operation: str, path: str, num_bytes: int) -> None:
        """Count an answer with so many bytes."""
        of = operation, urlsplit(path).path
        with self._lock:
            self.requests[of] += 1
            self.sent_bytes[of] += num_bytes

    def close(self) -> None:
        """Ends the listening."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: FaultProxy

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the faults are counted."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _handle(self) -> None:
        body = self._body()
        faults = self.owner.faults
        operation = operation_of(self.command, self.path, self.headers.keys())
        kind = faults.choose(operation, self.command, self.path)
        if kind in _CODES:
            self._refuse(int(kind), _CODES[kind])
            return
        if kind == "stall":
            time.sleep(faults.stall_seconds)
        if kind in ("reset", "stall"):
            self._reset()
            return
        upstream = http.client.HTTPConnection(self.owner.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP_BY_HOP}
        upstream.request(self.command, self.path, body=body, headers=headers)
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if kind == "lost":
            self._reset()
            return
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in (*_HOP_BY_HOP, "date", "server"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length", "0")
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        if kind == "half":
            self.wfile.write(content[: len(content) // 2])
            self._reset()
        elif self.command != "HEAD":
            self.wfile.write(content)
        self.owner.count(operation, self.path, len(content))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _refuse(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code}</Message></Error>"
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())

    def _reset(self) -> None:
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)  # closing sends a reset
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RD)
        self.connection.close()
