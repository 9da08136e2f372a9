"""How the command line speaks: help texts, tables, sentences, JSON."""

import json
import os
import re
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

import gradprune
from gradprune.base.errors import InputError

_FOLDED = 8  # letters, the least for a column whose words may be broken

FIGURES = """What the figures mean; all are shares of test images:

\b
  ACC  clean images classified correctly; high is good
  ASR  attack success rate: triggered images of the other classes that go to
       the attacker's target; low is good after a defence
  RA   robust accuracy: the same images given their true class; high is good
"""


def more(*examples: str, figures: bool = True) -> str:
    """The end of a help text: examples, then what the figures mean."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in examples), "", FIGURES if figures else ""])


def rooms() -> str:
    """The map of the package, as its docstring has it: the end of `gradprune --help`."""
    listed = [line[2:] for line in re.findall(r"^ +[a-z]+/ .*", gradprune.__doc__ or "", re.MULTILINE)]
    return "\n".join(["\b", "In Python, in reading order (`help(gradprune)`):", *listed])


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def show(as_json: bool, told: dict[str, Any], *parts: Table | str, kept: str = "") -> None:
    """Tables and sentences to stdout; with JSON, to stderr. Where a run was interrupted, say what is kept."""
    console = Console(stderr=as_json)
    try:
        for part in parts:
            say(console, part) if isinstance(part, str) else _lay_out(console, part)
        if as_json:  # a stranger's card may hold NaN, which is no JSON: it becomes null
            print(json.dumps(json.loads(json.dumps(told), parse_constant=lambda _: None), allow_nan=False))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as `head` does
        _give_up_stdout()
    except OSError as error:
        _give_up_stdout()
        raise InputError(f"the work is done, but its results cannot be printed: {error.strerror or error}.") from None
    if told.get("interrupted"):
        raise KeyboardInterrupt(kept)


def _give_up_stdout() -> None:
    """Let what still waits to be printed go nowhere: Python tries again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def replace_closed_streams() -> None:
    """Give a closed stdout or stderr (`>&-`) a place that takes everything; Python has None there."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # to the end


def _lay_out(console: Console, sheet: Table) -> None:
    """Print a table, or a line for each of its rows where the window is so narrow that figures would be cut off."""
    def least(column: Column) -> int:
        widest = max(console.measure(cell).minimum for cell in (column.header, *column.cells))
        return min(widest, _FOLDED) if column.overflow == "fold" else widest

    if sum(least(column) + 3 for column in sheet.columns) < console.width:
        console.print(sheet)
        return
    heads = [str(column.header) for column in sheet.columns]
    for name, *cells in zip(*(column.cells for column in sheet.columns), strict=True):
        say(console, f"{name}: " + ", ".join(f"{head} {cell}" for head, cell in zip(heads[1:], cells, strict=True)))


def say(console: Console, sentence: str) -> None:
    """Print text as it is: no markup (names come from the user), and one line where nobody is looking."""
    if sentence:
        console.print(plain(sentence), soft_wrap=not console.is_terminal)


def plain(name: str) -> Text:
    """A text that cannot steer the terminal: names come from strangers' files."""
    return Text("".join(letter if letter.isprintable() or letter == "\n" else " " for letter in name))


def table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    """Rows of ACC, ASR and RA; arrows tell which direction is good for the defender."""
    up, down = ("\u2191", "\u2193") if Console().encoding.lower().startswith("utf") else ("(+)", "(-)")
    sheet = Table()
    sheet.add_column(plain(title), overflow="fold")  # long names are cut into lines: an ellipsis is not ASCII
    for figure in (f"ACC {up}", f"ASR {down}", f"RA {up}"):
        sheet.add_column(figure, justify="right")
    for name, row in rows.items():
        sheet.add_row(plain(name), *(f"{row[key]:.1%}" for key in ("acc", "asr", "ra")))
    return sheet


def folding_table(*columns: str) -> Table:
    """An empty table whose long words go on in the next line where the window is narrow; rich would cut them."""
    sheet = Table()
    for column in columns:
        sheet.add_column(column, overflow="fold")
    return sheet


def progress() -> bool:
    """Bars are for people: none where stderr is a file or a pipe."""
    return sys.stderr.isatty()
