"""Who can reach the notebook servers as the Makefile starts them, and what a visitor of the page can make them do."""

import asyncio
import json
import re
import socket
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pytest
from servers import _server, free_port
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {"$(BIN)/jupyter lab": ["jupyterlab"], "$(BIN)/voila": ["voila"]}
MORE = {"jupyterlab": ["--no-browser", "--allow-root", "--ServerApp.port={}", "--ServerApp.port_retries=0"],
        "voila": ["--no-browser", "--port={}", "--Voila.port_retries=0"]}


class Served(NamedTuple):
    port: int
    token: str
    home: Path

    def get(self, path: str, token: str = "", host: str = "127.0.0.1", **request: Any) -> Any:
        """The answer, after redirections."""
        headers = {"Authorization": f"token {token}"} if token else {}
        return urllib.request.urlopen(urllib.request.Request(f"http://{host}:{self.port}{path}", headers=headers, **request), timeout=60)


def serve(target: str, folder: Path) -> Iterator[Served]:
    """What `make TARGET` runs, with a small notebook in place of ours and on a free port."""
    recipe = re.search(rf"^{target}:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.M)[1]
    program = next(name for name in PROGRAMS if recipe.startswith(name))
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    book.cells = [nbformat.v4.new_code_cell("import ipywidgets\nprint('the notebook ran')\nipywidgets.IntSlider()")]
    nbformat.write(book, folder / "small.ipynb")
    *options, _ = recipe.removeprefix(program).split()
    port, module = free_port(), PROGRAMS[program]
    command = [*module, *options, *(option.format(port) for option in MORE[module[0]]), str(folder / "small.ipynb")]
    with _server(command, folder / "home", "JupyterLab Light", f"http://127.0.0.1:{port}/login"):
        token = re.search(r"token=([0-9a-f]{32,})", (folder / "home" / f"{module[0]}.log").read_text())[1]
        yield Served(port, token, folder / "home")


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Iterator[Served]:
    yield from serve("lab", tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def playground(tmp_path_factory) -> Iterator[Served]:
    yield from serve("playground", tmp_path_factory.mktemp("playground"))


@pytest.fixture(params=["lab", "playground"])
def server(request) -> Served:
    return request.getfixturevalue(request.param)


def other_addresses() -> list[str]:
    """Addresses of this machine by which its neighbours reach it; of loopback, one that is not the server's."""
    found = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    return sorted(found | ({"127.0.0.2"} if sys.platform == "linux" else set()))


def test_other_machines_find_nobody(server):
    socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    addresses = other_addresses()
    assert addresses
    for address in addresses:
        with pytest.raises((ConnectionRefusedError, TimeoutError)):
            socket.create_connection((address, server.port), timeout=5).close()


def test_without_the_token_there_is_nothing(server):
    assert len(server.token) >= 32
    for token in ("", "0" * len(server.token)):
        assert server.get("/", token).url.startswith(f"http://127.0.0.1:{server.port}/login"), "sent to ask for the token"
    kernel = f"/api/kernels/{uuid.uuid4()}"
    for path in (kernel, "/api/contents") if "playground" not in str(server.home) else (kernel,):
        with pytest.raises(urllib.error.HTTPError) as told:
            server.get(path)
        assert told.value.code == 403
    with pytest.raises(HTTPClientError) as told:
        asyncio.run(talk(server, kernel, [], token=""))
    assert told.value.code == 403
    assert server.get("/", server.token).status == 200


async def talk(server: Served, kernel: str, messages: list[tuple[str, str, dict]], token: str) -> list[dict]:
    """Send messages (channel, type, content) as a visitor, then ask for the comms; returns all answers up to theirs."""
    headers = {"Authorization": f"token {token}"} if token else {}
    socket = await websocket_connect(HTTPRequest(f"ws://127.0.0.1:{server.port}{kernel}/channels", headers=headers))
    answers = []
    try:
        for channel, kind, content in [*messages, ("shell", "comm_info_request", {})]:
            header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "username": "", "session": uuid.uuid4().hex, "version": "5.3",
                      "date": "2026-01-01T00:00:00Z"}
            await socket.write_message(json.dumps({"header": header, "msg_type": kind, "parent_header": {}, "metadata": {},
                                                   "content": content, "channel": channel, "buffers": []}))
        while not answers or answers[-1]["msg_type"] != "comm_info_reply":
            answers.append(json.loads(await asyncio.wait_for(socket.read_message(), 60)))
    finally:
        socket.close()
    return answers


def code_that_writes(path: Path) -> list[tuple[str, str, dict]]:
    """Every message that would make a kernel run it."""
    code = f"open({str(path)!r}, 'w').close()"
    run = {"code": code, "silent": False, "store_history": False, "user_expressions": {"a": code}, "allow_stdin": False}
    return [("shell", "execute_request", run), ("control", "execute_request", run),
            ("shell", "complete_request", {"code": code, "cursor_pos": len(code)}),
            ("shell", "inspect_request", {"code": code, "cursor_pos": len(code), "detail_level": 1}),
            ("control", "debug_request", {"type": "request", "seq": 1, "command": "evaluate", "arguments": {"expression": code}})]


def test_the_page_runs_no_code_of_its_visitor(playground, tmp_path):
    page = playground.get("/", playground.token).read().decode()
    assert "the notebook ran" in page
    kernel = re.search(r'"kernelId":\s*"([0-9a-f-]{36})"', page)[1]
    answers = asyncio.run(talk(playground, f"/api/kernels/{kernel}", code_that_writes(tmp_path / "ran"), playground.token))
    assert not (tmp_path / "ran").exists()
    assert {answer["msg_type"] for answer in answers} <= {"status", "comm_info_reply"}, "nothing else got an answer"
    assert answers[-1]["content"]["comms"], "the notebook's own widgets live in the kernel that was asked"


def test_the_same_messages_do_run_in_the_lab(lab, tmp_path):
    """What makes the test above worth something."""
    kernel = json.load(lab.get("/api/kernels", lab.token, data=b"{}", method="POST"))["id"]
    asyncio.run(talk(lab, f"/api/kernels/{kernel}", code_that_writes(tmp_path / "ran")[:1], lab.token))
    assert (tmp_path / "ran").exists()
    lab.get(f"/api/kernels/{kernel}", lab.token, method="DELETE").close()
