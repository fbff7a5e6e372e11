"""Serve the voting page on 127.0.0.1 and append each vote to a CSV file at once."""

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote

from caan.errors import InputError

GENDERS = {"m": "male", "f": "female"}
"""Keys and their words (paper Section 3.1)."""

AGE_RANGES = {"c": "child", "t": "teenager", "a": "adult"}
"""Keys and their words (paper Section 3.1)."""

COLUMNS = ("video_id", "annotator", "label", "gender", "age_range")

MAX_VOTE_BYTES = 10_000
"""Longest body of a vote request."""

_TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".mkv": "video/webm", ".ogv": "video/ogg"}


class Ballot:
    """The videos of one annotator, and the CSV file that votes are appended to."""

    def __init__(self, rows: Sequence[dict[str, Any]], path: str, annotator: str) -> None:
        self.rows = {row["video_id"]: row for row in rows}
        self.path, self.annotator, self.lock = Path(path), annotator, Lock()
        self.votes: dict[str, dict[str, str]] = {}
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        content = self.path.read_bytes()
        if content and not content.endswith(b"\n"):
            # A crash cut the last line. The page was never told that this vote was saved.
            whole = content[: content.rfind(b"\n") + 1]
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
            content = whole
        lines = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
        if content and not set(COLUMNS) <= set(lines.fieldnames or ()):
            raise InputError(
                f"`{self.path}` is not a file of votes of this page: it lacks some of the columns "
                f"{', '.join(COLUMNS)}. Give another file with --votes."
            )
        for line in lines:
            if line["annotator"] == self.annotator:
                self.votes[line["video_id"]] = _answers(line)

    def videos(self) -> list[dict[str, Any]]:
        """The fields of each video that the page needs, in the manifest's order."""
        names = ("video_id", "face_box", "face_pts_seconds", "width", "height")
        return [
            {name: row.get(name) for name in names} | {"vote": self.votes.get(video_id)}
            for video_id, row in self.rows.items()
        ]

    def vote(self, line: dict[str, str], *, revise: bool = False) -> bool:
        """Append a vote and sync it to disk; False if the video has a vote and `revise` is off."""
        with self.lock:
            if line["video_id"] in self.votes and not revise:
                return False
            text = io.StringIO()
            writer = csv.writer(text)
            if not self.path.exists() or self.path.stat().st_size == 0:
                writer.writerow(COLUMNS)
            writer.writerow([(line | {"annotator": self.annotator})[name] for name in COLUMNS])
            with self.path.open("a", newline="") as file:
                file.write(text.getvalue())
                file.flush()
                os.fsync(file.fileno())
            self.votes[line["video_id"]] = _answers(line)
            return True


def _answers(line: dict[str, str]) -> dict[str, str]:
    return {
        "emotion": line["label"],
        "gender": line["gender"] or "",
        "age_range": line["age_range"] or "",
    }


def keys_of(emotions: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Key on the keyboard -> (field, answer)."""
    digits = "1234567890"
    return {
        **{digits[number]: ("emotion", name) for number, name in enumerate(emotions)},
        **{key: ("gender", name) for key, name in GENDERS.items()},
        **{key: ("age_range", name) for key, name in AGE_RANGES.items()},
    }


def make_server(
    rows: Sequence[dict[str, Any]], path: str, annotator: str, emotions: Sequence[str], port: int
) -> ThreadingHTTPServer:
    """Bind the server to 127.0.0.1 (port 0: any free port); the caller starts it.

    Raises:
        InputError: a video is not a local file, or `path` is not a file of votes.
    """
    if remote := [row["uri"] for row in rows if not row["uri"].startswith("/")]:
        raise InputError(
            f"the page shows local files only, and `{remote[0]}` is not one: copy the videos here."
        )
    page = (Path(__file__).parent / "page.html").read_bytes()
    ballot = Ballot(rows, path, annotator)
    keys = keys_of(emotions)
    words = {"gender": {"", *GENDERS.values()}, "age_range": {"", *AGE_RANGES.values()}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = unquote(self.path)
            if not self.is_local_host():
                self.answer(404, "text/plain", b"not here")
            elif name == "/":
                self.answer(200, "text/html; charset=utf-8", page)
            elif name == "/videos":
                state = {"annotator": annotator, "keys": keys, "videos": ballot.videos()}
                self.answer(200, "application/json", json.dumps(state).encode())
            elif row := ballot.rows.get(name.removeprefix("/video/")):
                self.send_video(Path(row["uri"]))
            else:
                self.answer(404, "text/plain", b"not here")

        def do_POST(self) -> None:
            # A page of another site cannot post JSON here without the browser asking this server.
            is_json = self.headers["Content-Type"] == "application/json"
            size = int(self.headers["Content-Length"] or 0)
            if self.path != "/vote" or not is_json or not self.is_local_host():
                return self.answer(404, "text/plain", b"not here")
            if size > MAX_VOTE_BYTES:
                return self.answer(413, "text/plain", b"too long")
            try:
                vote = json.loads(self.rfile.read(size))
                line = {name: str(vote[name]) for name in COLUMNS if name != "annotator"}
            except (ValueError, KeyError, TypeError):
                return self.answer(400, "text/plain", b"no vote")
            if line["video_id"] not in ballot.rows or line["label"] not in emotions:
                return self.answer(400, "text/plain", b"no such video or emotion")
            if any(line[name] not in allowed for name, allowed in words.items()):
                return self.answer(400, "text/plain", b"no such gender or age range")
            try:
                is_new = ballot.vote(line, revise=vote.get("revise") is True)
            except OSError as error:
                return self.answer(500, "text/plain", str(error.strerror).encode())
            if not is_new:
                return self.answer(409, "text/plain", b"you have voted on this video")
            self.answer(200, "text/plain", b"saved")

        def is_local_host(self) -> bool:
            """Whether the Host header is this machine, not another name that resolves to it."""
            host = (self.headers["Host"] or "").rpartition(":")[0]
            return host in ("127.0.0.1", "localhost")

        def send_video(self, path: Path) -> None:
            """Send the file, or the range of it that the browser asks for when it seeks."""
            try:
                with path.open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
                    first = min(int(asked[1]), size) if asked else 0
                    last = min(int(asked[2] or size), size - 1) if asked else size - 1
                    self.send_response(206 if asked else 200)
                    self.send_header("Content-Type", _TYPES.get(path.suffix.lower(), "video/mp4"))
                    self.send_header("Accept-Ranges", "bytes")
                    self.send_header("Content-Length", str(max(0, last - first + 1)))
                    if asked:
                        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
                    self.end_headers()
                    file.seek(first)
                    left = last - first + 1
                    while left > 0 and (part := file.read(min(left, 1 << 20))):
                        self.wfile.write(part)
                        left -= len(part)
            except FileNotFoundError:
                self.answer(404, "text/plain", b"the file is gone")
            except ConnectionError:
                self.close_connection = True  # the browser has read enough

        def answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Log nothing."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def serve(
    rows: Sequence[dict[str, Any]], path: str, annotator: str, emotions: Sequence[str], port: int
) -> None:
    """Serve the page until interrupted."""
    with make_server(rows, path, annotator, emotions, port) as server:
        print(f"http://127.0.0.1:{server.server_port}/  (Ctrl-C ends)")  # noqa: T201
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
