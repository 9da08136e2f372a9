"""Parameters under the names that somebody else gave them, brought to those of a model here."""

import logging
import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor, nn

from gradprune.base.errors import listed

_log = logging.getLogger(__name__)

# What counters of operations, layers that normalise images, and quantisation leave beside the weights.
_BESIDE = re.compile(r"(^|\.)(total_ops|total_params|_extra_state|(new_|pixel_)?(mean|std))$")
_FEW = 4  # numbers that mean and std have at most


def under_names_of(model: nn.Module, given: Mapping[str, Tensor], path: str | Path) -> Mapping[str, Tensor]:
    """The tensors of the file `path` under the model's names, as far as a change of names is the whole difference.

    A prefix before all names is changed; where one prefix alone gives all the model's names, what has another is left
    out. So are counts of operations (thop), and how images were normalised. A warning tells what was left out. Names
    that public code gives the same network are known to it (`other_names`: pairs of theirs and ours).
    """
    own = model.state_dict()
    given = {name: tensor for name, tensor in given.items() if name in own or not name.startswith("trigger.")}
    given = _by_other_names(given, own, getattr(model, "other_names", ()))
    if not own.keys() & given.keys():
        given = _renamed(given, own, path)
    beside = [name for name, tensor in given.items()
              if name not in own and tensor.numel() <= _FEW and _BESIDE.search(name)]
    if beside and own.keys() & given.keys():
        numbers = (", ".join(f"{number:.4g}" for number in given[name].flatten().tolist()) for name in beside)
        told = (f"{name} ({held})" for name, held in zip(beside, numbers, strict=True))
        _log.warning("Of %s was left out: %s.", path, listed(told))
        given = {name: tensor for name, tensor in given.items() if name not in beside}
    return given


def _by_other_names(given: Mapping[str, Tensor], own: Mapping[str, Tensor], others: tuple[tuple[str, str], ...]
                    ) -> Mapping[str, Tensor]:
    """The tensors under the model's names, where public code of the same network has others (`others`: theirs, ours)
    and more of them fit so; a prefix may stand before them."""  # noqa: D209
    renamed = {}
    for name, tensor in given.items():
        for theirs, ours in others:
            name = name.replace(theirs, ours)
        renamed[name] = tensor

    def fitting(names: Mapping[str, Tensor]) -> int:
        return sum(name.endswith(tuple(own)) for name in names)

    return renamed if fitting(renamed) > fitting(given) else given


def _renamed(given: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> Mapping[str, Tensor]:
    """The tensors under the model's names, where one prefix before all of them is the whole difference; or where one
    prefix alone gives all of the model's names, and then without what has another."""  # noqa: D209
    theirs, ours = _shared(given), _shared(own)
    renamed = {ours + name.removeprefix(theirs): tensor for name, tensor in given.items()}
    if renamed.keys() & own.keys():
        return renamed
    wanted = {name.removeprefix(ours) for name in own if not name.endswith("num_batches_tracked")}
    prefixes = dict.fromkeys(name[:at + 1] for name in given for at, letter in enumerate(name) if letter == ".")
    fitting = [prefix for prefix in prefixes if all(prefix + name in given for name in wanted)]
    if not fitting or not wanted or not _alike(given, wanted, fitting):
        return given
    others = [name for name in given if not name.startswith(fitting[0])]
    _log.warning("Of %s what does not start with %s was left out: %s.", path, fitting[0], listed(others))
    return {ours + name.removeprefix(fitting[0]): tensor for name, tensor in given.items() if name not in others}


def _alike(given: Mapping[str, Tensor], wanted: Iterable[str], prefixes: list[str]) -> bool:
    """Whether the tensors are the same under all of these prefixes."""
    return all(torch.equal(given[prefixes[0] + name], given[prefix + name])
               for prefix in prefixes[1:] for name in wanted)


def _shared(names: Iterable[str]) -> str:
    """The prefix, up to a dot, that all names have."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{level[0]}." for level in takewhile(lambda level: len(set(level)) == 1, levels))
