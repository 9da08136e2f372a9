"""Repair: clean a model with the trigger unknown, by one of two methods.

If a network can learn to ignore small changes of the image and keep its clean answers, that removes the backdoor, too:
`consistent_tune` does so without suspecting a class. A network that random changes hardly affect always can. For any
other, `scan` looks for the one class that is too easy to reach. Triggers and changes that lead there are searched for
and unlearned together, until that class is as hard to reach as the others. If no class is suspected, consistency is
tried on half of the images, and used if the clean answers to the other half survive. Source of the scan's searches:
Wang et al., 2019, "Neural Cleanse"; the rest is ours.
"""

from typing import Any

import torch
from torch import Tensor, nn

from gradprune.datasets import ImageSet
from gradprune.defenses.common import Work, override_positive
from gradprune.defenses.consistency import CONSISTENCY, consistent_tune
from gradprune.defenses.result import DefenseResult
from gradprune.defenses.scan import FASTER, KINDS, Scan, scan
from gradprune.models.inference import evaluating, predict
from gradprune.pruning import Augment, Distilled, Pairs
from gradprune.pruning.distilled import VIEWS, epochs_for, tune_on_views
from gradprune.search import FAMILIES, SEARCHABLE, Alternating, Change, Part, draw, inflow, search_changes

Way = nn.Module | Change  # a trigger or another change of images: (N, C, H, W) -> the same
IGNORED = "so the model learned to ignore them (consistency)"  # which of the two ways, in `stopped`; the report asks
UNLEARNED = "Rounds of unlearning"
LOCAL = ("patches", "sparse", "bounded")  # families that leave an image recognisable wherever they are
DEFAULTS: dict[str, Any] = CONSISTENCY | {
    "sturdy": 0.1,        # below this share of altered answers consistency is used at once: see `unsteadiness`
    "changes": 36,        # how many are drawn for that decision
    "trial_steps": 75,    # above it, where no class is suspected, it is tried for so many steps on half of the images
    "kept": 0.78,         # and must keep this share of the answers on the other half
    "scan_steps": 150,    # of each search of the scan: with 60 a real target was close to the threshold
    "rounds": 3,          # of searching for triggers of the suspected class and unlearning them, at most
    "searches": 3,        # starts per round of either kind of trigger
    "round_steps": 80,    # of each of these: with more, the mask shrinks to what only these images need
    "tries": 6,           # searched changes of each family per round
    "tries_on": 96,       # images for these, evenly chosen: half for the search, half to judge it
    "far": 0.5,           # share of the latter that such a change must lead to the class
    "suspect_lr": 2e-3,   # of SGD with momentum, half a cosine per round
    "suspect_steps": 224,  # optimiser steps per round
    "strength": 2.5,      # what is unlearned is up to so many times as strong as what was found
}


def unsteadiness(model: nn.Module, images: Tensor, count: int = DEFAULTS["changes"], seed: int = 0) -> float:
    """The share (0..1) of the model's answers that random changes of the families in `LOCAL` alter.

    images: float (N, C, H, W) in [0, 1], clean.
    count: how many changes are drawn, each applied to all images.
    """
    generator = torch.Generator().manual_seed(seed)
    usual = predict(model, images).argmax(1)
    drawn = (draw(images.shape[1:], generator, LOCAL) for _ in range(count))
    return float(torch.stack([predict(model, change(images)).argmax(1) != usual for change in drawn]).float().mean())


def repair(model: nn.Module, clean: ImageSet, trigger: nn.Module | None = None, *, spc: int = 10, seed: int = 0,
           progress: bool = True, families: tuple[str, ...] = tuple(FAMILIES), **changes: Any) -> DefenseResult:
    """Clean a copy of `model` with the trigger unknown; `trigger` is not used.

    clean: the defender's images, of which `spc` per class are drawn; the model learns from all of them.
    families: names in `FAMILIES`, the changes used by `consistent_tune`.
    changes: any value of `DEFAULTS`.
    `stopped` of the result says which method was used, and why. If the scan suspects no class and the trial of
    consistency fails, the model stays as it is. Ctrl-C keeps what has been reached. Raises InputError for bad
    arguments or too few images.
    """
    paper = override_positive("repair", DEFAULTS, changes)
    work = Work(model, clean, None, spc, seed, hold_out=False, searches=True)
    altered = unsteadiness(work.model, work.train.clean, paper["changes"], seed)
    told, share, scanned = f"small random changes alter {altered:.0%} of the answers, ", 1.0, None
    with work.stage("tune"):
        if altered >= paper["sturdy"]:
            scanned = scan(model, clean, spc=spc, seed=seed, progress=progress, steps=paper["scan_steps"])
            told += f"so a scan looked for a target. {scanned.verdict}"
            if scanned.suspect is None:
                share = kept_on_trial(model, clean, spc, families, paper, seed, progress)
                told += f" Learning to ignore such changes kept {share:.0%} of the clean answers in a trial, "
        if scanned is not None and scanned.suspect is not None:
            told += unlearn_suspect(work, scanned, paper, seed, progress)
        elif share >= paper["kept"]:
            told += IGNORED
            work.history = tune_consistently(work, families, paper, paper["steps"], seed, progress)
        else:
            told += "so the model was left as it is"
    return work.result("repair", {"spc": spc, "families": families, **paper, "seed": seed}, stopped=told)


