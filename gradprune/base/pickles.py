"""A check of pickles before they are loaded: one that would hang or fill the memory is refused. Nothing is run."""

import pickletools
import re
from pathlib import Path
from typing import Any

from gradprune.base.errors import InputError, told_as

_HEAVIEST = 10_000  # values in one tuple, including those in nested tuples
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CALLS = ("REDUCE", "NEWOBJ")
# Functions that torch's own loader calls for a file, and that allocate as much memory as the file says.
_MAKERS = r"(__builtin__|builtins) bytearray|torch\S* (\w*Tensor|(Unt|T)ypedStorage)|torch\._utils _rebuild_qtensor"
_PUTS, _GETS = ("PUT", "BINPUT", "LONG_BINPUT"), ("GET", "BINGET", "LONG_BINGET")


class _Maker(int):
    """The weight of a function that allocates memory, wherever it is on the stack or in the memo."""


class _Pickle:
    """The stack and the memo of a pickle; each entry is the number of values in it."""

    def __init__(self) -> None:
        self.stack: list[int] = []
        self.marks: list[int] = []
        self.memo: dict[int, int] = {}
        self.number = 0  # the largest integer since the last mark: for a storage, the number of its values
        self.made = False  # whether one of `_MAKERS` was called

    def step(self, name: str, argument: Any, before: list[Any], after: list[Any]) -> None:
        """Follow one operation; raises IndexError or KeyError if it takes something that is not there."""
        if name == "MARK":
            self.marks.append(len(self.stack))
            self.number = 0
        elif name == "MEMOIZE" or name in _PUTS:
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name == "TUPLE":
            self.stack.append(1 + sum(self._take(self.marks.pop())))
        elif name in _TUPLES:
            self.stack.append(1 + sum(self._take(len(self.stack) - _TUPLES[name])))
        else:
            if pickletools.markobject in before:
                self._take(self.marks.pop())
                before = before[:before.index(pickletools.markobject)]
            taken = self._take(len(self.stack) - len(before))
            self.made |= name in _CALLS and isinstance(taken[0], _Maker)
            maker = name == "GLOBAL" and re.fullmatch(_MAKERS, argument) is not None
            self.stack += [_Maker(1)] if maker else [1] * len(after)
            if isinstance(argument, int):
                self.number = max(self.number, argument)

    def _take(self, start: int) -> list[int]:
        """Take everything from position `start` on off the stack."""
        if not 0 <= start <= len(self.stack):
            raise IndexError(start)
        taken = self.stack[start:]
        del self.stack[start:]
        return taken


def check_pickle(file: Any, path: str | Path, size: int | None = None) -> None:
    """Read one pickle of an open file to its end, without building its objects.

    A tuple that holds the same tuple twice, nested forty deep, makes a file of 400 bytes that takes hours to hash as
    the key of a dict.
    path: the file's name, for the message.
    size: bytes of the whole file, which bound the values of a storage; None checks no storage.
    Raises InputError for such a tuple, for a memo index larger than any file needs, for a storage of more than `size`
    values, for a call that allocates memory without content for it, and for a truncated or damaged pickle.
    """
    content, steps = _Pickle(), 0
    damaged = f"{path} is no file of weights that torch.save wrote, or it is damaged."
    with told_as(lambda _: damaged):  # a damaged pickle raises almost anything
        for operation, argument, _ in pickletools.genops(file):
            steps += 1
            content.step(operation.name, argument, operation.stack_before, operation.stack_after)
            far = operation.name in _PUTS and int(argument or 0) > steps
            far |= operation.name == "BINPERSID" and size is not None and content.number > size
            if far or content.made or (content.stack and content.stack[-1] > _HEAVIEST):
                raise InputError(f"{path} was not read: it would take far more time or memory than its size suggests.")
