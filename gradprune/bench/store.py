"""The folder of a bench: cells.csv, to which rows are added one by one, and bench.json, which says what made them.

A row ends with its own checksum, so a truncated or damaged one is noticed and dropped, and its cell is run again.
"""

import csv
import io
import json
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from gradprune.base.errors import require, told_as
from gradprune.base.paths import locked, output_folder, read_bytes, read_json, write_atomic
from gradprune.bench.cells import COLUMNS, Row
from gradprune.bench.grid import Cell
from gradprune.victims.victim import versions

FORMAT = 1
_MOST = 64_000_000  # bytes of cells.csv; a row has about 250
SHARES = {"der", *(name for key in ("acc", "asr", "ra") for name in (key, f"{key}_before", f"pruned_{key}"))}
_HEAD = ",".join([*COLUMNS, "check"])


class Store:
    """A bench folder, used by one run at a time; use it with `with`.

    folder: created if it is not there.
    digests: SHA-256 of the victims' weights, by attack.
    device: where the models run.
    Raises InputError, and changes nothing, if another run is using the folder or another version made it.
    """

    def __init__(self, folder: str | Path, digests: Mapping[str, str], device: str = "cpu") -> None:
        self.folder, self.digests, self.device = Path(folder), dict(digests), device
        self.table, self.facts = self.folder / "cells.csv", self.folder / "bench.json"
        self.rows: dict[Cell, Row] = {}
        self.damaged = 0
        self._lock = FileLock(self.folder / ".lock")

    def __enter__(self) -> "Store":
        for path in (self.facts, self.table, Path(self._lock.lock_file)):
            require(not path.is_symlink(), f"{path} is a link to another place, where nothing is written.")
        if self.facts.exists() or self.table.exists():
            self._compare(read_facts(self.folder))
        output_folder(self.folder)
        require(locked(self._lock), f"another run is working in {self.folder}; wait for it, or choose another folder.")
        try:
            self.rows, self.damaged = _read(self.table)
            known = read_facts(self.folder)["checkpoints"] if self.facts.exists() else {}
            made = {"format": FORMAT, **versions(), "device": self.device, "checkpoints": known | self.digests}
            write_atomic(self.facts, lambda temporary: temporary.write_text(json.dumps(made, indent=2) + "\n", "utf-8"))
            if not self.rows:  # none yet, or a run that stopped before its first row
                self.tidy([])
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def done(self, cell: Cell) -> bool:
        """Whether the cell has a row without an error; a failed cell must be run again."""
        return cell in self.rows and not self.rows[cell]["error"]

    def add(self, row: Row) -> None:
        """Write a row to the disk, completely or not at all; raises InputError if that fails (disk full).

        An unfinished line that a crash left before it is ended first.
        """
        kept = f"The {len(self.rows)} cells in it are safe; the same command goes on from there."
        with told_as(lambda error: f"Cannot write to {self.table}: {error.strerror or error}. {kept}", (OSError,)), \
                open(self.table, "ab+", buffering=0) as file:  # a buffer would write again after the truncation
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            rest = (b"" if file.read(1) in (b"", b"\n") else b"\n") + _line(row).encode() + b"\n"
            try:
                while rest:
                    rest = rest[file.write(rest):]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
        self.rows[_cell(row)] = row

    def tidy(self, order: Iterable[Cell]) -> None:
        """Rewrite the file in this order, other cells first, without damaged and outdated rows."""
        ordered = dict.fromkeys(order)
        lines = [_HEAD, *(_line(self.rows[cell]) for cell in [*(cell for cell in self.rows if cell not in ordered),
                                                              *(cell for cell in ordered if cell in self.rows)])]
        write_atomic(self.table, lambda temporary: temporary.write_text("\n".join(lines) + "\n", "utf-8"))

    def _compare(self, facts: dict[str, Any]) -> None:
        """Refuse a folder whose rows were made by other versions, on another device or from other checkpoints."""
        facts = {"device": "cpu", **facts}  # older folders do not name the device
        now = {"format": FORMAT, **versions(), "device": self.device}
        differs = [f"{name} {facts.get(name)} there, {value} here" for name, value in now.items()
                   if facts.get(name) != value]
        differs += [f"the weights of {name!r}" for name, digest in self.digests.items()
                    if facts["checkpoints"].get(name, digest) != digest]
        require(not differs, f"the results in {self.folder} were made by another version ({'; '.join(differs)}); "
                             "nothing was changed. Choose another folder.")


def read_results(folder: str | Path) -> pd.DataFrame:
    """The rows of a bench folder as a table, columns as in `cells.COLUMNS`; damaged rows are left out.

    Raises InputError if there is no bench, or none of this format.
    """
    facts = read_facts(Path(folder))
    require(facts.get("format") == FORMAT, f"{folder} holds a bench of format {facts.get('format')}; this version of "
                                           f"gradprune reads format {FORMAT}.")
    return to_table(_read(Path(folder) / "cells.csv")[0].values())


def read_facts(folder: Path) -> dict[str, Any]:
    """What made the rows of a bench folder: format, versions, checkpoints; raises InputError if it does not say."""
    path = folder / "bench.json"
    require(path.exists(), f"{folder} holds no bench: there is no bench.json.")
    facts = read_json(path)
    require(isinstance(facts, dict) and isinstance(facts.get("checkpoints"), dict),
            f"{path} does not say what made the results.")
    return facts


def to_table(rows: Iterable[Row]) -> pd.DataFrame:
    """Rows as a table; empty numbers become NaN."""
    table = pd.DataFrame(list(rows), columns=list(COLUMNS))
    return table.astype({name: kind for name, kind in COLUMNS.items() if kind is not str})


def _cell(row: Row) -> Cell:
    return Cell(row["attack"], row["defense"], row["spc"], row["seed"])


def _line(row: Row) -> str:
    """One line of the file: the values and their checksum."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(
        " ".join((row[name] or "").split()) if name in ("stopped", "error") else row[name] for name in COLUMNS)
    return f"{text.getvalue()},{_check(text.getvalue())}"


def _check(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def _read(path: Path) -> tuple[dict[Cell, Row], int]:
    """The good rows by cell, the latest of each, and the number of damaged lines."""
    lines = read_bytes(path, _MOST).split(b"\n") if path.exists() else []
    rows: dict[Cell, Row] = {}
    damaged = 0
    for line in lines[1:]:
        row = _parse(line.removesuffix(b"\r").decode("utf-8", "replace"))  # an editor or git may end lines so
        if row:
            rows[_cell(row)] = row
        damaged += bool(line.strip()) and row is None
    return rows, damaged


def _parse(line: str) -> Row | None:
    """A line's row, or None if the checksum or a value is wrong."""
    text, _, check = line.rpartition(",")
    if not text or check != _check(text):
        return None
    try:
        values: Sequence[str] = next(csv.reader([text]))
        row = {name: value if kind is str else kind(value) if value else None
               for (name, kind), value in zip(COLUMNS.items(), values, strict=True)}
    except (ValueError, csv.Error, StopIteration):
        return None
    return row if _possible(row) else None


def _possible(row: Row) -> bool:
    """Whether a run could have written these numbers; a checksum does not prevent invented lines."""
    whole = all(isinstance(row[name], int) and 0 <= row[name] < most
                for name, most in (("spc", 2**31), ("seed", 2**63), ("threads", 2**31)))
    numbers = {name: row[name] for name, kind in COLUMNS.items() if kind is float and row[name] is not None}
    return whole and all(0 <= value <= (1 if name in SHARES else 1e12) for name, value in numbers.items())
