"""A small Hub of this machine: a real HTTP server that answers what ``huggingface_hub`` asks for when a folder is put there."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_right"


class LocalHub(ThreadingHTTPServer):
    """Takes TOKEN alone, and repositories of ``me`` alone."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, dict[str, bytes]] = {}
        """What was put there: by repository, by name."""
        self.visibility: dict[str, Any] = {}
        self.broken = False
        """Whether it finds every upload too large."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0].split("/")[1:]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"error": "Invalid credentials in Authorization header"})
        if path == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        if path == ["api", "validate-yaml"]:
            return self.reply(200, {"errors": [], "warnings": []})
        if self.server.broken:
            return self.reply(413, {"error": "too large"})
        repository, what = "/".join(path[2:4]), path[4]
        if what == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            return self.reply(200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in asked]})
        assert what == "commit", self.path
        rows = [json.loads(line) for line in body.splitlines() if line]
        added = [row["value"] for row in rows if row["key"] == "file"]
        self.server.files[repository] |= {value["path"]: base64.b64decode(value["content"]) for value in added}
        self.reply(200, {"commitUrl": f"{self.server.address}/{repository}/commit/0", "commitOid": "0" * 40, "success": True})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].split("/")[1:]
        repository = "/".join(path[2:4])
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, {"error": "Invalid credentials in Authorization header"})
        if repository not in self.server.files:
            return self.reply(404, {"error": "Repository not found"})
        if path[4:] == ["auth-check", "write"] and not repository.startswith("me/"):
            return self.reply(403, {"error": "Forbidden"})
        self.reply(200, {"id": repository, "sha": "0" * 40, "siblings": []})

    def create(self, asked: dict[str, Any]) -> None:
        if asked["organization"] != "me":
            return self.reply(403, {"error": "You don't have the rights to create a model under the namespace"})
        name = f"me/{asked['name']}"
        there = name in self.server.files
        self.server.files.setdefault(name, {})
        self.server.visibility[name] = asked.get("visibility")
        self.reply(409 if there else 200, {"url": f"{self.server.address}/{name}"})

    def reply(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """The server, while it runs."""
    with LocalHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
