"""What a bench runs: every attack with every defence, number of images and seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

from gradprune.base.errors import plain, require
from gradprune.datasets import draw_defense_images
from gradprune.defenses import DEFENSES, defense
from gradprune.victims.victim import load_victim, names


class Cell(NamedTuple):
    """One run of a defence: attack (zoo name or path), defence, clean images per class, seed of their draw."""

    attack: str
    defense: str
    spc: int
    seed: int


@dataclass(frozen=True)
class Grid:
    """The cells of a bench.

    attacks: zoo names or checkpoint paths, or "all" for every attacked model of the signs.
    defenses: names in `DEFENSES`, or "all".
    spc: clean images per class.
    seeds: how many (3 stands for 0, 1, 2), or which.
    code: the "module:function" that builds the models whose cards name it, see `models.build`.
    Raises InputError for unknown defences, values that are too small, or an empty grid.
    """

    attacks: Sequence[str] | str = "all"
    defenses: Sequence[str] | str = "all"
    spc: Sequence[int] = (2, 10)
    seeds: Sequence[int] | int = 3
    code: str | None = None

    def __post_init__(self) -> None:
        seeds: Any = self.seeds
        if isinstance(seeds, Integral):
            require(int(seeds) >= 1, f"seeds must be at least 1, got {seeds}.")
            object.__setattr__(self, "seeds", range(int(seeds)))
        every = {"attacks": [name for name in names() if name != "clean"], "defenses": list(DEFENSES)}
        for name in ("attacks", "defenses", "spc", "seeds"):
            given: Any = getattr(self, name)
            parts = [given] if isinstance(given, str | Path | Real) else given
            parts = every.get(name, parts) if isinstance(given, str) and given == "all" else parts
            require(len(parts) > 0, f"the grid is empty: {name} names nothing.")
            require(name in every or all(isinstance(part, Integral) for part in parts),
                    f"{name} must be whole numbers, got {given!r}.")
            object.__setattr__(self, name, tuple(dict.fromkeys(map(plain, parts))))
        for method in self.defenses:
            defense(method)
        require(min(self.spc) >= 1, f"spc (images per class) must be at least 1, got {min(self.spc)}.")
        lowest = min(self.seeds)  # type: ignore[arg-type]  # a tuple by now
        require(lowest >= 0, f"seeds must not be negative, got {lowest}.")

    def cells(self) -> list[Cell]:
        """All cells, by spc, then attack: the fast ones first, and those of one attack together."""
        return [Cell(attack, method, spc, seed) for spc in self.spc for attack in self.attacks
                for method in self.defenses for seed in self.seeds]  # type: ignore[union-attr]  # a tuple by now

    def check(self) -> dict[str, str]:
        """Load every model and check that its classes have enough images; returns the weights' SHA-256 by attack.

        Raises InputError for an unknown or damaged checkpoint, or an spc that is too large.
        """
        digests = {}
        for attack in self.attacks:
            victim = load_victim(attack, self.code)
            for spc in self.spc:
                draw_defense_images(victim.data.defense, spc)
            digests[attack] = str(victim.card.get("sha256", ""))
        return digests
