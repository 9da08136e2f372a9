"""Output of the command line: help texts, tables, sentences, JSON."""

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

_FOLDED = 8  # letters, the least width of a column whose words may be broken

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
    """The map of the package from its docstring, for the end of `gradprune --help`."""
    listed = [line[2:] for line in re.findall(r"^ +[a-z]+/ .*", gradprune.__doc__ or "", re.MULTILINE)]
    return "\n".join(["\b", "In Python, in reading order (`help(gradprune)`):", *listed])


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def show(as_json: bool, told: dict[str, Any], *parts: Table | str, kept: str = "") -> None:
    """Print tables and sentences to stdout, or with JSON to stderr; after an interrupted run, say what is kept."""
    console = Console(stderr=as_json)
    try:
        for part in parts:
            say(console, part) if isinstance(part, str) else _lay_out(console, part)
        if as_json:  # an untrusted card may contain NaN, which JSON does not have: it becomes null
            print(json.dumps(json.loads(json.dumps(told), parse_constant=lambda _: None), allow_nan=False))
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would print the rest at its end
        if not isinstance(error, BrokenPipeError):  # the reader has closed the pipe, as `head` does
            raise InputError("the work is done, but its results cannot be printed: "
                             f"{error.strerror or error}.") from None
    if told.get("interrupted"):
        raise KeyboardInterrupt(kept)


def replace_closed_streams() -> None:
    """Replace a closed stdout or stderr (`>&-`), for which Python has None, by the null device."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # open until the program ends


def _lay_out(console: Console, sheet: Table) -> None:
    """Print a table, or one line per row if the window is so narrow that figures would be cut off."""
    def least(column: Column) -> int:
        widest = max(console.measure(cell).minimum for cell in (column.header, *column.cells))
        return min(widest, _FOLDED) if column.overflow == "fold" else widest

    if sum(least(column) + 3 for column in sheet.columns) < console.width:
        console.print(sheet)
        return
    heads = [str(column.header) for column in sheet.columns]
    for name, *cells in zip(*(column.cells for column in sheet.columns), strict=True):
        say(console, f"{name}: " + ", ".join(f"{head} {cell}" for head, cell in zip(heads[1:], cells, strict=True)))


def written(told: dict[str, Any]) -> list[str]:
    """A sentence for each file that a command wrote."""
    names = {"out": "Saved", "export": "Exported", "report": "Report"}
    return [f"{name}: {told[key]}" for key, name in names.items() if told.get(key)]


def say(console: Console, sentence: str) -> None:
    """Print text without markup, since names come from the user, and without wrapping unless it is a terminal."""
    if sentence:
        console.print(plain(sentence), soft_wrap=not console.is_terminal)


def plain(name: str) -> Text:
    """A text that cannot control the terminal, since names come from untrusted files."""
    return Text("".join(letter if letter.isprintable() or letter == "\n" else " " for letter in name))


def table(title: str, rows: dict[str, dict[str, float]]) -> Table:
    """Rows of ACC, ASR and RA; arrows show which direction is good for the defender."""
    up, down = ("\u2191", "\u2193") if Console().encoding.lower().startswith("utf") else ("(+)", "(-)")
    sheet = figures_table(plain(title), f"ACC {up}", f"ASR {down}", f"RA {up}")
    for name, row in rows.items():
        sheet.add_row(plain(name), *(f"{row[key]:.1%}" for key in ("acc", "asr", "ra")))
    return sheet


def folding_table(*columns: str | Text) -> Table:
    """An empty table whose long words are wrapped in a narrow window; rich would cut them."""
    return Table(*(Column(column, overflow="fold") for column in columns))


def figures_table(names: str | Text, *figures: str) -> Table:
    """An empty table of names, which are wrapped, since an ellipsis is not ASCII, and figures, aligned to the right."""
    return Table(Column(names, overflow="fold"), *(Column(figure, justify="right") for figure in figures))


def progress() -> bool:
    """Whether to show bars: not if stderr is a file or a pipe."""
    return sys.stderr.isatty()
