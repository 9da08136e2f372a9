"""Where files live, and how they are written: whole or not at all."""

import glob
import json
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from gradprune.base.errors import InputError, require

if TYPE_CHECKING:
    from filelock import BaseFileLock

_PACKAGE = Path(__file__).resolve().parents[1]


def data_folder() -> Path:
    """The shipped data: `data/` of the repository, or the copy inside an installed wheel."""
    repository = _PACKAGE.parent / "data"
    return repository if (repository / "checkpoints").is_dir() else _PACKAGE / "_data"


def cache_folder() -> Path:
    """The user's cache folder (`GRADPRUNE_CACHE` overrides it); not created here."""
    return Path(os.environ.get("GRADPRUNE_CACHE") or platformdirs.user_cache_dir("gradprune"))


def downloads_folder() -> Path:
    """Where published data sets go: `GRADPRUNE_DATA`, the repository's `data/downloads/`, or the user's data folder."""
    if given := os.environ.get("GRADPRUNE_DATA"):
        return Path(given).expanduser()
    repository = _PACKAGE.parent / "data"
    return (repository / "downloads" if (repository / "checkpoints").is_dir()
            else Path(platformdirs.user_data_dir("gradprune")))


def output_folder(folder: str | Path) -> Path:
    """Create a folder for results and prove that it can be written; raises InputError otherwise."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(f"Cannot write to folder {str(folder)!r}: {error.strerror or error}.") from None
    return folder


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write(temporary)` fill a temporary file beside `path`, then rename it over `path`.

    After a crash at any point `path` holds either its old content or the whole new one. Raises InputError where the
    folder or the disk takes no more.
    """
    write_together({Path(path): write})
    return Path(path)


def write_together(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """`write_atomic` for files that belong together: no file gets its name before all of them are written.

    What a killed run of this machine left half-written beside them is removed.
    """
    written: dict[Path, Path] = {}
    try:
        for path, write in writes.items():
            output_folder(path.parent)
            _sweep(path)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_mark(path)}{os.getpid()}-", suffix=path.suffix)
            os.close(handle)
            written[path] = Path(name)
            write(written[path])
            written[path].chmod(0o644)
            with written[path].open("rb+") as file:
                os.fsync(file.fileno())  # or a machine that stops now could keep the name and lose the content
        for path, temporary in written.items():
            os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from None
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def _mark(path: Path) -> str:
    """How the temporary files of this machine for a path begin; the process and a random word follow."""
    return f".{path.stem[:60]}-{socket.gethostname()}-"


def _sweep(path: Path) -> None:
    """Remove the temporary files of a path whose process is gone."""
    for left in path.parent.glob(f"{glob.escape(_mark(path))}*{glob.escape(path.suffix)}"):
        import psutil  # late: `--help` and `doctor` do without

        process = left.name.removeprefix(_mark(path)).partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            left.unlink(missing_ok=True)


def locked(lock: "BaseFileLock") -> bool:
    """Take a lock if it is free, without waiting; returns False where another process holds it.

    The system frees it where its holder is killed. Raises InputError where nothing can be locked.
    """
    from filelock import Timeout  # late: `--help` does without

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:  # a folder of that name; a network's disk that knows no locks
        raise InputError(f"{lock.lock_file} cannot be locked: {getattr(error, 'strerror', None) or error}.") from None
    return True


def read_bytes(path: Path, most: int) -> bytes:
    """What a file holds; raises InputError for one that is no plain file, cannot be read or has over `most` bytes."""
    try:
        require(path.is_file(), f"there is no file at {path}.")  # a pipe would keep its reader waiting
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    require(len(content) <= most, f"{path} is larger than {most / 1e6:g} MB, so it was not read.")
    return content


def read_json(path: Path, most: int = 10_000_000) -> Any:
    """The value in a JSON file; raises InputError for one that is damaged, too large or nested too deep."""
    try:
        value = json.loads(read_bytes(path, most).decode("utf-8"))
        json.dumps(value, indent=2)  # it may have to be written again, which takes more of the stack
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {error}.") from None
    return value
