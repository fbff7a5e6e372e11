"""A page on 127.0.0.1 that shows one video after the other and appends votes to a CSV file."""

import csv
import io
import json
import os
import shutil
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

from caan.errors import InputError

COLUMNS = ("video_id", "annotator", "label", "gender", "age_range")

PAGE = """<!doctype html><meta charset=utf-8><title>Votes</title>
<style>body{font:16px sans-serif;max-width:60em;margin:2em auto}video{width:100%;max-height:60vh}
kbd{border:1px solid;padding:0 .4em}</style>
<p id=left></p><video id=video controls autoplay loop muted></video><p id=keys></p>
<p><label>gender <input id=gender></label> <label>age range <input id=age></label></p>
<script>
let state, sending = false
async function next() {
  state = await (await fetch("/next")).json()
  left.textContent = state.left ? state.left + " videos left" : "All videos have your vote."
  video.hidden = !state.left
  if (state.left) video.src = "/video/" + state.video_id
  keys.innerHTML = state.emotions.map((e, i) => `<kbd>${i + 1}</kbd> ${e}`).join(" &nbsp; ")
}
addEventListener("keydown", async event => {
  const label = state && state.emotions[Number(event.key) - 1]
  if (!label || !state.left || sending || event.target.tagName === "INPUT") return
  sending = true
  const vote = {video_id: state.video_id, label, gender: gender.value, age_range: age.value}
  const answer = await fetch("/vote", {method: "POST", body: JSON.stringify(vote),
    headers: {"Content-Type": "application/json"}})
  if (answer.ok) { gender.value = age.value = ""; await next() }
  else left.textContent = "The vote was not saved: " + await answer.text()
  sending = false
})
next()
</script>"""


class Ballot:
    """The open videos of one annotator, and the CSV file that votes are appended to."""

    def __init__(self, rows: Sequence[dict[str, Any]], path: str, annotator: str) -> None:
        self.rows = {row["video_id"]: row for row in rows}
        self.path, self.annotator, self.lock = Path(path), annotator, Lock()
        self.done: set[str] = set()
        if self.path.exists():
            with self.path.open(newline="") as file:
                lines = csv.DictReader(file)
                self.done = {v["video_id"] for v in lines if v["annotator"] == annotator}

    def open_videos(self) -> list[str]:
        """Ids of the videos without a vote of this annotator, in the manifest's order."""
        return [video_id for video_id in self.rows if video_id not in self.done]

    def vote(self, video_id: str, label: str, gender: str, age_range: str) -> bool:
        """Append a vote and sync it to disk; False where the annotator has voted already."""
        with self.lock:
            if video_id in self.done:
                return False
            line = io.StringIO()
            writer = csv.writer(line)
            if not self.path.exists() or self.path.stat().st_size == 0:
                writer.writerow(COLUMNS)
            writer.writerow([video_id, self.annotator, label, gender, age_range])
            with self.path.open("a", newline="") as file:
                file.write(line.getvalue())
                file.flush()
                os.fsync(file.fileno())
            self.done.add(video_id)
            return True


def make_server(
    rows: Sequence[dict[str, Any]], path: str, annotator: str, emotions: Sequence[str], port: int
) -> ThreadingHTTPServer:
    """The server, bound to 127.0.0.1 (port 0: a free one), not serving yet.

    Raises:
        InputError: a video is no local file.
    """
    if remote := [row["uri"] for row in rows if not row["uri"].startswith("/")]:
        raise InputError(f"the page shows local files only, and `{remote[0]}` is none.")
    ballot = Ballot(rows, path, annotator)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.is_asked_here():
                self.answer(404, "text/plain", b"not here")
            elif self.path == "/":
                self.answer(200, "text/html; charset=utf-8", PAGE.encode())
            elif self.path == "/next":
                left = ballot.open_videos()
                state = {"left": len(left), "emotions": emotions, "video_id": (left or [""])[0]}
                self.answer(200, "application/json", json.dumps(state).encode())
            elif row := ballot.rows.get(self.path.removeprefix("/video/")):
                with open(row["uri"], "rb") as file:
                    self.send_response(200)
                    self.send_header("Content-Type", "video/mp4")
                    self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
                    self.end_headers()
                    shutil.copyfileobj(file, self.wfile)
            else:
                self.answer(404, "text/plain", b"not here")

        def do_POST(self) -> None:
            # Another site's page can post no JSON here: the browser would ask first.
            is_json = self.headers["Content-Type"] == "application/json"
            if self.path != "/vote" or not is_json or not self.is_asked_here():
                return self.answer(404, "text/plain", b"not here")
            vote = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if vote["video_id"] not in ballot.rows or vote["label"] not in emotions:
                return self.answer(400, "text/plain", b"no such video or emotion")
            words = [str(vote.get(key, "")) for key in ("gender", "age_range")]
            if not ballot.vote(vote["video_id"], vote["label"], *words):
                return self.answer(409, "text/plain", b"you have voted on this video")
            self.answer(200, "text/plain", b"saved")

        def is_asked_here(self) -> bool:
            """Whether the browser asked for this machine, not for a name that leads to it."""
            host = (self.headers["Host"] or "").rpartition(":")[0]
            return host in ("127.0.0.1", "localhost")

        def answer(self, status: int, kind: str, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are not logged."""

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
