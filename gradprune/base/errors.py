"""The one exception for bad input, and the sentence that offers the nearest names."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

_LONGEST = 1000  # characters of a sentence
_LISTED = 5  # names that a sentence lists


class InputError(ValueError):
    """Bad input, told in one sentence: the argument, what came, what was expected.

    It may quote a stranger's file: the middle of an endless text goes, and what cannot be printed becomes a space.
    """

    def __init__(self, sentence: str) -> None:
        if len(sentence) > _LONGEST:
            sentence = f"{sentence[:600]} ... {sentence[-300:]}"
        super().__init__("".join(letter if letter.isprintable() else " " for letter in sentence))


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """Build the error for a name that nobody knows, with the nearest known names."""
    known, name = sorted(known), str(name)[:200]
    # A slip of one letter means one name; only a wilder guess gets several.
    near = get_close_matches(name, known, n=1, cutoff=0.85) or get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known) or 'none'}."
    return InputError(f"Unknown {kind} {name!r}; {hint}")


def require(condition: bool, sentence: str) -> None:
    """Raise `InputError(sentence)` unless the condition holds."""
    if not condition:
        raise InputError(sentence)


def listed(names: Iterable[str], between: str = ", ") -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return between.join(names[:_LISTED]) + more


def override(kind: str, defaults: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The default settings with the caller's changes; raises InputError for names that `defaults` does not have."""
    extra = set(changes) - set(defaults)
    require(not extra, f"Unknown {kind} setting {', '.join(sorted(extra))}; known: {', '.join(defaults)}.")
    return defaults | changes
