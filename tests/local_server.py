"""A server on this machine that cuts, drips, lies and stays silent."""

import http.server
import threading
import time

import pytest

from gradprune.datasets import download

CONTENT = bytes(range(256)) * 1200  # 300 kB: several reads


class Server(http.server.ThreadingHTTPServer):
    """Serves `content`; `faults` are what the next answers do wrong, one each. `asked` keeps every path and Range."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.faults, self.asked, self.over = {"/file.bin": CONTENT}, [], [], threading.Event()

    def url(self, path="/file.bin"):
        return f"http://127.0.0.1:{self.server_port}{path}"

    def handle_error(self, request, client_address):
        """A client that hangs up is part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Range")))
        fault = self.server.faults.pop(0) if self.server.faults else None
        content = self.server.content.get(self.path)
        if fault == "no answer":
            self.server.over.wait(20)
            return
        if content is None or isinstance(fault, int):
            self.send_error(fault or 404)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if fault == "no ranges":
            start = 0
        if start >= len(content) and start:
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if fault not in ("no length", "cut, no length", "endless"):
            self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html" if fault == "page" else "application/octet-stream")
        self.end_headers()
        if fault in ("cut", "cut, no length"):
            self.wfile.write(body[:len(body) // 3])
        elif fault == "silent":
            self.wfile.flush()
            self.server.over.wait(20)
        elif fault == "drip":
            for i in range(1000):
                if self.server.over.is_set():
                    break
                self.wfile.write(body[i:i + 1])
                time.sleep(0.02)
        elif fault == "endless":
            while not self.server.over.is_set():
                self.wfile.write(body)
        else:
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    for name, value in (("PATIENCE", 0.4), ("PAUSE", 0.0)):
        monkeypatch.setattr(download, name, value)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()
