"""The output of `defend`: the cleaned model as a checkpoint, slimmed if asked, and as a file for other programs."""

import importlib.util
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.models.checkpoints import Card, paths, save_checkpoint
from gradprune.models.cost import timed
from gradprune.models.export import check_export, export
from gradprune.models.resizing import sizes
from gradprune.models.weights import WEIGHTS
from gradprune.victims import Victim
from gradprune.victims.slimming import NEEDS_TORCH_PRUNING, slim
from gradprune.victims.victim import checkpoint_path

_IMAGES = 16  # of the defender's images, to trace and to check with


def check(slimmer: bool, exported: Path | None, given: str, path: Path | None) -> None:
    """Before any work: InputError for a missing package, an unknown ending, or an output that is the given model."""
    require(path is None or paths(path)[0].resolve() != paths(checkpoint_path(given))[0].resolve(),
            f"out names the given checkpoint {given}, which stays as it is: name another file.")
    if path:
        check_ending(path)
    require(not slimmer or importlib.util.find_spec("torch_pruning") is not None, NEEDS_TORCH_PRUNING)
    if exported:
        check_export(exported)


def check_ending(path: Path) -> None:
    """Raise InputError for a checkpoint's name that ends as files of torch.save do, and so would not be found again."""
    require(path.suffix not in WEIGHTS,
            f"out is a name without {path.suffix}: two files are written, .safetensors and .json.")


def deliver(victim: Victim, model: nn.Module, card: Card, path: Path | None, slimmer: bool,
            exported: Path | None) -> dict[str, Any]:
    """Write the cleaned model as asked; returns `out` and `export` (paths or None) and `slim` (see `slimmed`)."""
    model.cpu()  # the file must load on any machine
    images = victim.data.defense.floats()[:_IMAGES]
    told = None
    if slimmer:
        model, card, told = slimmed(model, card, images)
    if exported:  # first, so that a failed export leaves nothing behind
        export(model, exported, images)
    weights = save_checkpoint(path, model, card, victim.trigger).as_posix() if path else None
    return {"out": weights, "export": exported and exported.as_posix(), "slim": told}


def slimmed(model: nn.Module, card: Card, images: Tensor) -> tuple[nn.Module, Card, dict[str, Any]]:
    """The model without its silent filters, its card, and what that changed, in plain JSON values.

    images: float (N, C, H, W) in [0, 1].
    The card's model gets `sizes`, from which `models.build` makes the smaller network. The values are the filters `cut`
    and `left` as [layer, index] of the given model; `parameters`, `macs` and the `seconds` for `images`, before and
    after; and all of that in a `sentence`.
    """
    result = slim(model, images)
    old, new = sizes(model), sizes(result.model)
    changed = {name: size for name, size in new.items() if size != old[name]}
    made = {**card["model"], "sizes": {**card["model"].get("sizes", {}), **changed}}
    told = {"cut": [list(filter_) for filter_ in result.cut], "left": [list(filter_) for filter_ in result.left],
            "parameters": list(result.parameters), "macs": list(result.macs)}
    before, after = timed(model, result.model, images)
    sentence = f"{result}, {1000 * before:.1f} to {1000 * after:.1f} ms for {len(images)} images."
    return (result.model, {**card, "model": made, "slim": told},
            {**told, "seconds": [round(before, 6), round(after, 6)], "sentence": sentence})
