"""The bench: run the cells of a grid, keep every row on disk as it comes, go on where a run was cut short."""

import tempfile
from collections.abc import Generator
from contextlib import closing, nullcontext
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from gradprune.base.devices import choose_device, device_name
from gradprune.base.errors import InputError, require
from gradprune.bench.cells import Row
from gradprune.bench.executors import Job, cluster, processes, reach, serial
from gradprune.bench.grid import Cell, Grid
from gradprune.bench.store import Store, to_table


def run(grid: Grid, out: str | Path | None = None, *, workers: int = 1, scheduler: str | None = None,
        device: str = "cpu", progress: bool = True) -> pd.DataFrame:
    """Run a grid and return its rows, one a cell, in the grid's order; columns as in `cells.COLUMNS`.

    out: a folder that keeps the rows; the same call goes on where the last one stopped, and runs failed cells again.
    None keeps nothing. workers: processes on this machine, one thread each. scheduler: address of a dask scheduler,
    whose workers run the cells instead. device: where the models run, see `models.choose_device`; on a GPU the cells
    run one after the other in this process, and "auto" takes none where there are workers or a scheduler. A folder
    keeps rows of one device alone. A cell that fails is a row with its error. On a CPU the rows do not depend on where
    the cells run, except for the seconds.
    Raises InputError before any work for bad arguments, an spc too large for a class, a folder that another version
    made or that another run holds; later where the disk is full. KeyboardInterrupt tells what is safe.
    """
    where = place(device, workers, scheduler)
    if scheduler:
        reach(scheduler)
    digests, cells = grid.check(), grid.cells()
    with (nullcontext(out) if out else tempfile.TemporaryDirectory()) as folder, \
            Store(folder, digests, device_name(where)) as store:
        jobs = [(cell, digests[cell.attack], str(where), grid.code) for cell in cells if not store.done(cell)]
        if store.damaged:
            tqdm.write(f"{store.damaged} damaged rows in {store.table} were dropped; their cells are run again.")
        bar = tqdm(total=len(cells), initial=len(cells) - len(jobs), desc="bench", unit="cell", disable=not progress)
        with bar:
            try:
                with closing(_rows(jobs, workers, scheduler)) as rows:
                    for row in rows:
                        store.add(row)
                        bar.set_postfix_str("{attack} / {defense}, spc {spc}, seed {seed}".format(**row))
                        bar.update()
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_kept(store, cells, out)) from None
            except InputError as error:
                raise InputError(f"{str(error).rstrip('.')}. {_kept(store, cells, out).capitalize()}.") from None
        store.tidy(cells)
        return to_table(store.rows[cell] for cell in cells)


def place(device: str, workers: int = 1, scheduler: str | None = None) -> torch.device:
    """The device that cells run on; arguments, and errors in them, as in `run`."""
    require(workers >= 1, f"workers must be at least 1, got {workers}.")
    require(scheduler is None or workers == 1, "give either workers or a scheduler, not both.")
    spread = scheduler is not None or workers > 1
    where = choose_device("cpu" if spread and device == "auto" else device)
    require(where.type == "cpu" or not spread,
            f"on {device} the cells run one after the other: leave out workers and scheduler, or take the CPU.")
    return where


def _rows(jobs: list[Job], workers: int, scheduler: str | None) -> Generator[Row, None, None]:
    if scheduler and jobs:
        return cluster(jobs, scheduler)
    return processes(jobs, workers) if workers > 1 else serial(jobs)


def _kept(store: Store, cells: list[Cell], out: str | Path | None) -> str:
    done = sum(map(store.done, cells))
    where = f" and safe in {out}; the same command goes on from there" if out else "; no folder was given to keep them"
    return f"{done} of {len(cells)} cells are done{where}"