def tune_consistently(work: Work, families: tuple[str, ...], paper: dict[str, Any], steps: int, seed: int,
                      progress: bool) -> list[dict[str, Any]]:
    """Run `consistent_tune` on the copy; returns the history rows."""
    settings = {name: paper[name] for name in CONSISTENCY} | {"steps": steps}
    return consistent_tune(work.given, work.model, work.mask, work.train, work.validation, work.augment, families,
                           seed=seed, progress=progress, **settings)


def kept_on_trial(model: nn.Module, clean: ImageSet, spc: int, families: tuple[str, ...], paper: dict[str, Any],
                  seed: int, progress: bool) -> float:
    """The share (0..1) of its answers that the model keeps in a short `consistent_tune`.

    It learns from one half of the images; the answers are those to views of the other half. Ctrl-C ends the repair.
    """
    trial = Work(model, clean, None, spc, seed, hold_out=False, searches=True)
    mixed = torch.randperm(len(trial.train.labels), generator=torch.Generator().manual_seed(seed))
    trial.train, trial.validation = (
        Pairs(trial.train.clean[half], trial.train.clean[:0], trial.train.labels[half])
        for half in mixed.to(trial.train.labels.device).tensor_split(2))
    history = tune_consistently(trial, families, paper, paper["trial_steps"], seed, progress)
    if "interrupted" in history[-1]:
        raise KeyboardInterrupt
    views = trial.augment(trial.validation, torch.Generator().manual_seed(seed), VIEWS).clean
    before, now = (predict(one, views).argmax(1) for one in (model, trial.model))
    return float((before == now).float().mean())


def unlearn_suspect(work: Work, scanned: Scan, paper: dict[str, Any], seed: int, progress: bool) -> str:
    """Search for ways to the suspected class and unlearn all easy ones, round by round; returns how it ended.

    The copy learns to answer an image with one of them as the original model answers the clean image (see `Distilled`);
    the last step of a round is kept. Ctrl-C ends the rounds and keeps what has been reached.
    """
    assert scanned.suspect is not None
    others, ways = work.train.clean[work.train.labels != scanned.suspect], list[nn.Module]()
    generator = torch.Generator().manual_seed(seed)
    epochs = epochs_for(len(work.train.labels), paper["suspect_steps"], paper["batch_size"])
    for turn in range(paper["rounds"]):
        easy = small_triggers(work.model, others, scanned, paper, seed + turn * paper["searches"], progress)
        easy += far_leading(work.model, others, scanned.suspect, paper, seed + turn)
        if not easy:
            return f" {UNLEARNED}: {turn}; then it was no easier to reach than the other classes."
        ways += [Strengthened(way, paper["strength"], generator) for way in easy]
        augment = Augment(work.given, Alternating(ways), work.train)
        work.history += tune_on_views(work.model, work.mask, augment.paired(work.train.clean, work.train.labels),
                                      work.validation, augment, Distilled(work.given), lr=paper["suspect_lr"],
                                      epochs=epochs, batch_size=paper["batch_size"], seed=seed + turn,
                                      progress=progress)
        if "interrupted" in work.history[-1]:
            raise KeyboardInterrupt
    return f" {UNLEARNED}: {paper['rounds']}, the most allowed; the last one was not checked."


def small_triggers(model: nn.Module, others: Tensor, scanned: Scan, paper: dict[str, Any], seed: int, progress: bool
                   ) -> list[Way]:
    """Triggers of both kinds that lead to the suspect with a smaller norm than any other class needed in the scan.

    others: the clean images of the other classes.
    """
    small = list[Way]()
    for kind, search in KINDS.items():
        least = min((row.norm for row in scanned.rows
                     if row.kind == kind and row.converged and row.label != scanned.suspect), default=0.0)
        for start in range(paper["searches"]):
            one = search(model, others, scanned.suspect, seed=seed + start, progress=progress,
                         **FASTER | {"steps": paper["round_steps"]})
            if one.converged and one.norm < least:
                small.append(one.trigger)
    return small


def far_leading(model: nn.Module, others: Tensor, suspect: int, paper: dict[str, Any], seed: int) -> list[Way]:
    """Searched changes that lead more than `far` of the images to the suspect.

    They are searched for on one half of a few of `others` and judged on the other half. A family counts if at least
    half of its changes lead so far: one or two of six can lead to any class of a network of photographs.
    """
    generator, others = torch.Generator().manual_seed(seed), others[::-(-len(others) // paper["tries_on"])]
    half, rest = (Part(images, predict(model, images).log_softmax(1), suspect)
                  for images in (others[::2], others[1::2]))
    far = list[Way]()
    for family in SEARCHABLE:
        drawn = [draw(others.shape[1:], generator, [family]) for _ in range(paper["tries"])]
        with evaluating(model):
            found = search_changes(model, [half] * len(drawn), drawn)
            led = inflow(model, [rest] * len(found), found)[:, suspect].tolist()
        leading = [change for change, share in zip(found, led, strict=True) if share > paper["far"]]
        if 2 * len(leading) >= len(found):
            far += leading
    return far


class Strengthened(nn.Module):
    """A trigger or change with its effect on each image multiplied by a random factor. (N, C, H, W) -> the same.

    A search ends at the weakest trigger that still works, and the attacker's is stronger.
    most: the factor is uniform in 1..most.
    """

    def __init__(self, way: Way, most: float, generator: torch.Generator) -> None:
        super().__init__()
        self.way, self.most, self.generator = way, most, generator

    def forward(self, images: Tensor) -> Tensor:
        """Apply the way, strengthened."""
        factor = 1 + (self.most - 1) * torch.rand(len(images), 1, 1, 1, generator=self.generator).to(images)
        return (images + factor * (self.way(images) - images)).clamp(0, 1)
