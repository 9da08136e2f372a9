"""Scan a model for a backdoor whose trigger nobody knows: one search per class and kind, then the outlier.

Sources: Wang et al., 2019, "Neural Cleanse" (masks, and the outlier rule); Moosavi-Dezfooli et al., 2017,
arXiv:1610.08401 (patterns over the whole image). A class that is reached with far less than the others is suspected.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, positive
from gradprune.models.inference import predict
from gradprune.pruning import Inversion, invert, outliers, perturb

FASTER: dict[str, Any] = {"steps": 60, "batch_size": 16, "factor": 1.5}  # over the settings of both searches
SMALL = 0.5  # an alarm needs a norm below this share of the median: see docs/decisions/unknown_trigger.md
KINDS: dict[str, Callable[..., Inversion]] = {"mask": invert, "whole image": perturb}


class Row(NamedTuple):
    """One class and kind: norm of the trigger found, and the share of the defender's other images that it moves.

    anomaly: the index of `outliers`, 0 above the median; share: the norm over the median. Both None where the search
    did not converge, or fewer than three did. alarm: whether both say so.
    """

    kind: str
    label: int
    norm: float
    success: float
    anomaly: float | None
    share: float | None
    converged: bool
    alarm: bool


class Scan(NamedTuple):
    """What a scan found.

    rows: all classes of the first kind, then of the second. suspect: of the classes that raise an alarm the one with
    the smallest norm, as a share of the median, or None; kind: of which search; trigger: what that synthesised, float
    (N, C, H, W) in [0, 1] -> the same. verdict: all that in words. images: the defender's, as they were used.
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


def scan(model: nn.Module, clean: ImageSet, *, spc: int = 10, seed: int = 0, threshold: float = 2.0,
         progress: bool = True, **search: Any) -> Scan:
    """Search a trigger of each kind for every class and suspect the class that needs the smallest; nothing is changed.

    clean: the defender's images, of which `spc` per class are drawn. threshold: the anomaly index (the paper: 2) above
    which a class is suspected, if its norm is also below half the median. search: values of `pruning.inversion.SEARCH`,
    for both kinds, over those of `FASTER`.
    A search that does not converge gives no trigger, and its class is left out of the outlier test.
    Raises InputError for bad arguments, too few images, or fewer than three classes.
    """
    positive(threshold=threshold)
    work = Work(model, clean, None, spc, seed)
    require(work.classes >= 3, f"an outlier needs at least 3 classes, the model has {work.classes}.")
    names = tuple(clean.classes) + tuple(f"class {label}" for label in range(len(clean.classes), work.classes))
    images = torch.cat([work.train.clean, work.validation.clean])
    labels = torch.cat([work.train.labels, work.validation.labels])
    rows: list[Row] = []
    triggers: dict[tuple[str, int], nn.Module] = {}
    for kind, method in KINDS.items():
        found = [method(work.model, work.train.clean, label, seed=seed, progress=progress, **FASTER | search)
                 for label in range(work.classes)]
        judged = _judge(found)
        for label, (one, (index, share)) in enumerate(zip(found, judged, strict=True)):
            alarm = index is not None and share is not None and index > threshold and share < SMALL
            success = moved(work.model, one.trigger, images[labels != label], label)
            rows.append(Row(kind, label, one.norm, success, index, share, one.converged, alarm))
            triggers[kind, label] = one.trigger
    worst = min((row for row in rows if row.alarm), key=lambda row: row.share or 0, default=None)
    suspect, kind_found = (worst.label, worst.kind) if worst else (None, None)
    drawn = ImageSet((images * 255).round().to(torch.uint8).cpu(), labels.cpu(), names)
    return Scan(rows, names, threshold, suspect, kind_found, triggers[worst.kind, worst.label] if worst else None,
                _verdict(rows, worst, names, threshold), drawn)


def _judge(found: list[Inversion]) -> list[tuple[float | None, float | None]]:
    """Anomaly index (0 above the median, see `outliers`) and share of the median, among the searches that converged."""
    kept = [label for label, one in enumerate(found) if one.converged]
    judged: list[tuple[float | None, float | None]] = [(None, None)] * len(found)
    if len(kept) >= 3:
        norms = [found[label].norm for label in kept]
        middle = float(torch.tensor(norms, dtype=torch.double).quantile(0.5))
        for label, norm, index in zip(kept, norms, outliers(norms)[0], strict=True):
            judged[label] = (index if norm < middle else 0.0, norm / middle if middle > 0 else 1.0)
    return judged


def moved(model: nn.Module, trigger: Callable[[Tensor], Tensor], images: Tensor, label: int) -> float:
    """The share of the images (of other classes) that the trigger sends to the class; 0 of none."""
    with torch.no_grad():
        return float((predict(model, trigger(images)).argmax(1) == label).float().mean()) if len(images) else 0.0


def _verdict(rows: list[Row], alarm: Row | None, names: tuple[str, ...], threshold: float) -> str:
    """The outcome in words: who is suspected and why, and what did not converge."""
    lost = [row for row in rows if not row.converged]
    told = f" {len(lost)} of {len(rows)} searches did not converge; they give no trigger." if lost else ""
    if all(row.anomaly is None for row in rows):
        return f"No verdict: too few searches for a trigger converged, so there is no trigger.{told}"
    rule = f"alarm: below {SMALL:.0%}, and an anomaly index above {threshold:g}"
    if alarm is None:
        least = min((row for row in rows if row.share is not None), key=lambda row: row.share or 0)
        return (f"No class is suspected: none needs so much less than the others. The nearest is "
                f"{names[least.label]!r}, at {least.share:.0%} of the median ({rule}; here {least.anomaly:.1f}).{told}")
    thing = "a mark" if alarm.kind == "mask" else "a pattern over the whole image"
    return (f"Suspected: {names[alarm.label]!r}. It is reached with {thing} of {alarm.share:.0%} of the median norm "
            f"and anomaly index {alarm.anomaly:.1f} ({rule}); the synthesised trigger moves {alarm.success:.1%} of the "
            f"defender's other images there.{told}")
