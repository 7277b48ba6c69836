"""A model hub on this machine: the part of the Hub's HTTP API that uploads and downloads use.

Repositories with commits and files, kept in memory: create, preupload, LFS batch and upload,
commit, model information, tree, and resolve with ETags and ranges. Writing needs ``TOKEN``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_token_of_the_fake_hub"
USER = "tester"


@dataclass
class Repository:
    """Commits in order, each a name and its files (path -> (object id, is it LFS))."""

    private: bool = False
    commits: list[tuple[str, dict[str, tuple[str, bool]]]] = field(default_factory=list)
    branches: dict[str, int] = field(default_factory=dict)

    def commit(self, files: dict[str, tuple[str, bool]], branch: str = "main") -> str:
        name = hashlib.sha1(f"{id(self)}{len(self.commits)}".encode()).hexdigest()
        self.branches[branch] = len(self.commits)
        self.commits.append((name, files))
        return name

    def find(self, revision: str) -> tuple[str, dict[str, tuple[str, bool]]] | None:
        if revision in self.branches:
            return self.commits[self.branches[revision]]
        return next((c for c in self.commits if c[0] == revision), None)


class FakeHub:
    """The server's memory: repositories, objects, and every request it got."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.endpoint = ""

    def add(self, repo_id: str, files: dict[str, bytes]) -> str:
        """Put a repository there without the API; the commit's name."""
        entries = {}
        for path, data in files.items():
            oid = hashlib.sha256(data).hexdigest()
            self.objects[oid] = data
            entries[path] = (oid, _is_lfs(path))
        return self.repositories.setdefault(repo_id, Repository()).commit(entries)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        found = self.repositories[repo_id].find(revision)
        assert found is not None
        return {path: self.objects[oid] for path, (oid, _) in found[1].items()}

    @contextlib.contextmanager
    def serve(self) -> Iterator[FakeHub]:
        """Listen on a free port of 127.0.0.1."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def connect(hub: FakeHub, cache: Path, monkeypatch: Any) -> None:
    """Make the Hub libraries of this process use ``hub``, with a token and an empty cache.

    They read their environment once at import, so their constants are changed; another process
    is connected by :func:`environment`.
    """
    from huggingface_hub import constants, hf_api

    for name, value in environment(hub, cache).items():
        monkeypatch.setenv(name, value)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    with contextlib.suppress(ImportError):
        from transformers.utils import hub as transformers_hub

        monkeypatch.setattr(transformers_hub, "_hf_api", None)


def environment(hub: FakeHub, cache: Path) -> dict[str, str]:
    """Variables that connect a process which has not imported the Hub libraries yet."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(cache),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def _is_lfs(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".pth", ".h5", ".zip"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *args) -> None:
        pass

    # --- plumbing ---

    def _send(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        length = headers.pop("Content_Length", str(len(body)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, Content_Type="application/json")

    def _missing(self, what: str, **headers: str) -> None:
        self._send(b"", 404, X_Error_Code=f"{what}NotFound", X_Error_Message=what, **headers)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _may_write(self) -> bool:
        if self.headers.get("authorization") == f"Bearer {TOKEN}":
            return True
        self._send(b"", 401, X_Error_Message="Invalid credentials in Authorization header")
        return False

    def _repository(self, repo_id: str) -> Repository | None:
        repository = self.hub.repositories.get(repo_id)
        hidden = repository is not None and repository.private
        if repository is None or (
            hidden and self.headers.get("authorization") != f"Bearer {TOKEN}"
        ):
            self._missing("Repo")
            return None
        return repository

    def _route(self) -> None:
        url = urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        self.hub.requests.append((self.command, path))
        for method, pattern, name in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                getattr(self, name)(*match.groups())
                return
        self._body()
        self._send(f"the fake hub has no {self.command} {path}".encode(), 501)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _route

    # --- writing ---

    def _whoami(self) -> None:
        if self._may_write():
            self._json({"type": "user", "name": USER, "orgs": [], "auth": {}})

    def _create(self) -> None:
        wanted = json.loads(self._body())
        if not self._may_write():
            return
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if repo_id in self.hub.repositories:
            self._json({"error": "exists", "url": f"{self.hub.endpoint}/{repo_id}"}, 409)
            return
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repositories[repo_id] = Repository(private=bool(private))
        self.hub.repositories[repo_id].commit({})
        self._json({"url": f"{self.hub.endpoint}/{repo_id}", "id": repo_id})

    def _preupload(self, repo_id: str, revision: str) -> None:
        files = json.loads(self._body())["files"]
        if self._may_write() and self._repository(repo_id):
            self._json(
                {
                    "files": [
                        {
                            "path": f["path"],
                            "uploadMode": "lfs" if _is_lfs(f["path"]) else "regular",
                            "shouldIgnore": False,
                        }
                        for f in files
                    ]
                }
            )

    def _lfs_batch(self, repo_id: str) -> None:
        batch = json.loads(self._body())
        if not self._may_write():
            return
        objects = []
        for item in batch["objects"]:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.objects:
                href = f"{self.hub.endpoint}/lfs/{item['oid']}"
                entry["actions"] = {
                    "upload": {"href": href},
                    "verify": {"href": f"{href}/verify"},
                }
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid: str) -> None:
        data = self._body()
        if hashlib.sha256(data).hexdigest() != oid:
            self._send(b"", 400)
            return
        self.hub.objects[oid] = data
        self._send()

    def _lfs_verify(self, oid: str) -> None:
        wanted = json.loads(self._body())
        stored = self.hub.objects.get(oid)
        self._send(b"", 200 if stored is not None and len(stored) == wanted["size"] else 400)

    def _commit(self, repo_id: str, revision: str) -> None:
        lines = [json.loads(line) for line in self._body().splitlines()]
        repository = self._repository(repo_id) if self._may_write() else None
        if repository is None:
            return
        found = repository.find(revision)
        if found is None:
            self._missing("Revision")
            return
        files = dict(found[1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                data = base64.b64decode(value["content"])
                oid = hashlib.sha256(data).hexdigest()
                self.hub.objects[oid] = data
                files[value["path"]] = (oid, False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    self._send(b"", 400, X_Error_Message=f"{value['path']} was not uploaded")
                    return
                files[value["path"]] = (value["oid"], True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        name = repository.commit(files, revision)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{name}"
        self._json({"success": True, "commitOid": name, "commitUrl": url, "hookOutput": ""})

    def _branch(self, repo_id: str, branch: str) -> None:
        self._body()
        repository = self._repository(repo_id) if self._may_write() else None
        if repository is None:
            return
        if branch in repository.branches:
            self._json({"error": "exists"}, 409)
            return
        repository.branches[branch] = repository.branches["main"]
        self._json({})

    def _validate(self) -> None:
        self._body()
        self._json({"errors": [], "warnings": []})

    # --- reading ---

    def _at(self, repo_id: str, revision: str | None):
        repository = self._repository(repo_id)
        if repository is None:
            return None
        found = repository.find(revision or "main")
        if found is None:
            self._missing("Revision")
        return found

    def _information(self, repo_id: str, revision: str | None = None) -> None:
        found = self._at(repo_id, revision)
        if found:
            self._json(
                {
                    "id": repo_id,
                    "modelId": repo_id,
                    "sha": found[0],
                    "private": self.hub.repositories[repo_id].private,
                    "tags": [],
                    "siblings": [{"rfilename": path} for path in sorted(found[1])],
                }
            )

    def _entries(self, files: dict[str, tuple[str, bool]]) -> list[dict]:
        entries = []
        for path, (oid, lfs) in sorted(files.items()):
            size = len(self.hub.objects[oid])
            entry = {"type": "file", "path": path, "size": size, "oid": oid[:40]}
            if lfs:
                entry["lfs"] = {"oid": oid, "size": size, "pointerSize": 134}
            entries.append(entry)
        return entries

    def _tree(self, repo_id: str, revision: str, folder: str | None) -> None:
        found = self._at(repo_id, revision)
        if not found:
            return
        inside = f"{folder}/" if folder else ""
        files = {p: v for p, v in found[1].items() if p.startswith(inside)}
        if folder and not files:
            self._missing("Entry")
            return
        entries = self._entries(files)
        if self.query.get("recursive", ["false"])[0].lower() != "true":
            direct = [e for e in entries if "/" not in e["path"][len(inside) :]]
            folders = {
                inside + e["path"][len(inside) :].split("/")[0] for e in entries if e not in direct
            }
            entries = direct + [{"type": "directory", "path": f, "oid": "0" * 40} for f in folders]
        self._json(entries)

    def _paths(self, repo_id: str, revision: str) -> None:
        body = self._body()
        if "json" in (self.headers.get("Content-Type") or ""):
            wanted = json.loads(body)["paths"]
        else:
            wanted = parse_qs(body.decode()).get("paths", [])
        found = self._at(repo_id, revision)
        if found:
            self._json(self._entries({p: v for p, v in found[1].items() if p in wanted}))

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        found = self._at(repo_id, revision)
        if not found:
            return
        if path not in found[1]:
            self._missing("Entry", X_Repo_Commit=found[0])
            return
        oid, lfs = found[1][path]
        data = self.hub.objects[oid]
        headers = {"ETag": f'"{oid}"', "X_Repo_Commit": found[0], "Accept_Ranges": "bytes"}
        if lfs:
            headers |= {"X_Linked_Etag": f'"{oid}"', "X_Linked_Size": str(len(data))}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if self.command == "HEAD":
            self._send(b"", 200, Content_Length=str(len(data)), **headers)
        elif wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(data) - 1), len(data) - 1)
            headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
            self._send(data[first : last + 1], 206, **headers)
        else:
            self._send(data, **headers)


_ID = r"([\w.-]+(?:/[\w.-]+)?)"
_ROUTES = (
    ("GET", r"/api/whoami-v2", "_whoami"),
    ("POST", r"/api/repos/create", "_create"),
    ("POST", r"/api/validate-yaml", "_validate"),
    ("POST", rf"/api/models/{_ID}/preupload/(.+)", "_preupload"),
    ("POST", rf"/api/models/{_ID}/commit/(.+)", "_commit"),
    ("POST", rf"/api/models/{_ID}/branch/(.+)", "_branch"),
    ("POST", rf"/api/models/{_ID}/paths-info/([^/]+)", "_paths"),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", "_lfs_batch"),
    ("PUT", r"/lfs/(\w+)", "_lfs_put"),
    ("POST", r"/lfs/(\w+)/verify", "_lfs_verify"),
    ("GET", rf"/api/models/{_ID}/revision/([^/]+)", "_information"),
    ("GET", rf"/api/models/{_ID}/tree/([^/]+)(?:/(.+))?", "_tree"),
    ("GET", rf"/api/models/{_ID}", "_information"),
    ("GET HEAD", rf"/{_ID}/resolve/([^/]+)/(.+)", "_resolve"),
)
