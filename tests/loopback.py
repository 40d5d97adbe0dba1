"""An HTTP server on loopback for tests: pages from a dictionary."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass
class Page:
    body: bytes
    kind: str = "text/html"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Close the connection after so many bytes, though Content-Length promises more."""


class Loopback:
    """`pages` maps paths to a page, or to a function from the request's headers to a page."""

    def __init__(self) -> None:
        self.pages: dict[str, Page | Callable[[dict[str, str]], Page]] = {}
        self.requests: list[str] = []
        loopback = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                loopback.requests.append(self.path)
                found = loopback.pages.get(self.path.partition("?")[0], Page(b"not found", status=404))
                page = found(dict(self.headers)) if callable(found) else found
                self.send_response(page.status)
                self.send_header("Content-Type", page.kind)
                self.send_header("Content-Length", str(len(page.body)))
                for key, value in page.headers.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(page.body[: page.cut])

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextlib.contextmanager
def loopback() -> Iterator[Loopback]:
    site = Loopback()
    thread = threading.Thread(target=site.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield site
    finally:
        site.server.shutdown()
        thread.join()
        site.server.server_close()
