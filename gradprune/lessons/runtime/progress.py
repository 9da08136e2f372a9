"""What a learner has answered and solved, kept in one small JSON file so that work can go on the next day.

The file is read, changed and renamed into place under a lock, so two open notebooks do not lose each other's
answers. A damaged file is set aside, never overwritten. Where nothing can be written, answers live in memory.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from gradprune.base.errors import InputError
from gradprune.base.paths import write_atomic

Value = str | int | float | bool
_KINDS = ("answers", "exercises")
_MOST_ENTRIES, _MOST_CHARACTERS, _MOST_BYTES = 500, 200, 500_000
_LARGEST = 1e15  # no answer is near it; whole numbers up to it are exact as floats too
_LOCK_PATIENCE = 2.0  # seconds
_memory: dict[str, dict[str, Value]] = {kind: {} for kind in _KINDS}  # what this kernel was told
_said: set[str] = set()


def path() -> Path:
    """The file: in the user's data folder, or where `GRADPRUNE_PROGRESS` says."""
    own = os.environ.get("GRADPRUNE_PROGRESS")
    return Path(own) if own else Path(platformdirs.user_data_dir("gradprune")) / "progress.json"


def recall(kind: str, key: str) -> Value | None:
    """What was remembered under a key of kind "answers" or "exercises", or None."""
    stored = _read()[kind].get(key)
    return _memory[kind].get(key) if stored is None else stored


def remember(kind: str, key: str, value: Value) -> None:
    """Keep a value on disk at once; never raises for a disk that cannot be written, but says so (once)."""
    key = key[:_MOST_CHARACTERS]
    value = value[:_MOST_CHARACTERS] if isinstance(value, str) else value
    _memory[kind][key] = value
    try:
        with _lock():
            content = _content()
            entries = content[kind]
            entries.pop(key, None)
            entries[key] = value  # newest last
            while len(entries) > _MOST_ENTRIES:
                del entries[next(iter(entries))]
            text = json.dumps({"version": 1, **content}, indent=1)
            write_atomic(path(), lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    except (InputError, OSError) as error:
        _say(f"Progress cannot be kept in {path()} ({error}); it lasts until this kernel stops.")


def describe(notebook: str) -> str:
    """One sentence on what has been done in a notebook, "" where nothing has."""
    content = _read()
    solved = sum(key.startswith(f"{notebook}.") and value == "correct" for key, value in content["exercises"].items())
    answers = sum(key.startswith(f"{notebook}.") for key in content["answers"])
    parts = [f"{number} {noun}{'' if number == 1 else 's'} {done}" for number, noun, done in
             ((solved, "exercise", "solved"), (answers, "prediction", "made")) if number]
    return f"Welcome back: {' and '.join(parts)} here so far." if parts else ""


def _read() -> dict[str, dict[str, Value]]:
    """The file's content; empty where it cannot be read."""
    with suppress(OSError):
        return _content()
    return {kind: {} for kind in _KINDS}


def _content() -> dict[str, dict[str, Value]]:
    """The file's content; empty where there is none, and where it was damaged and set aside.

    Raises OSError for a file that cannot be read: it may be whole, so nothing may take its place.
    """
    file = path()
    if file.is_file():
        try:
            if file.stat().st_size > _MOST_BYTES:
                raise ValueError("too large")
            content = json.loads(file.read_text(encoding="utf-8"))
            return {kind: _entries(content, kind) for kind in _KINDS}
        except (ValueError, RecursionError):
            _set_aside(file)
    return {kind: {} for kind in _KINDS}


def _entries(content: Any, kind: str) -> dict[str, Value]:
    """One part of the file; raises ValueError unless it is a flat table of plain values."""
    entries = content.get(kind, {}) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(value, str) or (isinstance(value, int | float)
                                                and abs(value) < _LARGEST) for value in entries.values()):
        raise ValueError(f"{kind} is not a table of plain values")
    return entries


def _set_aside(file: Path) -> None:
    """Rename a damaged file out of the way, beside earlier ones, and say so."""
    aside = [file.with_name(f"{file.name}.damaged{number}") for number in ("", *range(2, 10))]
    free = next((name for name in aside if not name.exists()), aside[-1])
    with suppress(OSError):
        os.replace(file, free)
        _say(f"The progress file {file} was damaged; it was renamed to {free.name}, and a new one was started.")


@contextmanager
def _lock() -> Iterator[None]:
    """Hold the lock file beside the progress file; the system frees it where a kernel is killed."""
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_name(file.name + ".lock"))
    with suppress(Timeout, NotImplementedError):  # better a rare lost update than a notebook that hangs
        lock.acquire(timeout=_LOCK_PATIENCE, poll_interval=0.01)
    try:
        yield
    finally:
        lock.release()


def _say(sentence: str) -> None:
    """Print a sentence once per kernel."""
    if sentence not in _said:
        _said.add(sentence)
        print(sentence)
