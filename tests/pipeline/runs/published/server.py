"""A small server that speaks as much of the Hub's protocol as downloading from it and committing to it takes.

Files lie in memory, by repository and path; every commit has a number of its own. It asks for no name and no password.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit


class HubServer(ThreadingHTTPServer):
    """The repositories, each a list of commits, each commit all files by path; and what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.created: list[dict[str, object]] = []
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        """What HF_ENDPOINT names it by."""
        return f"http://127.0.0.1:{self.server_port}"

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit that changes these files; its name."""
        commits = self.repositories.setdefault(repository, [])
        commits.append((commits[-1] if commits else {}) | files)
        return commit_name(repository, len(commits))


def commit_name(repository: str, number: int) -> str:
    """What stands for a commit: 40 digits, as git has it."""
    return hashlib.sha1(f"{repository} {number}".encode(), usedforsecurity=False).hexdigest()


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """The server, while it is at work."""
    server = HubServer()
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: HubServer

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Which commit a file is of, and its size."""
        self._resolve()

    def do_GET(self) -> None:
        """A file."""
        self._resolve()

    def _resolve(self) -> None:
        """/USER/NAME/resolve/REVISION/PATH"""
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        user, name, _, revision, file = path.removeprefix("/").split("/", 4)
        repository = f"{user}/{name}"
        if repository not in self.server.repositories:
            return self._answer(404, {"X-Error-Code": "RepoNotFound"})
        commits = self.server.repositories[repository]
        names = [commit_name(repository, number + 1) for number in range(len(commits))]
        if revision not in ("main", *names):
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        which = names.index(revision) if revision in names else len(commits) - 1
        content = commits[which].get(file)
        if content is None:
            return self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": names[which]})
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(200, {"ETag": f'"{etag}"', "X-Repo-Commit": names[which]}, content)

    def do_POST(self) -> None:
        """Making a repository, and the steps of a commit."""
        path = urlsplit(self.path).path
        self.server.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        match path.removeprefix("/api/").split("/"):
            case ["repos", "create"]:
                asked = json.loads(body)
                self.server.created.append(asked)
                repository = f"{asked['organization']}/{asked['name']}"
                self.server.repositories.setdefault(repository, [])
                self._json({"url": f"{self.server.address}/{repository}"})
            case ["validate-yaml"]:
                described = json.loads(body)["content"].startswith("---\n")
                self._json({"warnings": [] if described else [{"message": "empty metadata"}], "errors": []})
            case ["models", _, _, "preupload", "main"]:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self._json({"files": files})
            case ["models", user, name, "commit", "main"]:
                lines = [json.loads(line) for line in body.splitlines() if line.strip()]
                files = [line["value"] for line in lines if line["key"] == "file"]
                contents = {file["path"]: base64.b64decode(file["content"]) for file in files}
                commit = self.server.commit(f"{user}/{name}", contents)
                self._json({"commitUrl": f"{self.server.address}/{user}/{name}/commit/{commit}", "commitOid": commit})
            case _:
                self._answer(404, {})

    def _json(self, content: dict[str, object]) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(content).encode())

    def _answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def files_below(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
