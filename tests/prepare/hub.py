"""A hub of models and data sets on this machine: as much of the API as its client asks for."""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.prepare.server import serving

SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclasses.dataclass
class Hub:
    """Repositories ("models/owner/name", "datasets/owner/name") -> path -> bytes."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    gated: set[str] = dataclasses.field(default_factory=set)  # not for who sends no token
    sent: list[str] = dataclasses.field(default_factory=list)  # files, by their paths
    token: str = ""  # that may write
    private: set[str] = dataclasses.field(default_factory=set)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts == ["api", "whoami-v2"]:
            return self.answer(200, b'{"name": "someone"}') if self.may_write() else None
        if parts[0] == "api":
            return self.api("/".join(parts[1:4]), parts[4:])
        kind = [] if parts[0] == "datasets" else ["models"]
        repository, (_, _, *path) = "/".join([*kind, *parts][:3]), [*kind, *parts][3:]
        return self.file(repository, "/".join(path))

    do_HEAD = do_GET

    def do_POST(self):
        parts = urlsplit(self.path).path.strip("/").split("/")
        asked = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if parts[1:] == ["validate-yaml"]:
            return self.validate(json.loads(asked)["content"])
        if parts[1:] == ["repos", "create"]:
            return self.create(json.loads(asked)) if self.may_write() else None
        if parts[4:5] in (["preupload"], ["commit"]) and not self.may_write():
            return None
        if parts[4:5] == ["preupload"]:
            names = [file["path"] for file in json.loads(asked)["files"]]
            kinds = {"uploadMode": "regular", "shouldIgnore": False}
            told = {"files": [{"path": name, **kinds} for name in names]}
            return self.answer(200, json.dumps(told).encode())
        if parts[4:5] == ["commit"]:
            return self.commit("/".join(parts[1:4]), map(json.loads, asked.splitlines()))
        # paths-info
        wanted = json.loads(asked)["paths"] if asked.startswith("{") else []
        entries = self.entries("/".join(parts[1:4]))
        found = [entry for entry in entries if entry["path"] in wanted]
        return self.answer(200, json.dumps(found).encode())

    def api(self, repository, rest):
        if repository not in self.hub.repositories:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["tree"]:
            below = "".join(f"{part}/" for part in rest[2:])
            told = [one for one in self.entries(repository) if one["path"].startswith(below)]
        else:
            name = repository.partition("/")[2]
            siblings = [{"rfilename": entry["path"]} for entry in self.entries(repository)]
            told = {"id": name, "sha": SHA, "siblings": siblings, "cardData": {"license": "mit"}}
            told |= {"gated": repository in self.hub.gated, "private": False, "tags": []}
        return self.answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def may_write(self):
        """Answers with a refusal unless the token is the right one."""
        right = self.headers["Authorization"] == f"Bearer {self.hub.token}" and self.hub.token
        if not right:
            self.answer(401, b'{"error": "Invalid credentials"}')
        return right

    def validate(self, content):
        """The hub takes base models by their names only."""
        named = re.search(r"^base_model: (.*)$", content, re.MULTILINE)
        good = named is None or re.fullmatch(r'"?[\w.-]+/[\w.-]+"?', named[1])
        errors = [] if good else [{"message": f"base_model {named[1]} is not valid"}]
        told = json.dumps({"errors": errors, "warnings": []}).encode()
        return self.answer(400 if errors else 200, told)

    def create(self, wanted):
        name = f"{wanted['organization']}/{wanted['name']}"
        repository = f"{wanted['type']}s/{name}"
        if repository in self.hub.repositories:
            return self.answer(409, b'{"error": "You already created this repo"}')
        self.hub.repositories[repository] = {}
        if wanted.get("visibility") == "private":
            self.hub.private.add(repository)
        told = {"url": f"{self.hub.address}/{repository.removeprefix('models/')}"}
        return self.answer(200, json.dumps(told).encode())

    def commit(self, repository, lines):
        for line in lines:
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.hub.repositories[repository][line["value"]["path"]] = content
        url = f"{self.hub.address}/{repository.removeprefix('models/')}"
        told = {"commitUrl": f"{url}/commit/{SHA}", "commitOid": SHA}
        return self.answer(200, json.dumps(told).encode())

    def entries(self, repository):
        """The files, and the folders that they are in."""
        files = self.hub.repositories[repository]
        folders = {path.rpartition("/")[0] for path in files} - {""}
        listed = [{"type": "directory", "path": path, "oid": SHA, "size": 0} for path in folders]
        return listed + [
            {"type": "file", "path": path, "size": len(body), "oid": _oid(body)}
            for path, body in files.items()
        ]

    def file(self, repository, path):
        if repository not in self.hub.repositories:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if repository in self.hub.gated and "Authorization" not in self.headers:
            return self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        body = self.hub.repositories[repository].get(path)
        if body is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": SHA})
        if self.command == "GET":
            self.hub.sent.append(path)
        return self.answer(200, body, {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": SHA})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in ((headers or {}) | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _oid(body):
    return hashlib.sha1(body).hexdigest()


@contextlib.contextmanager
def serving_hub() -> Iterator[Hub]:
    """Serve an empty hub."""
    hub = Hub()
    with serving(type("HubHandler", (Handler,), {"hub": hub})) as hub.address:
        yield hub
