"""Figures published by others, to compare with ours with care."""

import pandas as pd

from gradprune.base.errors import require
from gradprune.base.paths import data_folder

_SETTINGS = {"cifar10": "CIFAR-10, PreActResNet-18, 10 % poisoned, about 250 clean images a class",
             "gtsrb": "GTSRB, PreActResNet-18, 10 % poisoned, about 45 clean images a class on average"}


def published() -> pd.DataFrame:
    """Published rows of attacks and defences that are here, too; they are not directly comparable, see `setting`.

    They are read from data/reference/backdoorbench.csv, whose README names the source and every difference.
    Columns: dataset, attack, defense (our names), acc_before, asr_before, ra_before, acc, asr, ra, der (computed from
    their figures), setting. Raises InputError if the file is missing.
    """
    path = data_folder() / "reference" / "backdoorbench.csv"
    require(path.is_file(), f"there is no table of published figures at {str(path)!r}.")
    rows = pd.read_csv(path)
    asr, acc = (rows[f"{key}_before"] - rows[key] for key in ("asr", "acc"))
    rows["der"] = (asr.clip(lower=0) - acc.clip(lower=0) + 1) / 2
    return rows.assign(setting=rows["dataset"].map(_SETTINGS).fillna(rows["dataset"]))
