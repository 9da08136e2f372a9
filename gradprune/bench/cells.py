"""One cell of a bench: a defence on a victim, measured on the test set; any failure becomes a row."""

import platform
import threading
import time
from functools import lru_cache
from typing import Any

from gradprune.base.devices import one_thread
from gradprune.base.errors import InputError
from gradprune.bench.grid import Cell
from gradprune.defenses import defense
from gradprune.evaluation.metrics import Exam, Metrics, der, measure
from gradprune.victims.victim import Victim, load_victim, versions

Row = dict[str, Any]
_ONE_AT_A_TIME = threading.Lock()  # threads of one process would share torch's random numbers

# The columns of a row, in order. Shares in 0..1; der, seconds, filters and figures are empty if the cell failed.
COLUMNS: dict[str, type] = {
    "attack": str, "defense": str, "spc": int, "seed": int,
    "acc_before": float, "asr_before": float, "ra_before": float,
    "pruned_acc": float, "pruned_asr": float, "pruned_ra": float,  # if a defence prunes first, then fine-tunes
    "acc": float, "asr": float, "ra": float, "der": float,
    "seconds": float,       # the defence's own wall time
    "cell_seconds": float,  # including drawing images and measuring
    "filters_removed": float, "filters": float, "stopped": str, "error": str,
    "gradprune": str, "torch": str, "machine": str, "threads": int}


@lru_cache(maxsize=2)
def _victim(attack: str, digest: str, device: str, code: str | None) -> tuple[Victim, Exam, Metrics]:
    """A victim, its exam and its figures before any defence; cached, since the next cell usually has the same one."""
    victim = load_victim(attack, code, device)
    if victim.card.get("sha256", "") != digest:
        raise InputError(f"the checkpoint {attack!r} here is not the one that the run began with.")
    questions = victim.exam()
    return victim, questions, measure(victim.model, questions)


def run_cell(cell: Cell, digest: str, device: str = "cpu", code: str | None = None) -> Row:
    """Run one cell on one thread; a failure of any kind is a row with its error.

    digest: SHA-256 of the victim's weights.
    device: where it runs, see `models.choose_device`.
    code: see `Grid`.
    Raises only KeyboardInterrupt, on Ctrl-C, and then there is no row.
    """
    start, row = time.perf_counter(), empty_row(cell)
    with _ONE_AT_A_TIME, one_thread():
        try:
            row |= _figures(cell, digest, device, code)
        except Exception as error:
            row["error"] = sentence(error)
    row["cell_seconds"] = round(time.perf_counter() - start, 3)
    return row


def _figures(cell: Cell, digest: str, device: str, code: str | None) -> Row:
    victim, questions, before = _victim(cell.attack, digest, device, code)
    result = defense(cell.defense)(victim.model, victim.data.defense, victim.trigger, spc=cell.spc, seed=cell.seed,
                                   progress=False)
    if result.interrupted:
        raise KeyboardInterrupt
    after = measure(result.model, questions)
    row = _named(before, "{}_before") | _named(after, "{}") | {
        "der": round(der(before, after), 6), "seconds": round(sum(result.seconds.values()), 3),
        "filters_removed": len(result.mask.positions), "filters": len(result.mask.filters), "stopped": result.stopped}
    if result.pruned is not None and result.pruned is not result.model:
        row |= _named(measure(result.pruned, questions), "pruned_{}")
    return row


def _named(metrics: Metrics, form: str) -> Row:
    return {form.format(name): round(value, 6) for name, value in metrics._asdict().items()}


def empty_row(cell: Cell, error: str = "") -> Row:
    """A row without figures; with an error, it is the row of a failed cell."""
    return {name: "" if kind is str else None for name, kind in COLUMNS.items()} | cell._asdict() | {
        "error": error, **versions(), "machine": platform.machine(), "threads": 1}


def sentence(error: BaseException) -> str:
    """An error as one line."""
    told = " ".join(str(error).split())[:300]
    return told if isinstance(error, InputError) else f"{type(error).__name__}: {told}".rstrip(": ")
