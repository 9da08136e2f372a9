"""Where files are, and how they are written: completely or not at all."""

import glob
import json
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from gradprune.base.errors import InputError, require, told_as

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
    shipped = data_folder()
    return shipped / "downloads" if shipped.name == "data" else Path(platformdirs.user_data_dir("gradprune"))


def output_folder(folder: str | Path) -> Path:
    """Create a folder for results; raises InputError if that fails or the folder is not writable."""
    folder = Path(folder)
    with told_as(lambda error: f"Cannot write to folder {str(folder)!r}: {error.strerror or error}.", (OSError,)):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write(temporary)` fill a temporary file beside `path`, then rename it over `path`.

    After a crash at any point `path` holds either its old content or all of the new one.
    Raises InputError if the folder is not writable or the disk is full.
    """
    write_together({Path(path): write})
    return Path(path)


def write_together(writes: Mapping[Path, Callable[[Path], object]]) -> None:
    """`write_atomic` for files that belong together: none gets its name before all of them are written.

    Half-written files that a killed run on this machine left beside them are removed.
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
                os.fsync(file.fileno())  # otherwise a power cut now could keep the name and lose the content
        for path, temporary in written.items():
            os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from None
    finally:
        for temporary in written.values():
            temporary.unlink(missing_ok=True)


def _mark(path: Path) -> str:
    """The start of this machine's temporary names for a path; the process number and a random word follow."""
    return f".{path.stem[:60]}-{socket.gethostname()}-"


def _sweep(path: Path) -> None:
    """Remove the temporary files of a path whose process no longer runs."""
    for left in path.parent.glob(f"{glob.escape(_mark(path))}*{glob.escape(path.suffix)}"):
        import psutil  # late: `--help` and `doctor` do not need it

        process = left.name.removeprefix(_mark(path)).partition("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            left.unlink(missing_ok=True)


def locked(lock: "BaseFileLock") -> bool:
    """Take a lock if it is free, without waiting; returns False if another process holds it.

    The system releases the lock of a process that is killed. Raises InputError where nothing can be locked.
    """
    from filelock import Timeout  # late: `--help` does not need it

    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    except (OSError, NotImplementedError) as error:  # a folder of that name; a network drive without locks
        raise InputError(f"{lock.lock_file} cannot be locked: {getattr(error, 'strerror', None) or error}.") from None
    return True


def read_bytes(path: Path, most: int) -> bytes:
    """A file's content; raises InputError if it is no plain file, cannot be read or has more than `most` bytes."""
    with told_as(lambda error: f"{path} cannot be read: {error.strerror or error}.", (OSError,)):
        require(path.is_file(), f"there is no file at {path}.")  # a pipe would block
        with path.open("rb") as file:
            content = file.read(most + 1)
    require(len(content) <= most, f"{path} is larger than {most / 1e6:g} MB, so it was not read.")
    return content


def read_json(path: Path, most: int = 10_000_000) -> Any:
    """The value in a JSON file; raises InputError for one that is damaged, too large or nested too deeply."""
    with told_as(lambda error: f"{path} cannot be read: {error}.", (ValueError, RecursionError)):
        value = json.loads(read_bytes(path, most).decode("utf-8"))
        json.dumps(value, indent=2)  # it may have to be written again, which needs a deeper stack
    return value
