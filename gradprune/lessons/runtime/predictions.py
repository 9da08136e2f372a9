"""Predict, then run: a question with a slider or a row of buttons, and the guess beside the result later on.

The answer is kept the moment it is given. A cell that reveals works just as well when the question was skipped.
"""

import html
import os
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from gradprune.base.errors import require
from gradprune.lessons.runtime import progress
from gradprune.lessons.runtime.notebook_setup import show

_RED, _GREEN = "#C45500", "#007F5C"
_spans: dict[str, float] = {}  # width of the slider, by key, for questions asked in this kernel


def predict(key: str, question: str, low: float = 0, high: float = 1, *, step: float | None = None,
            form: str = ".2f", options: Sequence[str] = ()) -> None:
    """Ask for a guess before the result is known; the answer is kept at once and shown again next time.

    key: "02.asr_after_one": the notebook's number, a dot, a name. question: one sentence. low, high, step: the
    slider's range (step: a hundredth of it) and form: how to write numbers (".0%", "d"); or options: the answers to
    choose from. By keyboard, arrows move the slider; Tab and Space choose a button.
    Raises InputError for an empty range or one option.
    """
    require(low < high, f"low must be below high, got {low} and {high}.")
    require(len(options) != 1 and len(set(options)) == len(options),
            f"options must be two or more different answers, got {list(options)}.")
    earlier = progress.recall("answers", key)
    if options:
        panel = _panel(key, question, _buttons(options, earlier if earlier in options else None), str)
    else:
        _spans[key] = high - low
        known = float(earlier) if isinstance(earlier, int | float) and low <= earlier <= high else None
        slider = _slider(low, high, step or (high - low) / 100, form, known)
        panel = _panel(key, question, slider, lambda value: format(int(value) if form == "d" else value, form))
    from IPython.display import display

    display(panel)


def reveal(key: str, actual: Any, form: str = ".2f") -> Any:
    """Say guess against result in one sentence; returns the guess, or None where there is none.

    actual: a number (or a tensor with one), or the right one of the options. form: how to write numbers.
    """
    guess = progress.recall("answers", key)
    if isinstance(actual, str):
        guess = guess if isinstance(guess, str) else None
        right, told, truth = guess == actual, f"“{guess}”", f"“{actual}”"
        verdict = "Right" if right else "Not what you expected"
    else:
        actual = float(actual)
        guess = float(guess) if isinstance(guess, int | float) else None
        told, truth = (format(int(v) if form == "d" else v, form) if v is not None else "" for v in (guess, actual))
        distance = abs(actual - guess) / _spans.get(key, max(abs(actual), 1e-9)) if guess is not None else 1.0
        right = distance <= 0.1
        verdict = "Close" if right else "Higher than you thought" if actual > (guess or 0) else "Lower than you thought"
    if guess is None:
        sentence, symbol, color = f"The answer is {truth} (you made no guess, and that is fine).", "○", "#667078"
    else:
        sentence = f"{verdict}: you guessed {told}, the answer is {truth}."
        symbol, color = ("✔", _GREEN) if right else ("➜", _RED)
    show(f'<div style="border-left:4px solid {color};padding:0.3em 0.8em;margin:0.4em 0">'
         f"<b>{symbol}</b> {html.escape(sentence)}</div>", f"{symbol} {sentence}")
    return guess


def _slider(low: float, high: float, step: float, form: str, value: float | None) -> Any:
    import ipywidgets as widgets

    return widgets.FloatSlider(value=(low + high) / 2 if value is None else value, min=low, max=high, step=step,
                               readout_format=form, continuous_update=False, layout={"width": "28em"})


def _buttons(options: Sequence[str], value: Any) -> Any:
    import ipywidgets as widgets

    return widgets.ToggleButtons(options=list(options), value=value, style={"button_width": "auto"})


def _panel(key: str, question: str, control: Any, write: Callable[[Any], str]) -> Any:
    """Question, control and a line that says what is kept; each change is kept at once."""
    import ipywidgets as widgets

    earlier = progress.recall("answers", key)
    line = widgets.HTML(_kept(write(earlier)) if earlier is not None and earlier == control.value
                        else "<small>No guess yet. Choose one: it is kept.</small>")

    def answered(change: dict[str, Any]) -> None:
        try:
            progress.remember("answers", key, change["new"])
            line.value = _kept(write(change["new"]))
        except Exception:
            trace = html.escape(traceback.format_exc())
            line.value = f'<pre class="gradprune-error" style="color:#B00020">{trace}</pre>'
            if os.environ.get("GRADPRUNE_STRICT") == "1":
                raise

    control.observe(answered, "value")
    return widgets.VBox([widgets.HTML(f"<b>Predict.</b> {html.escape(question)}"), control, line])


def _kept(told: str) -> str:
    return f"<small>✔ Your guess: <b>{html.escape(told)}</b> (kept)</small>"
