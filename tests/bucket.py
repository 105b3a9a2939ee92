"""A Google Cloud Storage of this machine: an emulator, with a bucket's faults when a test asks."""

import contextlib
import dataclasses
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from unittest import mock
from urllib.parse import unquote

NAME = "bucket"
CLOSED = "closed"  # a bucket that gives nobody anything


@dataclasses.dataclass
class Faults:
    """What goes wrong from now on.

    Attributes:
        broken_writes: pattern of object names -> how many writes break off, after their bytes.
        refused_writes: pattern of object names -> how many writes are answered with 503.
        unlisted: pattern of the names that no listing shows, as if it lagged behind.
        written: the names of all objects written, in order.
    """

    broken_writes: dict[str, int] = dataclasses.field(default_factory=dict)
    refused_writes: dict[str, int] = dataclasses.field(default_factory=dict)
    unlisted: str = ""
    written: list[str] = dataclasses.field(default_factory=list)

    def clear(self) -> None:
        """Nothing goes wrong any more, and nothing was written."""
        self.broken_writes, self.refused_writes, self.unlisted, self.written = {}, {}, "", []

    def take(self, faults: dict[str, int], name: str) -> bool:
        """Whether this write has the fault; counts it."""
        for pattern, left in faults.items():
            if left and re.search(pattern, name):
                faults[pattern] = left - 1
                return True
        return False


def _router(faults: Faults, emulator):
    """The emulator's router, with faults and with writes that may not replace anything."""

    one_at_a_time = threading.Lock()

    class Router(emulator.Router):
        def handle(self, method):
            with one_at_a_time:
                self.answer(method)

        def answer(self, method):
            handler = self._request_handler
            request = emulator.Request(handler, method)
            if f"/b/{CLOSED}" in request.path:
                return self.refuse(403, "this account does not have storage.objects.create access")
            if method == emulator.POST and "/upload/" in request.path:
                body = handler.rfile.read(int(handler.headers["Content-Length"]))
                handler.rfile = _Again(body)
                name = _name_of(request.query, body)
                if faults.take(faults.refused_writes, name):
                    return self.refuse(503, "try again")
                if faults.take(faults.broken_writes, name):
                    return handler.connection.close()
                generation = _generation(handler.storage, name)
                if request.query.get("ifGenerationMatch", [generation]) != [generation]:
                    return self.refuse(412, "there is another one already")
                faults.written.append(name)
            name = unquote(request.path.partition("/o/")[2])
            handler.generation = _generation(handler.storage, name)
            super().handle(method)

        def refuse(self, status, message):
            text = json.dumps({"error": {"code": status, "message": message}}).encode()
            self._request_handler.send_response(status)
            self._request_handler.send_header("Content-Length", str(len(text)))
            self._request_handler.end_headers()
            self._request_handler.wfile.write(text)

    return Router


class _Again:
    """A body that was read and is read again."""

    def __init__(self, body):
        self._body = body

    def read(self, size):
        taken, self._body = self._body[:size], self._body[size:]
        return taken


def _name_of(query, body: bytes) -> str:
    if "name" in query:
        return query["name"][0]
    found = re.search(rb'"name": *"([^"]+)"', body)
    return found[1].decode() if found else ""


def _generation(storage, name: str) -> str:
    """The version of an object, 0 if there is none; the emulator does not look at it."""
    return storage.objects.get(NAME, {}).get(name, {"generation": "0"})["generation"]


@contextlib.contextmanager
def serve() -> Iterator[Faults]:
    """Serve the bucket to this process and to those that it starts."""
    from gcp_storage_emulator import server as emulator
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.storage import Storage

    class Listing(Storage):
        def get_file_list(self, *arguments, **named):
            files, prefixes = super().get_file_list(*arguments, **named)
            if not faults.unlisted:
                return files, prefixes
            shown = [one for one in files if not re.search(faults.unlisted, one["name"])]
            return shown, [one for one in prefixes if not re.search(faults.unlisted, one)]

    class Handler(emulator.RequestHandler):
        generation = "0"

        def end_headers(self):
            self.send_header("x-goog-generation", self.generation)
            super().end_headers()

    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    faults, storage = Faults(), Listing(use_memory_fs=True)
    for name in (NAME, CLOSED):
        buckets.create_bucket(name, storage)
    handler = partial(Handler, storage)
    with mock.patch.object(emulator, "Router", _router(faults, emulator)):
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            server.handle_error = lambda *_: None  # a client that closes early
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            with mock.patch.dict(os.environ, _settings(address)):
                yield faults
            server.shutdown()


def without_permission() -> dict[str, str]:
    """Environment variables of an account that gets nothing from any bucket."""
    return {"STORAGE_EMULATOR_HOST": f"{os.environ['STORAGE_EMULATOR_HOST']}/b/{CLOSED}"}


def _settings(address: str) -> dict[str, str]:
    """Environment variables that lead all of the clients to the server."""
    return {
        "STORAGE_EMULATOR_HOST": address,  # gcsfs and google-cloud-storage
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # tensorstore
        "GOOGLE_CLOUD_PROJECT": "project",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks Google of what kind a bucket is
    }
