"""A stand-in for the hub on 127.0.0.1: the few answers that huggingface_hub needs to fetch a model."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """One model: branches to commits, commits to files."""

    branches: dict[str, str]
    commits: dict[str, dict[str, bytes]]
    private_to: str | None = None
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


@dataclass
class StandIn:
    """The hub: its models, and the requests it has seen."""

    repos: dict[str, Repo] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], **kwargs: object) -> str:
        """Publish a model on `main`; return its commit."""
        commit = hashlib.sha1(repr((name, sorted(files.items()))).encode()).hexdigest()
        self.repos[name] = Repo({"main": commit}, {commit: files}, **kwargs)  # type: ignore[arg-type]
        return commit

    def fetched(self) -> set[str]:
        """Return the names of the files whose bytes were asked for."""
        return {
            line.split("/resolve/")[1].split("/", 1)[1]
            for line in self.seen
            if line.startswith("GET") and "/resolve/" in line
        }


@contextmanager
def running() -> Iterator[StandIn]:
    """Run a hub until the block ends."""
    hub = StandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.seen.append(f"{self.command} {path}")
            match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+)", path)
            if match:
                self.describe(*match.groups())
                return
            match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            if match:
                self.file(*match.groups(), with_body=with_body)
            else:
                self.send(404, b"{}")

        def allowed(self, name: str) -> Repo | None:
            repo = hub.repos.get(name)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if repo is None or (repo.private_to and token != repo.private_to):
                self.send(401, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
                return None
            return repo

        def describe(self, name: str, what: str, revision: str) -> None:
            repo = self.allowed(name)
            if repo is None:
                return
            commit = repo.commit(revision)
            if commit is None:
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                return
            files = repo.commits[commit]
            if what == "tree":
                tree = [
                    {"type": "file", "path": n, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for n, d in files.items()
                ]
                self.send(200, json.dumps(tree).encode())
                return
            siblings = [
                {"rfilename": n, "size": len(d), "blobId": hashlib.sha1(d).hexdigest()} for n, d in files.items()
            ]
            self.send(200, json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode())

        def file(self, name: str, revision: str, file: str, *, with_body: bool) -> None:
            repo = self.allowed(name)
            if repo is None:
                return
            commit = repo.commit(revision)
            if repo.gated:
                self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif commit is None:
                self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif file not in repo.commits[commit]:
                self.send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            else:
                data = repo.commits[commit][file]
                extra = {
                    "ETag": f'"{hashlib.sha1(data).hexdigest()}"',
                    "X-Repo-Commit": commit,
                    "Accept-Ranges": "bytes",
                }
                part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
                if part:
                    begin, end = int(part[1]), int(part[2] or len(data) - 1)
                    extra["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
                    self.send(206, data[begin : end + 1], extra, with_body=with_body)
                else:
                    self.send(200, data, extra, with_body=with_body)

        def send(
            self, status: int, body: bytes, extra: dict[str, str] | None = None, *, with_body: bool = True
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (extra or {}).items():
                self.send_header(name, value)
            self.end_headers()
            if with_body and self.command != "HEAD":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
