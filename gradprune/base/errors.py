"""Arguments: the exception for bad input, messages that suggest the nearest names, values made plain."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

_LONGEST = 1000  # characters in a message
_LISTED = 5  # names that a message lists


class InputError(ValueError):
    """Bad input, explained in one sentence: the argument, the value given, the value expected.

    The sentence may quote an untrusted file: a very long text loses its middle, unprintable characters become spaces.
    """

    def __init__(self, sentence: str) -> None:
        if len(sentence) > _LONGEST:
            sentence = f"{sentence[:600]} ... {sentence[-300:]}"
        super().__init__("".join(letter if letter.isprintable() else " " for letter in sentence))


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """Build the error for an unknown name, with the nearest known names."""
    known, name = sorted(known), str(name)[:200]
    # For a typing error one suggestion is enough; a more distant name gets up to three.
    near = get_close_matches(name, known, n=1, cutoff=0.85) or get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}."
    return InputError(f"Unknown {kind} {name!r}; {hint}")


def require(condition: bool, sentence: str) -> None:
    """Raise `InputError(sentence)` unless the condition holds."""
    if not condition:
        raise InputError(sentence)


def require_known(kind: str, name: object, known: Collection[str]) -> None:
    """Raise the error of `unknown` unless the name is one of the known ones."""
    if name not in known:
        raise unknown(kind, name, known)


@contextmanager
def told_as(tell: Callable[[Any], str], kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """A context in which an error of one of these kinds, by default of any, becomes an InputError.

    tell: the sentence for an error. What is an InputError already stays as it is.
    """
    try:
        yield
    except InputError:
        raise
    except kinds as error:
        raise InputError(tell(error)) from None


def listed(names: Iterable[str], between: str = ", ") -> str:
    """The first five names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return between.join(names[:_LISTED]) + more


def override(kind: str, defaults: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The default settings with the caller's changes; raises InputError for names that are not in `defaults`."""
    extra = set(changes) - set(defaults)
    require(not extra, f"Unknown {kind} setting {', '.join(sorted(extra))}; known: {', '.join(defaults)}.")
    return defaults | changes


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's and a path as text, for torch and for JSON; anything else as it is."""
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    return str(value) if isinstance(value, PurePath) else value
