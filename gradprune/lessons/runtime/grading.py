"""How an attempt is judged: it runs on hidden inputs, and what it does is compared with what the reference does.

If it behaves like one of the wrong functions instead, the learner is told the misconception behind that one.
"""

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.lessons.runtime.feedback import Seen, an_example, close, describe_error, difference, kind

Function = Callable[..., Any]
_LONGEST_STUB = 12  # bytes of code of a function that does nothing but return None


class Verdict(NamedTuple):
    """The state, "untouched", "correct" or "wrong", and the message."""

    state: str
    message: str


class Complaint(Exception):
    """A fault that can be reported without comparing: wrong type, changed input, nothing returned."""


class Untouched(Complaint):
    """The stub as it was handed out."""


def result(function: Function, case: Sequence[Any]) -> Seen:
    """What a function returns, as one tensor: the usual thing to look at."""
    return [as_tensor(function(*case))]


@dataclass(eq=False)
class Exercise:
    """One exercise, told by examples: a right function, the reference, and some instructive wrong ones.

    Its name and its arguments are those of the reference. cases: makes the hidden inputs anew for each run. observe:
    what to look at when the function runs on one of them. same: whether two functions did the same over all cases.
    stub: what counts as not attempted beside returning None or `...`. pure: the function must leave its inputs as they
    were. examples: small inputs, shown with both results where nobody foresaw the fault. caution: what to say of a
    correct attempt that will disappoint, or "". mistakes: what to tell -> the wrong functions that it is told for.
    """

    reference: Function
    notebook: str
    praise: str
    cases: Callable[[], list[tuple[Any, ...]]]
    observe: Callable[[Function, Sequence[Any]], Seen] = result
    same: Callable[[Seen, Seen], bool] = close
    stub: Function | None = None
    pure: bool = True
    examples: Callable[[], list[tuple[Any, ...]]] = list
    caution: Callable[[Any], str] = lambda attempt: ""
    mistakes: dict[str, list[Function]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The function's name: that of the check, too."""
        return self.reference.__name__

    @property
    def arguments(self) -> list[str]:
        """The names of the function's arguments, in order."""
        return list(inspect.signature(self.reference).parameters)

    @property
    def signature(self) -> str:
        """How the function is called."""
        return f"{self.name}({', '.join(self.arguments)})"

    def wrong_answers(self, wrong: Mapping[str, Function | Sequence[Function]]) -> None:
        """What to tell -> the wrong function, or several, that it is told for; of equal ones, the first speaks."""
        self.mistakes |= {message: [told] if callable(told) else [*told] for message, told in wrong.items()}

    def judge(self, attempt: Any) -> Verdict:
        """Say what an attempt is; raises nothing, whatever the attempt does (Ctrl-C excepted)."""
        try:
            seen = self.run(attempt)
        except Untouched:
            if _length(attempt) > _LONGEST_STUB:
                return Verdict("wrong", "your function returns nothing (None) on a hidden example. Every path through "
                                        "it must end in a `return` with a value.")
            return Verdict("untouched", f"write the body of {self.signature}, then run this cell again.")
        except Complaint as complaint:
            return Verdict("wrong", str(complaint))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit among them: exit() in an attempt must not end the notebook
            return Verdict("wrong", describe_error(error))
        expected = _known(self, self.reference)
        if self.same(seen, expected):
            with _quiet():
                return Verdict("correct", f"{self.praise} {self.caution(attempt)}".rstrip())
        if self.stub is not None and self.same(seen, self.run(self.stub)):
            if _length(attempt) > _length(self.stub):
                return Verdict("wrong", "your lines change nothing: the result is that of the function as it was "
                                        "handed out. A call needs its brackets, even where nothing is between them.")
            return Verdict("untouched", f"complete the body of {self.signature}, then run this cell again.")
        for message, functions in self.mistakes.items():
            if any(self._behaves_like(wrong, seen) for wrong in functions):
                return Verdict("wrong", message)
        return Verdict("wrong", self._shown(attempt) or difference(seen, expected))

    def _shown(self, attempt: Any) -> str:
        """The first small example on which attempt and reference part, with both results; empty where there is none."""
        for mine, right in zip(self.examples(), self.examples(), strict=True):
            with contextlib.suppress(Exception), _quiet():
                if not self.same(self.observe(attempt, mine), self.observe(self.reference, right)):
                    given = dict(zip(self.arguments, mine, strict=True))
                    return an_example(given, self.reference(*right), attempt(*mine))
        return ""

    def run(self, function: Any) -> Seen:
        """What a function does on all hidden inputs; raises Complaint, or whatever the function raises."""
        if function is None or function is ...:
            raise Untouched
        if isinstance(function, type):
            raise Complaint(f"{function.__name__} is a class: pass an object of it, {function.__name__}().")
        if not callable(function):
            raise Complaint(f"a function {self.signature} is expected, but this is {kind(function)}.")

        def returned(*case: Any) -> Any:
            value = function(*case)
            if self.stub is None and (value is None or value is ...):
                raise Untouched
            return value

        seen: Seen = []
        for case, untouched in zip(self.cases(), self.cases(), strict=True):
            with _quiet():
                seen += self.observe(returned, case)
            if self.pure and not all(map(_unchanged, case, untouched)):
                raise Complaint("your function changes its input in place. The caller still needs that input: work on "
                                "a copy (`x.clone()` of a tensor, `x.copy()` of a table or a dict), or use operations "
                                "without a trailing underscore.")
        return seen

    def _behaves_like(self, wrong: Function, seen: Seen) -> bool:
        with contextlib.suppress(Exception):
            return self.same(seen, _known(self, wrong))
        return False


def exercise(notebook: str, **settings: Any) -> Callable[[Function], Exercise]:
    """Decorate the right function of an exercise; its wrong ones follow (`wrong_answers`)."""
    return partial(Exercise, notebook=notebook, **settings)


@cache
def _known(exercise: Exercise, function: Function) -> Seen:
    """What a function of the exercise's own does: always the same, and long loops take their time."""
    return exercise.run(function)


def _length(attempt: Any) -> int:
    """How many bytes of code a function holds, its docstring and comments not counted."""
    return len(getattr(getattr(attempt, "__code__", None), "co_code", b""))


def as_tensor(value: Any) -> Tensor:
    """A returned number, array or tensor as float64; raises Complaint for anything else."""
    if isinstance(value, list | tuple) and value and all(isinstance(part, Tensor) and part.ndim == 0 for part in value):
        value = torch.stack(list(value))
    if isinstance(value, bool | int | float | np.ndarray | np.generic | list):
        with contextlib.suppress(ValueError, TypeError, RuntimeError):
            value = torch.as_tensor(np.asarray(value))
    if not isinstance(value, Tensor):
        raise Complaint(f"your function returns {kind(value)}; a number or a tensor is expected.")
    return value.detach().cpu().double()


def loss_and_gradients(function: Function, case: Sequence[Any], free: Sequence[Tensor], unused: bool = False) -> Seen:
    """The loss that a function returns, and the gradients that flow from it into the tensors `free`.

    unused: whether the loss may leave out some of them; their gradients are then zeros.
    Raises Complaint where the function has sent the gradient through already: it was to return the loss alone.
    """
    loss = function(*case)
    if any(tensor.grad is not None for tensor in free):
        raise Complaint("`.backward()` is called inside. It uses up the graph, so the gradient cannot be taken again: "
                        "return the loss alone; the caller takes its gradient.")
    value = as_tensor(loss)
    if value.ndim:
        return [value]
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return [value, torch.zeros(1)]  # no gradient at all
    gradients = torch.autograd.grad(loss, free, allow_unused=unused, materialize_grads=unused)
    return [value, *(gradient.double() for gradient in gradients)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Run learners' code without its prints and warnings, and without traces in torch's global state."""
    with (torch.random.fork_rng(devices=[]), torch.enable_grad(), contextlib.redirect_stdout(io.StringIO()),
          warnings.catch_warnings()):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def _unchanged(given: Any, fresh: Any) -> bool:
    """Whether an input still equals a fresh copy of itself."""
    if isinstance(given, nn.Module):
        return _unchanged(dict(given.state_dict()), dict(fresh.state_dict()))
    if isinstance(given, Tensor):
        return given.shape == fresh.shape and bool(torch.equal(given.detach(), fresh.detach()))
    if isinstance(given, dict):
        return given.keys() == fresh.keys() and all(_unchanged(given[key], fresh[key]) for key in given)
    if isinstance(given, list | tuple):
        return len(given) == len(fresh) and all(map(_unchanged, given, fresh))
    if isinstance(given, ImageSet):
        return _unchanged((given.images, given.labels), (fresh.images, fresh.labels))
    if isinstance(given, pd.DataFrame):
        return bool(given.equals(fresh))
    return not isinstance(given, int | float | str) or given == fresh
