"""The bench: run the cells of a grid, write every row to disk at once, and resume an interrupted run."""

import tempfile
from contextlib import closing, nullcontext
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from gradprune.base.devices import choose_device, device_name
from gradprune.base.errors import InputError, require
from gradprune.bench.executors import cluster, processes, reach, serial
from gradprune.bench.grid import Cell, Grid
from gradprune.bench.store import Store, to_table


def run(grid: Grid, out: str | Path | None = None, *, workers: int = 1, scheduler: str | None = None,
        device: str = "cpu", progress: bool = True) -> pd.DataFrame:
    """Run a grid and return its rows, one per cell, in the grid's order; columns as in `cells.COLUMNS`.

    out: a folder for the rows; the same call resumes where the last one stopped, and runs failed cells again. None
        stores nothing. A folder has rows of a single device.
    workers: processes on this machine, one thread each.
    scheduler: address of a dask scheduler, whose workers run the cells instead.
    device: where the models run, see `models.choose_device`. On a GPU the cells run one after another in this process;
        with workers or a scheduler "auto" takes the CPU.
    A cell that fails is a row with its error. On a CPU the rows do not depend on where the cells run, except for the
    seconds.
    Raises InputError, before any work, for bad arguments, an spc too large for a class, or a folder made by another
    version or in use by another run; later if the disk is full. KeyboardInterrupt says what is safe.
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
                with closing(cluster(jobs, scheduler) if scheduler and jobs else
                             processes(jobs, workers) if workers > 1 else serial(jobs)) as rows:
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
    """The device that cells run on; arguments and errors as in `run`."""
    require(workers >= 1, f"workers must be at least 1, got {workers}.")
    require(scheduler is None or workers == 1, "give either workers or a scheduler, not both.")
    spread = scheduler is not None or workers > 1
    where = choose_device("cpu" if spread and device == "auto" else device)
    require(where.type == "cpu" or not spread,
            f"on {device} the cells run one after the other: leave out workers and scheduler, or take the CPU.")
    return where


def _kept(store: Store, cells: list[Cell], out: str | Path | None) -> str:
    done = sum(map(store.done, cells))
    where = f" and safe in {out}; the same command goes on from there" if out else "; no folder was given to keep them"
    return f"{done} of {len(cells)} cells are done{where}"
