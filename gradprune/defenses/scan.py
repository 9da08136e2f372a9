"""Scan a model for a backdoor with the trigger unknown: eight searches, the filters, and a class that stands out.

Sources: Wang et al., 2019, "Neural Cleanse" (masks, and the outlier rule); Moosavi-Dezfooli et al., 2017,
arXiv:1610.08401 (patterns over the whole image); see `voices` for the other searches and how they are combined, and
`driven` for what the filters tell.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradprune.base.errors import require
from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, positive
from gradprune.defenses.driven import driven, multiple
from gradprune.defenses.voices import LED, led, margins, standings
from gradprune.models.inference import predict
from gradprune.search import Inversion, invert, outliers, perturb

FASTER: dict[str, Any] = {"steps": 60, "batch_size": 16, "factor": 1.5}  # override the settings of both searches
SMALL = 0.5  # a norm below this share of the median is small: see docs/decisions/unknown_trigger.md
OUTLIER = 2.0  # anomaly index of one search above which its class is an outlier (the paper's)
ALARM = 2.0  # mean standing of a class above which it is suspected, chosen on tuning models: see the same page
LOUD = 1.5  # driven filters alone accuse a class that they reach this many times as far as the next one: same page
KINDS: dict[str, Callable[..., Inversion]] = {"mask": invert, "whole image": perturb}


class Row(NamedTuple):
    """The result of one search, for one class and kind of trigger.

    norm: of the trigger found.
    success: the share (0..1) of the defender's images of other classes that it moves to the class.
    anomaly: the index of `outliers`, 0 above the median; None if the search, or all but two, did not converge.
    share: the norm over the median; None in the same cases.
    alarm: whether this search alone accuses the class: an index above 2 (the paper's) and a norm below half the median.
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
    """The result of a scan.

    rows: all classes of the first kind, then of the second.
    suspect: the class with the highest score, if that is above the threshold, or one search or the driven filters alone
        raise the alarm, and a trigger was found; or None.
    kind: the search with the suspect's smaller norm, as a share of the median.
    trigger: what that search synthesised, float (N, C, H, W) in [0, 1] -> the same.
    verdict: the outcome in words.
    images: the defender's images that were used.
    voices: for each search, how far each class is above the median of the classes (see `standings`).
    scores: their mean.
    reached: how far driven filters lead to each class (see `driven`).
    """

    rows: list[Row]
    classes: tuple[str, ...]
    threshold: float
    suspect: int | None
    kind: str | None
    trigger: nn.Module | None
    verdict: str
    images: ImageSet
    voices: dict[str, list[float]]
    scores: list[float]
    reached: list[float]

    @property
    def suspect_row(self) -> Row | None:
        """The row of the trigger that was synthesised for the suspect."""
        return next((row for row in self.rows if (row.kind, row.label) == (self.kind, self.suspect)), None)


def scan(model: nn.Module, clean: ImageSet, *, spc: int = 10, seed: int = 0, threshold: float = ALARM,
         progress: bool = True, **search: Any) -> Scan:
    """Measure how easily each class is reached, by eight searches and by filters, and suspect the one that stands out.

    model: not changed.
    clean: the defender's images, of which `spc` per class are drawn.
    threshold: the mean standing above which the highest class is suspected; below it, one search or the driven filters
        alone may accuse the class (see `Row.alarm` and `LOUD`).
    search: values of `search.inversion.SEARCH` for both kinds of trigger, instead of those of `FASTER`.
    A search that does not converge finds no trigger, and its class counts as the hardest to reach.
    Raises InputError for bad arguments, too few images, or fewer than three classes.
    """
    positive(threshold=threshold)
    work = Work(model, clean, None, spc, seed, searches=True)
    require(work.classes >= 3, f"an outlier needs at least 3 classes, the model has {work.classes}.")
    images, _, labels = work.train.joined(work.validation)
    rows, triggers, voices = list[Row](), dict[tuple[str, int], nn.Module](), dict[str, list[float]]()
    for kind, method in KINDS.items():
        found = [method(work.model, work.train.clean, label, seed=seed, progress=progress, **FASTER | search)
                 for label in range(work.classes)]
        judged = _judge(found)
        for label, (one, (index, share)) in enumerate(zip(found, judged, strict=True)):
            alarm = index is not None and share is not None and index > OUTLIER and share < SMALL
            success = moved(work.model, one.trigger, images[labels != label], label)
            rows.append(Row(kind, label, one.norm, success, index, share, one.converged, alarm))
            triggers[kind, label] = one.trigger
        voices[kind] = standings([-math.log(max(one.norm, 1e-6)) if one.converged else None for one in found])
    for family in LED:
        voices[family] = standings(led(work.model, images, work.classes, family, seed))
    voices["margin"] = standings(margins(work.model, images.shape[1:], work.classes, seed))
    scores = torch.tensor(list(voices.values()), dtype=torch.double).mean(0).tolist()
    nearest = max(range(work.classes), key=lambda label: scores[label])
    reached = driven(work.model, work.found, images)
    loud = multiple(reached, nearest)
    accused = scores[nearest] > threshold or loud > LOUD or any(row.alarm for row in rows if row.label == nearest)
    worst = min((row for row in rows if accused and row.label == nearest and row.share is not None),
                key=lambda row: row.share or 0, default=None)
    drawn = ImageSet((images * 255).round().to(torch.uint8).cpu(), labels.cpu(), work.names)
    return Scan(rows, work.names, threshold, worst and worst.label, worst and worst.kind,
                triggers[worst.kind, worst.label] if worst else None,
                _verdict(rows, worst, work.names, threshold, nearest, scores[nearest], loud), drawn, voices, scores,
                reached)


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
    """The share (0..1) of images (of other classes) that the trigger sends to the class; 0 if there are none."""
    with torch.no_grad():
        return float((predict(model, trigger(images)).argmax(1) == label).float().mean()) if len(images) else 0.0


def _verdict(rows: list[Row], suspected: Row | None, names: tuple[str, ...], threshold: float, nearest: int,
             score: float, loud: float) -> str:
    """The outcome in words: who is suspected and why, and what did not converge."""
    lost = [row for row in rows if not row.converged]
    told = f" {len(lost)} of {len(rows)} searches did not converge; they give no trigger." if lost else ""
    if all(row.anomaly is None for row in rows):
        return f"No verdict: too few searches for a trigger converged, so there is no trigger.{told}"
    if suspected is None:
        return (f"No class is suspected: none is so much easier to reach than the others. The easiest is "
                f"{names[nearest]!r}, with a score of {score:.1f} (alarm above {threshold:g}).{told}")
    thing = "a mark" if suspected.kind == "mask" else "a pattern over the whole image"
    alone = ", or where one search or the filters stand out" * (score <= threshold)
    filters = f" Driven filters lead there {loud:.1f} times as far as to any other class." * (loud > LOUD)
    return (f"Suspected: {names[nearest]!r}. Of all classes it is the easiest to reach, with a score of {score:.1f} "
            f"(alarm above {threshold:g}{alone}). The smallest trigger found is {thing} of {suspected.share:.0%} of "
            f"the median norm, which moves {suspected.success:.1%} of the defender's other images there."
            f"{filters}{told}")
