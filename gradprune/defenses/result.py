"""What every defence returns."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gradprune.pruning import FilterMask


@dataclass
class DefenseResult:
    """A cleaned copy of the model and how it came about.

    model: the final model. pruned: the state after pruning, before fine-tuning. mask: the removed filters, silent in
    both. history: plain rows (`stage` "prune": round, layer, index, score, losses, accuracy; "tune": epoch, ...).
    seconds: wall time by stage. stopped: why pruning ended. settings: all arguments that shaped the result.
    """

    model: nn.Module
    pruned: nn.Module
    mask: FilterMask
    history: list[dict[str, Any]]
    seconds: dict[str, float]
    stopped: str
    settings: dict[str, Any]
    interrupted: bool = field(default=False)

    def rows(self, stage: str) -> list[dict[str, Any]]:
        """The history rows of one stage, "prune" or "tune"."""
        return [row for row in self.history if row["stage"] == stage]

    def __str__(self) -> str:
        settings = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        lines = [f"grad_prune({settings})", f"  {self.mask}", f"  pruning stopped: {self.stopped}"]
        prune, tune = self.rows("prune"), self.rows("tune")
        kept = prune[len(self.mask.positions)]
        points = [("given model", prune[0]), ("pruned", kept)]
        if tune:
            points.append(("fine-tuned", min(tune, key=lambda row: row["val_loss"])))
        lines.append("  on the validation images:   accuracy  clean loss  unlearning loss")
        lines += [f"    {name:<24} {row['val_acc']:>9.1%} {row['val_clean_loss']:>11.3f} "
                  f"{row['val_unlearning_loss']:>16.3f}" for name, row in points]
        times = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in self.seconds.items())
        return "\n".join([*lines, f"  time: {times}"])

    __repr__ = __str__
