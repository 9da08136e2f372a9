"""One file from the network: resumed where the connection was cut, checked before it gets its name."""

import hashlib
import http.client
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from gradprune.base.errors import InputError, told_as
from gradprune.base.paths import output_folder

TRIES = 3               # consecutive tries that bring less than _PROGRESS; one that brings more restarts the count
PATIENCE = 30.0         # seconds a server may take to answer or be silent; its speed is measured over as long
SLOWEST = 1000          # bytes per second; a slower server is given up
PAUSE = 1.0             # seconds before the second try, twice that before the third
_PROGRESS = 1 << 20     # bytes
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """A published file: its place below the data folder, its addresses, its MD5 and its size in bytes."""

    path: str
    urls: tuple[str, ...]
    md5: str
    size: int


class _Refused(Exception):
    """The server refused, and asking again will not help."""


def fetch(remote: Remote, folder: Path, progress: bool = True) -> Path:
    """Download a file into `folder` unless it is already there; returns its path.

    The content goes to PATH.part, from where the next call resumes; the file gets its name only once its MD5 is right.
    A file of that name with another MD5 is replaced. progress: show a bar.
    Raises InputError, which says which file to put where by hand, if the servers cannot be reached, are too slow, or
    send something else; and if the file cannot be written.
    """
    path = folder / remote.path
    if path.is_file():
        if md5_of(path) == remote.md5:
            return path
        _log.warning("%s is not the published file (wrong MD5), so it is downloaded again.", path)
    output_folder(path.parent)
    part = path.with_name(path.name + ".part")
    with tqdm(total=remote.size, desc=path.name, unit="B", unit_scale=True, disable=not progress) as bar:
        if not (part.is_file() and md5_of(part) == remote.md5):
            _download(remote, path, part, bar)
    os.replace(part, path)
    return path


def by_hand(remote: Remote, path: Path) -> str:
    """How to get a file without this program."""
    return f"run the same command again, or put the file from {remote.urls[0]} at {path}"


def md5_of(path: Path) -> str:
    """The MD5 of a file, as 32 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _download(remote: Remote, path: Path, part: Path, bar: Any) -> None:
    """Fill `part` from one address after another; each is tried until it makes no more progress."""
    reasons = []
    for url in remote.urls:
        idle = 0
        while idle < TRIES:
            before = _size(part)
            try:
                _once(url, part, remote.size, bar)
                if md5_of(part) == remote.md5:
                    return
                part.unlink()
                raise _Refused("what it sent is not the published file (wrong MD5) and was removed")
            except _Refused as error:
                reasons.append(f"{url.split('/')[2]}: {error}")
                break
            except (OSError, http.client.HTTPException) as error:
                reasons.append(f"{url.split('/')[2]}: {_reason(error)}")
                idle = idle + 1 if _size(part) - before < _PROGRESS else 0
                if idle < TRIES:
                    time.sleep(PAUSE * 2 ** max(idle - 1, 0))
    kept = f" ({_size(part)} of {remote.size} bytes are kept)" if _size(part) else ""
    raise InputError(f"Downloading {path.name} failed, {'; '.join(dict.fromkeys(reasons))}{kept}; "
                     f"{by_hand(remote, path)}.")


def _once(url: str, part: Path, size: int, bar: Any) -> None:
    """One request, from where `part` ends to the end of the file; raises OSError if the connection was cut."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "gradprune"} |
                                     ({"Range": f"bytes={start}-"} if start else {}))
    try:
        answer = _open(request)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:  # the part is longer than the file, so it belongs to another one
                part.unlink()
            if error.code in (408, 416, 429) or error.code >= 500:
                raise OSError(f"the server answered {error.code}") from None
            raise _Refused(f"the server answered {error.code} {error.reason}") from None
    with answer:
        going_on = answer.status == 206 and (answer.headers.get("Content-Range") or "").startswith(f"bytes {start}-")
        length = answer.headers.get("Content-Length")
        if answer.headers.get_content_type() == "text/html":
            raise _Refused("the server sent a web page instead of the file")
        with _writing(part):
            file = part.open("ab" if going_on else "wb")
        with file:
            bar.n = bar.initial = file.tell()
            end = None if length is None or not length.isdigit() else file.tell() + int(length)
            _copy(answer, file, part, size, bar)
            if file.tell() < (size if end is None else end):
                raise OSError("the connection was cut")


def _copy(answer: Any, file: IO[bytes], part: Path, size: int, bar: Any) -> None:
    """Copy the answer to the file as it arrives; raises TimeoutError if it arrives too slowly."""
    since, brought = time.monotonic(), 0
    while chunk := answer.read1(1 << 16):  # what is there now: from a slow server `read` would wait for all of it
        with _writing(part):
            file.write(chunk)
            file.flush()
        bar.update(len(chunk))
        brought += len(chunk)
        if file.tell() > 2 * size:
            raise _Refused("the server sends far more than the file")
        if (now := time.monotonic()) - since > PATIENCE:
            if brought < SLOWEST * (now - since):
                raise TimeoutError(f"the server sends less than {SLOWEST} bytes a second")
            since, brought = now, 0


def _open(request: urllib.request.Request) -> Any:
    """The server's answer within PATIENCE, even if the name lookup hangs or the headers come byte by byte."""
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(urllib.request.urlopen(request, timeout=PATIENCE))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    if not wait([answer], PATIENCE).done:
        raise TimeoutError("the server does not answer")
    return answer.result()


def _writing(part: Path) -> AbstractContextManager[None]:
    """A context for work on the file alone, none of it on the network: an error of the disk says what to do."""
    return told_as(lambda error: f"Cannot write {part}: {error.strerror or error}; make room and repeat the command, "
                   "which goes on where it stopped, or choose another folder with GRADPRUNE_DATA.", (OSError,))


def _reason(error: Exception) -> str:
    """A network error in a few words."""
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return str(inner) if str(inner).startswith("the server") else "the server is silent"
    return (getattr(inner, "strerror", None) or str(inner) or type(inner).__name__).rstrip(".")


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0
