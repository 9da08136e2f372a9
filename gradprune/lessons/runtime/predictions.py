"""Predict, then run: a question with a slider or a row of buttons, and the guess beside the result later on.

The answer is kept the moment it is given. A cell that reveals works just as well when the question was skipped.
"""

import html
import os
import traceback
from collections.abc import Sequence
from typing import Any

from gradprune.base.errors import require
from gradprune.lessons.runtime import progress
from gradprune.lessons.runtime.notebook_setup import say

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
    import ipywidgets as widgets
    from IPython.display import display

    from gradprune.views.panels.controls import HANDLE_NAMES

    earlier = progress.recall("answers", key)
    if options:
        earlier = earlier if earlier in options else None
        control = widgets.ToggleButtons(options=list(options), value=earlier, style={"button_width": "auto"})
    else:
        _spans[key] = high - low
        earlier = earlier if isinstance(earlier, int | float) and low <= earlier <= high else None
        control = widgets.FloatSlider(value=(low + high) / 2 if earlier is None else earlier, min=low, max=high,
                                      step=step or (high - low) / 100, readout_format=form, continuous_update=False,
                                      layout={"width": "28em"})

    def kept(value: Any) -> str:
        return f"<small>✔ Your guess: <b>{html.escape(_written(value, form))}</b> (kept)</small>"

    line = widgets.HTML("<small>No guess yet. Choose one: it is kept.</small>" if earlier is None else kept(earlier))

    def answered(change: dict[str, Any]) -> None:
        try:
            progress.remember("answers", key, change["new"])
            line.value = kept(change["new"])
        except Exception:
            trace = html.escape(traceback.format_exc())
            line.value = f'<pre class="gradprune-error" style="color:#DD2C40">{trace}</pre>'
            if os.environ.get("GRADPRUNE_STRICT") == "1":
                raise

    control.observe(answered, "value")
    asked = widgets.HTML(f'<span class="gradprune-label"><b>Predict.</b> {html.escape(question)}</span>{HANDLE_NAMES}')
    display(widgets.VBox([asked, control, line]).add_class("gradprune-named"))


def reveal(key: str, actual: Any, form: str = ".2f") -> Any:
    """Compare guess and result in one sentence; returns the guess, or None where there is none.

    actual: a number (or a tensor with one), or the right one of the options. form: how to write numbers.
    """
    guess: Any = progress.recall("answers", key)
    in_words = isinstance(actual, str)
    actual = actual if in_words else float(actual)
    told = (lambda value: f"“{value}”") if in_words else (lambda value: _written(value, form))
    if not isinstance(guess, str if in_words else int | float):
        say("○", f"The answer is {told(actual)} (you made no guess; that is fine).")
        return None
    if in_words:
        right, verdict = guess == actual, "Right" if guess == actual else "Not what you expected"
    else:
        guess = float(guess)
        right = abs(actual - guess) / _spans.get(key, max(abs(actual), 1e-9)) <= 0.1
        verdict = "Close" if right else "Higher than you thought" if actual > guess else "Lower than you thought"
    say("✔" if right else "➜", f"{verdict}: you guessed {told(guess)}, the answer is {told(actual)}.")
    return guess


def _written(value: Any, form: str) -> str:
    return value if isinstance(value, str) else format(int(value) if form == "d" else value, form)
