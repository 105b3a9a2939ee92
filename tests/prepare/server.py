"""A web server on this machine that stands in for published places, with their faults."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock


@dataclasses.dataclass
class Site:
    """What the server has, how it misbehaves, and what it was asked."""

    address: str = ""
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    etag: str = '"v1"'
    encoding: str = ""  # what it says of its files, whatever they are
    ranges: bool = True
    cut_after: list[int] = dataclasses.field(default_factory=list)  # bytes, of the next answers
    statuses: list[int] = dataclasses.field(default_factory=list)  # of the next answers
    asked: list[tuple[str, str]] = dataclasses.field(default_factory=list)  # (path, range)


class Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        site, wanted = self.site, self.headers.get("Range", "")
        site.asked.append((self.path, wanted))
        status = site.statuses.pop(0) if site.statuses else 200
        body = site.files.get(self.path)
        if status != 200 or body is None:
            return self.answer(404 if body is None else status, b"no such thing", {})
        told, size = {"ETag": site.etag, "Content-Encoding": site.encoding}, len(body)
        headers = {name: value for name, value in told.items() if value}
        if wanted and site.ranges and self.headers.get("If-Range") == site.etag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= size:
                return self.answer(416, b"", {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
            return self.answer(206, body[start:], headers)
        return self.answer(200, body, headers)

    def answer(self, status, body, headers):
        cut = self.site.cut_after.pop(0) if self.site.cut_after and status < 300 else len(body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[:cut])
        self.close_connection = True


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve in threads; yields the address, which no proxy is asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        with mock.patch.dict(os.environ, {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}):
            yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def site() -> Iterator[Site]:
    """Serve an empty site."""
    it = Site()
    with serving(type("Handler", (Handler,), {"site": it})) as it.address:
        yield it


def closed_port() -> str:
    """An address at which nobody listens."""
    with serving(Handler) as address:
        pass
    return address
