"""Map the parameter names of a foreign file to those of a model."""

import logging
import re
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor, nn

from gradprune.base.errors import listed

_log = logging.getLogger(__name__)

# Tensors that operation counters, normalisation layers and quantisation leave beside the weights.
_BESIDE = re.compile(r"(^|\.)(total_ops|total_params|_extra_state|(new_|pixel_)?(mean|std))$")
_FEW = 4  # most numbers in such a tensor


def under_names_of(model: nn.Module, given: Mapping[str, Tensor], path: str | Path) -> Mapping[str, Tensor]:
    """The tensors of the file `path` under the model's names, if the files differ in names only.

    A prefix before all names is replaced; if a single prefix gives all the model's names, tensors with another one are
    left out. So are operation counts (thop) and the image normalisation; a warning lists what was left out. A network
    may list the names that public code uses (`other_names`: pairs of theirs and ours).
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
    """The tensors with the names of public code (`others`: pairs of theirs and ours) replaced, if more of them fit so.

    A prefix may precede the names.
    """
    renamed = {}
    for name, tensor in given.items():
        for theirs, ours in others:
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    return max(given, renamed, key=lambda names: sum(name.endswith(tuple(own)) for name in names))  # ties: as given


def _renamed(given: Mapping[str, Tensor], own: Mapping[str, Tensor], path: str | Path) -> Mapping[str, Tensor]:
    """The tensors under the model's names, if the names differ by one prefix before all of them.

    Or if a single prefix gives all of the model's names; tensors with another prefix are then left out.
    """
    theirs, ours = _shared(given), _shared(own)
    renamed = {ours + name.removeprefix(theirs): tensor for name, tensor in given.items()}
    if renamed.keys() & own.keys():
        return renamed
    wanted = {name.removeprefix(ours) for name in own if not name.endswith("num_batches_tracked")}
    prefixes = dict.fromkeys(name[:at + 1] for name in given for at, letter in enumerate(name) if letter == ".")
    fitting = [prefix for prefix in prefixes if all(prefix + name in given for name in wanted)]
    if not fitting or not wanted or not all(torch.equal(given[fitting[0] + name], given[prefix + name])
                                            for prefix in fitting[1:] for name in wanted):
        return given
    others = [name for name in given if not name.startswith(fitting[0])]
    _log.warning("Of %s what does not start with %s was left out: %s.", path, fitting[0], listed(others))
    return {ours + name.removeprefix(fitting[0]): tensor for name, tensor in given.items() if name not in others}


def _shared(names: Iterable[str]) -> str:
    """The prefix, up to a dot, that all names share."""
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{level[0]}." for level in takewhile(lambda level: len(set(level)) == 1, levels))
