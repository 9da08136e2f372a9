"""What a learner is told about an unforeseen fault: the exception and its line, or both results on an example."""

import math
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import gradprune

Seen = list[Tensor]  # what a function did, as float64 tensors
_INSTALLED = (*(str(Path(module.__file__ or "").parent) for module in (gradprune, torch)),
              sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sysconfig.get_path("stdlib"), "<frozen")


def close(seen: Seen, other: Seen) -> bool:
    """Same shapes and, to rounding, the same finite numbers."""
    return len(seen) == len(other) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(seen, other, strict=True))


def describe_error(error: BaseException) -> str:
    """An exception in one sentence, with the line of the learner's function where it happened."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if _learners(frame.filename)), None)
    try:
        words = shorten(str(error), 300, placeholder=" ...")
    except Exception:
        words = "(its message cannot be shown)"
    where = f" (line {line} of its cell)" if line else ""
    if isinstance(error, NotImplementedError) and not words:
        return f"your function raises NotImplementedError{where}: its body is still to be written."
    return f"your function raises {type(error).__name__}{': ' + words if words else ''}{where}."


def _learners(file: str) -> bool:
    """Whether code in that file is the learner's, and no library's (a compiled one names its .pyx)."""
    return not file.startswith(_INSTALLED) and not file.endswith((".pyx", ".pxi"))


def difference(seen: Seen, expected: Seen) -> str:
    """Where the attempt differs from the reference, for unforeseen faults."""
    for mine, right in zip(seen, expected, strict=False):
        if mine.shape != right.shape and right.ndim == 0:
            return (f"on a hidden example the result should be one number, yours holds {mine.numel()}: is a mean or a "
                    "sum missing?")
        if mine.shape != right.shape and mine.ndim == right.ndim == 1:
            return f"on a hidden example the result should have {_entries(right)}, yours has {_entries(mine)}."
        if mine.shape != right.shape:
            return (f"on a hidden example the result should have shape {tuple(right.shape)}, "
                    f"yours has {tuple(mine.shape)}.")
        if not bool(torch.isfinite(mine).all()):
            return ("on a hidden example your result holds values that are not finite (nan or inf): look for a "
                    "division by 0.")
        if not close([mine], [right]):
            apart = (mine - right).abs().flatten()
            place = int(apart.argmax()) if apart.numel() else 0
            at = f" at place {place}" if right.numel() > 1 else ""
            wanted, got = next(pair for digits in (4, 6, 17) if len(set(
                pair := (_number(right, place, digits), _number(mine, place, digits)))) > 1)
            return (f"on a hidden example the result should be {wanted}{at}, yours is {got}.")
    return "on a hidden example your function does not do what it should."


def _entries(values: Tensor) -> str:
    return "no entry" if not len(values) else f"{len(values)} entr{'y' if len(values) == 1 else 'ies'}"


def _number(values: Tensor, place: int, digits: int) -> str:
    value = values.flatten()[place].item()
    return f"{value:.{digits}g}" if math.isfinite(value) else str(value)


def kind(value: Any) -> str:
    """What a value is, in words."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def an_example(given: Mapping[str, Any], right: Any, mine: Any) -> str:
    """Both results on a small input, each argument by its name."""
    told = ", ".join(f"{name} = {_written(value)}" for name, value in given.items())
    return (f"your function does not do what it should. With `{told}` the result should be "
            f"`{_written(right)}`, yours is `{_written(mine)}`.")


def _written(value: Any) -> str:
    """A value as one would type it, on one line."""
    if isinstance(value, pd.DataFrame):
        return f"DataFrame({value.to_dict('list')})"
    if callable(value) and hasattr(value, "__name__"):
        return value.__name__.strip("_")
    if isinstance(value, pd.Series):
        return f"Series({value.round(4).to_dict()})"
    return shorten(repr(value), 600, placeholder=" ...")
