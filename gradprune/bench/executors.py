"""Where the cells of a bench run: in this process, in several processes on this machine, or on a dask cluster.

Each is a generator that takes arguments of `run_cell` and yields rows as they are finished. Every cell has one thread,
so the rows are the same everywhere; closing the generator stops the cells in progress.
"""

import asyncio
import logging
import multiprocessing
import os
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait as wait_for_end
from typing import Any

from gradprune.base.devices import keep_freed_memory
from gradprune.base.errors import InputError, told_as
from gradprune.bench.cells import Row, empty_row, run_cell, sentence
from gradprune.bench.grid import Cell

Job = tuple[Cell, str, str, str | None]  # arguments of `run_cell`
SCHEDULER_SECONDS = 10  # how long to wait for a scheduler


def serial(jobs: Sequence[Job]) -> Generator[Row, None, None]:
    """Run the cells one after another, in this process."""
    for job in jobs:
        yield run_cell(*job)


def processes(jobs: Sequence[Job], workers: int) -> Generator[Row, None, None]:
    """Run the cells in `workers` processes on this machine.

    If a process dies, the others end too: each of their cells is tried again alone, and a cell whose process dies again
    becomes a failed row. Raises InputError if processes cannot be started at all.
    """
    waiting, suspects = list(reversed(jobs)), list[Job]()
    while waiting:
        yield from _together(waiting, workers, suspects)
        while suspects:
            job, guilty = suspects.pop(), list[Job]()
            yield from _together([job], 1, guilty)
            if guilty:
                yield empty_row(job[0], "its worker process died twice (out of memory?)")


def _together(waiting: list[Job], workers: int, suspects: list[Job]) -> Generator[Row, None, None]:
    """Run jobs from the end of `waiting` until none is left or a process dies; running ones then become `suspects`."""
    with _pool(workers) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool:
            raise InputError("the worker processes died at once; in a script, call run() under "
                             "`if __name__ == '__main__':`.") from None
        running: dict[Future[Row], Job] = {}
        try:
            while waiting or running:
                while waiting and len(running) < workers:  # no more, so that there are few suspects
                    running[pool.submit(run_cell, *waiting[-1])] = waiting[-1]
                    waiting.pop()  # only now: a pool that broke in the meantime takes no job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    row = future.result()
                    del running[future]
                    yield row
        except BrokenProcessPool:
            suspects.extend(running.values())


class _pool(ProcessPoolExecutor):
    """A pool whose workers end with the run, without waiting for cells that are no longer needed."""

    def __init__(self, workers: int) -> None:
        self._before = set(multiprocessing.active_children())
        super().__init__(workers, multiprocessing.get_context("spawn"), _enter_worker)

    def __exit__(self, kind: type | None, *error: Any) -> None:
        for process in set(multiprocessing.active_children()) - self._before if kind else ():
            process.terminate()
        self.shutdown(wait=True, cancel_futures=True)


def _enter_worker() -> None:
    """Let a worker ignore Ctrl-C, which the main process handles, and end with the main process."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()

    def follow() -> None:
        wait_for_end([main.sentinel])  # type: ignore[union-attr]  # a worker has a parent
        os._exit(1)
    threading.Thread(target=follow, daemon=True).start()


def reach(address: str) -> None:
    """Check that a dask scheduler answers at this address, such as tcp://HOST:8786.

    Raises InputError if none answers in time, or the extra `cluster` is not installed.
    """
    with told_as(lambda _: "--scheduler needs dask: pip install 'gradprune[cluster]'.", (ImportError,)):
        from distributed.comm.core import connect

    async def greet() -> None:  # dask's own `Client` waits forever for a scheduler that stays silent
        connection = await asyncio.wait_for(connect(address, timeout=SCHEDULER_SECONDS), SCHEDULER_SECONDS)
        await connection.close()
    with told_as(lambda error: f"no dask scheduler answers at {address}: {sentence(error)}",
                 (OSError, ValueError, ImportError)), ThreadPoolExecutor(1) as aside:
        aside.submit(asyncio.run, greet()).result()  # a notebook's own thread has an event loop already


def cluster(jobs: Sequence[Job], address: str) -> Generator[Row, None, None]:
    """Run the cells on the workers of a dask scheduler; dask itself tries a cell again if its worker dies.

    Raises InputError if the scheduler is lost.
    """
    from distributed import Client, as_completed

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # our error says more than its tracebacks
    with Client(address, timeout=SCHEDULER_SECONDS, set_as_default=False) as client:
        cells = {future.key: (future, job) for job, future in
                 zip(jobs, client.map(_in_worker, *zip(*jobs, strict=True), pure=False), strict=True)}
        try:
            for future in as_completed([future for future, _ in cells.values()], loop=client.loop):
                _, (cell, *_) = cells.pop(future.key)
                if future.status in ("cancelled", "lost"):
                    raise InputError(f"the dask scheduler at {address} was lost.")
                yield future.result() if future.status == "finished" else empty_row(cell, sentence(future.exception()))
        finally:
            client.cancel([future for future, _ in cells.values()])


def _in_worker(*job: Any) -> Row:
    """A cell in a worker of dask."""
    keep_freed_memory()
    return run_cell(*job)
