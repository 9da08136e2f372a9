"""JupyterLab and Voila on localhost, with all their state in a temporary folder, and a browser to look at them."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

CHROMIUM = os.environ.get("GRADPRUNE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SETTINGS = {  # no question about news, every cell in the page: a test must see what a learner could scroll to
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
}


def environment(home: Path, theme: str = "JupyterLab Light") -> dict[str, str]:
    """Settings, workspaces, history, progress: everything a server or a kernel writes goes into `home`.

    The mode is the shortest: what the pages show and answer is tested here, whole runs are in tests/notebooks.
    """
    for name, values in (SETTINGS | {"apputils-extension/themes": {"theme": theme}}).items():
        package, plugin = name.split("/")
        path = home / "settings" / "@jupyterlab" / package / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
           "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
           "GRADPRUNE_PROGRESS": "progress.json"}
    return {**os.environ, **{name: str(home / place) for name, place in own.items()}, "GRADPRUNE_MODE": "ci",
            "JUPYTER_NO_CONFIG": "1"}


@contextlib.contextmanager
def jupyter_lab(notebooks: Path, home: Path, theme: str = "JupyterLab Light") -> Iterator[str]:
    """Serve a folder with JupyterLab; gives the address of a notebook with "{}" for its file name."""
    port, token = free_port(), secrets.token_hex(16)
    command = ["jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}",
               "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={notebooks}",
               "--LabApp.extension_manager=readonly", "--LabApp.expose_app_in_browser=True"]
    with _server(command, home, theme, f"http://127.0.0.1:{port}/api/status?token={token}"):
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?reset&token={token}"


@contextlib.contextmanager
def voila(notebook: Path, home: Path) -> Iterator[str]:
    """Serve one notebook with Voila; gives its address."""
    port, token = free_port(), secrets.token_hex(16)
    command = ["voila", str(notebook), "--no-browser", "--Voila.ip=127.0.0.1", f"--port={port}",
               "--Voila.port_retries=0", f"--Voila.token={token}"]
    with _server(command, home, "JupyterLab Light", f"http://127.0.0.1:{port}/voila/static/voila.js?token={token}"):
        yield f"http://127.0.0.1:{port}/?token={token}"


@contextlib.contextmanager
def _server(command: list[str], home: Path, theme: str, ready: str, patience: float = 90) -> Iterator[None]:
    home.mkdir(parents=True, exist_ok=True)
    log = home / f"{command[0]}.log"
    with log.open("w") as output:
        process = subprocess.Popen([sys.executable, "-m", *command], env=environment(home, theme), stdout=output,
                                   stderr=subprocess.STDOUT, cwd=home, start_new_session=True)
    try:
        _wait(process, ready, log, patience)
        yield
    finally:
        process.terminate()  # both servers shut their kernels down when told to end
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen, ready: str, log: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended with code {process.returncode}:\n{log.read_text()[-3000:]}"
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(ready, timeout=5).close()
            return
        time.sleep(0.3)
    raise AssertionError(f"the server did not answer within {patience:.0f} s:\n{log.read_text()[-3000:]}")


def free_port() -> int:
    """A port of localhost that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
