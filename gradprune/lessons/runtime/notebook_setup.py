"""How a notebook begins: in which mode it runs, what made its figures, and how far the learner has come."""

import html
import os
import re
from typing import Any

import torch

from gradprune import __version__
from gradprune.base.errors import InputError
from gradprune.lessons.runtime import progress

MODES = {
    "quick": "figures come from shipped models, short trainings and measured tables",
    "full": "models are trained here, on this machine",
    "ci": "shipped models and the smallest settings, for tests",
}

_COLORS = {"✔": "#007F5C", "✘": "#C45500", "➜": "#C45500", "○": "#667078"}


def mode() -> str:
    """The mode that `GRADPRUNE_MODE` asks for: "quick" (the default), "full" or "ci".

    Raises InputError for any other value.
    """
    wanted = os.environ.get("GRADPRUNE_MODE") or "quick"
    if wanted not in MODES:
        raise InputError(f"GRADPRUNE_MODE must be one of {', '.join(MODES)}, got {wanted!r}.")
    return wanted


def begin(notebook: str) -> None:
    """Open a notebook: print the mode, the versions, and what the learner has done in it so far, a line each.

    notebook: its number, "00" to "08". From here on each picture's caption names the mode that made it.
    Nothing is seeded and no data is loaded. Raises InputError for a bad `GRADPRUNE_MODE`.
    """
    now = mode()
    threads = torch.get_num_threads()
    print(f"Notebook {notebook}, mode {now}: {MODES[now]}.\n"
          f"(gradprune {__version__}, torch {torch.__version__}, {threads} thread{'s' if threads > 1 else ''})")
    _name_the_mode_in_captions()
    if told := progress.describe(notebook):
        print(told)


def _name_the_mode_in_captions() -> None:
    """Let IPython add the mode to the caption of each `Picture` that it shows."""
    if shell := _shell():
        formatter = shell.display_formatter.formatters["text/html"]
        formatter.for_type_by_name("gradprune.views.figures.picture", "Picture", _with_mode)


def _with_mode(picture: Any) -> str:
    note = f'<br><small>Made in mode "{mode()}": {MODES[mode()]}.</small></figcaption>'
    return str(picture.html()).replace("</figcaption>", note)


def _shell() -> Any:
    """The running IPython shell, or None in plain Python."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def show(markup: str, text: str) -> None:
    """Show HTML in a notebook, the text in plain Python."""
    if _shell() is None:
        print(text)
        return
    from IPython.display import display

    display({"text/html": markup, "text/plain": text}, raw=True)


def say(symbol: str, message: str, title: str = "") -> None:
    """A sentence behind a coloured line; colour, symbol and words: none of the three carries the meaning alone."""
    color = _COLORS[symbol]
    told = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(message))
    show(f'<div role="status" style="border-left:5px solid {color};padding:0.4em 0.9em;margin:0.4em 0">'
         f'<b><span style="color:{color}">{symbol}</span> {title}</b> {told}</div>',
         f"{f'{symbol} {title}'.strip()} {message}")
