"""Where the cells of a bench are run: here, in processes of this machine, or on a dask cluster.

Each is a generator: (cell, digest) pairs in, rows out as they are finished. One thread a cell everywhere, so the rows
are the same; closing the generator stops the cells in flight.
"""

import logging
import multiprocessing
import os
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end
from typing import Any

from gradprune.errors import InputError
from gradprune.evaluation.cells import Row, empty_row, run_cell, sentence
from gradprune.evaluation.grid import Cell

Job = tuple[Cell, str]
ATTEMPTS = 3            # a cell whose worker dies this often becomes a failed row
SCHEDULER_SECONDS = 10  # how long to look for a scheduler


def serial(jobs: Sequence[Job]) -> Generator[Row, None, None]:
    """One after the other, in this process."""
    for job in jobs:
        yield run_cell(*job)


def processes(jobs: Sequence[Job], workers: int) -> Generator[Row, None, None]:
    """In `workers` processes of this machine; a process that dies is replaced, and its cell tried again.

    Raises InputError where processes cannot be started at all.
    """
    waiting, deaths, rows = list(reversed(jobs)), dict.fromkeys(jobs, 0), 0
    while waiting:
        with _pool(workers) as pool:
            running: dict[Future[Row], Job] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < workers:  # no more: all that run when one dies are tried again
                        job = waiting.pop()
                        running[pool.submit(run_cell, *job)] = job
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        row = future.result()
                        del running[future]
                        rows += 1
                        yield row
            except BrokenProcessPool:
                if not rows:
                    raise InputError("the worker processes died before they had finished a cell. In a script, call "
                                     "run() under `if __name__ == '__main__':`; else look at the free memory."
                                     ) from None
                for job in running.values():
                    deaths[job] += 1
                    if deaths[job] < ATTEMPTS:
                        waiting.append(job)
                    else:
                        yield empty_row(job[0], f"its worker process died {ATTEMPTS} times (out of memory?)")


class _pool(ProcessPoolExecutor):
    """A pool whose workers end with the run: nobody waits for cells that nobody will read."""

    def __init__(self, workers: int) -> None:
        self._before = set(multiprocessing.active_children())
        super().__init__(workers, multiprocessing.get_context("spawn"), _enter_worker)

    def __exit__(self, kind: type | None, *error: Any) -> None:
        for process in set(multiprocessing.active_children()) - self._before if kind else ():
            process.terminate()
        self.shutdown(wait=True, cancel_futures=True)


def _enter_worker() -> None:
    """Ctrl-C is the main process's business, and a worker does not outlive it."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()

    def follow() -> None:
        wait_for_end([main.sentinel])  # type: ignore[union-attr]  # a worker has a parent
        os._exit(1)
    threading.Thread(target=follow, daemon=True).start()


def cluster(jobs: Sequence[Job], address: str) -> Generator[Row, None, None]:
    """On the workers of a running dask scheduler; dask itself tries a cell again whose worker died.

    address: such as tcp://HOST:8786. Raises InputError where nothing answers there, the scheduler is lost, or the extra
    `cluster` is not installed.
    """
    try:
        from distributed import Client, as_completed
    except ImportError:
        raise InputError("--scheduler needs dask: pip install 'gradprune[cluster]'.") from None
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # its tracebacks say less than our sentence
    try:
        client = Client(address, timeout=SCHEDULER_SECONDS, set_as_default=False)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"no dask scheduler answers at {address}: {sentence(error)}") from None
    with client:
        cells = {future.key: (future, job) for job, future in
                 zip(jobs, client.map(run_cell, *zip(*jobs, strict=True), pure=False), strict=True)}
        try:
            for future in as_completed([future for future, _ in cells.values()]):
                _, (cell, _) = cells.pop(future.key)
                if future.status in ("cancelled", "lost"):
                    raise InputError(f"the dask scheduler at {address} was lost.")
                yield future.result() if future.status == "finished" else empty_row(cell, sentence(future.exception()))
        finally:
            client.cancel([future for future, _ in cells.values()])
