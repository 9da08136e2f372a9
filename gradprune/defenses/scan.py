"""Scan a model for a backdoor whose trigger nobody knows: one search per class and kind, then the outlier.

Sources: Wang et al., 2019, "Neural Cleanse" (masks, and the outlier rule); Moosavi-Dezfooli et al., 2017,
arXiv:1610.08401 (patterns over the whole image). A class that is reached with far less than the others is suspected.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, positive
from gradprune.defenses.grad_prune import grad_prune
from gradprune.defenses.result import DefenseResult
from gradprune.errors import require
from gradprune.models.inference import predict
from gradprune.pruning import Inversion, invert, outliers, perturb

FASTER: dict[str, Any] = {"steps": 60, "batch_size": 16}  # over the settings of both searches
THRESHOLD = 3.0  # not the paper's 2: see "The alarm of a scan" in CONTRIBUTING.md
KINDS: dict[str, Callable[..., Inversion]] = {"mask": invert, "whole image": perturb}


class Row(NamedTuple):
    """One class and kind: norm of the trigger found, share of the defender's other images it moves, anomaly index.

    index: above 0 only where the norm lies below the median; None where the search did not converge or too few did.
    """

    kind: str
    label: int
    norm: float
    success: float
    index: float | None
    converged: bool


class Scan(NamedTuple):
    """What a scan found.

    rows: all classes of the first kind, then of the second. suspect: the class whose norm is the farthest outlier, or
    None; kind: that search; trigger: what it synthesised, float (N, C, H, W) in [0, 1] -> the same. success: the share
    of the defender's images of other classes that this trigger moves to the suspect. verdict: all that in words.
    """

    rows: list[Row]
    classes: tuple[str, ...]
    threshold: float
    suspect: int | None
    kind: str | None
    trigger: nn.Module | None
    verdict: str
    images: ImageSet

    @property
    def suspect_row(self) -> Row | None:
        """The row that raised the alarm."""
        return next((row for row in self.rows if (row.kind, row.label) == (self.kind, self.suspect)), None)


def scan(model: nn.Module, clean: ImageSet, *, spc: int = 10, seed: int = 0, threshold: float = THRESHOLD,
         progress: bool = True, **search: Any) -> Scan:
    """Search a trigger of each kind for every class and suspect the class that needs the smallest; nothing is changed.

    clean: the defender's images, of which `spc` per class are drawn. threshold: the anomaly index from which a class
    is suspected. search: values of `pruning.inversion.SEARCH`, for both kinds, over those of `FASTER`.
    A search that does not converge gives no trigger, and its class is left out of the outlier test.
    Raises InputError for bad arguments, too few images, or fewer than three classes.
    """
    positive(threshold=threshold)
    work = Work(model, clean, None, spc, seed)
    require(work.classes >= 3, f"an outlier needs at least 3 classes, the model has {work.classes}.")
    names = tuple(clean.classes) + tuple(f"class {label}" for label in range(len(clean.classes), work.classes))
    images = torch.cat([work.train.clean, work.validation.clean])
    labels = torch.cat([work.train.labels, work.validation.labels])
    rows, triggers = [], {}
    for kind, method in KINDS.items():
        found = [method(work.model, work.train.clean, label, seed=seed, progress=progress, **FASTER | search)
                 for label in range(work.classes)]
        triggers |= {(kind, label): one.trigger for label, one in enumerate(found)}
        index = _index(found)
        rows += [Row(kind, label, one.norm, _moved(work.model, one.trigger, images[labels != label], label),
                     index[label], one.converged) for label, one in enumerate(found)]
    alarm = max((row for row in rows if (row.index or 0) > threshold), key=lambda row: row.index or 0, default=None)
    suspect, kind_found = (alarm.label, alarm.kind) if alarm else (None, None)
    drawn = ImageSet((images * 255).round().to(torch.uint8).cpu(), labels.cpu(), names)
    return Scan(rows, names, threshold, suspect, kind_found, triggers[alarm.kind, alarm.label] if alarm else None,
                _verdict(rows, alarm, names, threshold), drawn)


def _index(found: list[Inversion]) -> list[float | None]:
    """The anomaly index among the searches that converged, 0 for a norm above the median; see `outliers`."""
    kept = [label for label, one in enumerate(found) if one.converged]
    if len(kept) < 3:
        return [None] * len(found)
    norms = [found[label].norm for label in kept]
    values, _ = outliers(norms)
    middle = float(torch.tensor(norms, dtype=torch.double).quantile(0.5))
    signed = {label: value if norm < middle else 0.0 for label, value, norm in zip(kept, values, norms, strict=True)}
    return [signed.get(label) for label in range(len(found))]


def _moved(model: nn.Module, trigger: nn.Module, images: Tensor, label: int) -> float:
    """The share of the images (of other classes) that the trigger sends to the class."""
    with torch.no_grad():
        return float((predict(model, trigger(images)).argmax(1) == label).float().mean())


def _verdict(rows: list[Row], alarm: Row | None, names: tuple[str, ...], threshold: float) -> str:
    """The outcome in words: who is suspected and why, and what did not converge."""
    lost = [row for row in rows if not row.converged]
    told = f" {len(lost)} of {len(rows)} searches did not converge; they give no trigger." if lost else ""
    if len(lost) == len(rows):
        return "No verdict: no search for a trigger converged, so there is no trigger."
    if alarm is None:
        highest = max(row.index or 0 for row in rows)
        return (f"No class is suspected: none needs so much less than the others (highest anomaly index {highest:.1f}, "
                f"alarm above {threshold:g}).{told}")
    thing = "a mark" if alarm.kind == "mask" else "a pattern over the whole image"
    return (f"Suspected: {names[alarm.label]!r}. It is reached with {thing} far smaller than the other classes need "
            f"(anomaly index {alarm.index:.1f}, alarm above {threshold:g}); the synthesised trigger moves "
            f"{alarm.success:.1%} of the defender's other images there.{told}")


def prune_scanned(model: nn.Module, clean: ImageSet, found: Scan, *, spc: int = 10, seed: int = 0, **settings: Any
                  ) -> DefenseResult:
    """Run `grad_prune` with the trigger that a scan synthesised; without a suspect the model comes back as it was.

    settings: those of `grad_prune`, which says what is raised. Unchanged, `stopped` holds the scan's verdict.
    """
    if found.trigger is not None:
        return grad_prune(model, clean, found.trigger, spc=spc, seed=seed, **settings)
    work = Work(model, clean, None, spc, seed)
    work.measure("given")
    return work.result("grad_prune", {"spc": spc, "seed": seed}, pruned=work.model, stopped=found.verdict)
