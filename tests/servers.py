"""A server of files in this process that can be told to misbehave."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class FileServer:
    """Files by their paths, with strong ETags, ranges and conditions, as object stores have them."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None, int]] = []
        """Path with its query, `Range` and status of each answer."""
        self.misbehave: Callable[[Any, bytes], bool] = lambda _, __: False
        """Called with the handler and the file; True if it has answered."""
        self.headers: dict[str, str] = {}
        """Sent with every file."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: Any) -> None:
                pass

            def log_request(self, code: Any = "-", size: Any = "-") -> None:  # noqa: ARG002 (as the base class has it)
                server.asked.append((self.path, self.headers.get("Range"), int(code)))

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.http.server_port}"
        self.url = f"http://{self.host}"

    def answer(self, handler: Any) -> None:
        content = self.files.get(urlsplit(handler.path).path)
        if content is None:
            self.send(handler, 404, b"")
            return
        if self.misbehave(handler, content):
            return
        tag = self.tag(content)
        if handler.headers.get("If-None-Match") == tag:
            self.send(handler, 304, b"", ETag=tag)
            return
        begins = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if begins is not None and handler.headers.get("If-Range") == tag:
            start = int(begins[1])
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.send(handler, 206, content[start:], **{"ETag": tag, "Content-Range": span})
            return
        self.send(handler, 200, content, ETag=tag)

    @staticmethod
    def tag(content: bytes) -> str:
        return f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    def send(self, handler: Any, status: int, body: bytes, **headers: str) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **self.headers, **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


def dropped(handler: Any, content: bytes, *, after: int, **headers: str) -> bool:
    """Promise a file, send its first bytes and hang up."""
    handler.send_response(200)
    for name, value in {"Content-Length": str(len(content)), "ETag": FileServer.tag(content), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content[:after])
    handler.wfile.flush()
    handler.close_connection = True
    return True


@contextmanager
def serving() -> Iterator[FileServer]:
    """A server that runs."""
    made = FileServer()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        made.http.shutdown()
        thread.join()
        made.http.server_close()
