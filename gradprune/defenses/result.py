"""The result of every defence."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from gradprune.pruning import FilterMask


@dataclass
class DefenseResult:
    """A cleaned copy of the model and how it was obtained.

    model: the final model, in eval mode.
    pruned: the state after pruning, before fine-tuning; None for a defence that does not prune.
    mask: the removed filters, silent in both; empty if none was removed.
    history: plain rows (`stage` "prune": round, layer, index, score, losses, accuracy; "tune": epoch, ...).
    seconds: wall time by stage.
    stopped: why pruning (or whatever the defence does) ended.
    settings: all arguments that influenced the result.
    interrupted: whether Ctrl-C ended a stage.
    name: the defence's name in `DEFENSES`.
    suspect: the class whose triggers `repair` searched for and unlearned; None if it suspected none.
    """

    model: nn.Module
    pruned: nn.Module | None
    mask: FilterMask
    history: list[dict[str, Any]]
    seconds: dict[str, float]
    stopped: str
    settings: dict[str, Any]
    interrupted: bool = False
    name: str = "grad_prune"
    suspect: int | None = None

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The history rows of one stage, "prune" or "tune"."""
        return [row for row in self.history if row["stage"] == stage]

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        lines = [f"{self.name}({settings})", f"  {self.mask}"]
        if self.stopped:
            lines.append(f"  {'stopped' if self.pruned is None else 'pruning stopped'}: {self.stopped}")
        points = self._points()
        unlearning = "val_unlearning_loss" in points[-1][1]
        lines.append("  on the validation images:   accuracy  clean loss" + "  unlearning loss" * unlearning)
        for name, now in points:
            line = f"    {name:<24} {now['val_acc']:>9.1%} {now['val_clean_loss']:>11.3f}"
            lines.append(line + (f" {now['val_unlearning_loss']:>16.3f}" if unlearning else ""))
        times = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        return "\n".join([*lines, f"  time: {times}"])

    __repr__ = __str__

    def _points(self) -> list[tuple[str, dict[str, Any]]]:
        """The history rows of the states shown: given, pruned, fine-tuned."""
        prune, tune = self.rows("prune"), self.rows("tune")
        points = [("given model", (prune or tune or self.history)[0])]
        if prune:
            kept = (row for row in prune if row.get("kept"))  # defences that close channels have an empty mask
            points.append(("pruned", next(kept, prune[len(self.mask.positions)])))
        if tune:
            points.append(("fine-tuned", next((row for row in reversed(tune) if row.get("kept")), tune[-1])))
        return points
