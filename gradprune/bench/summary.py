"""A bench in a few numbers: means over seeds, and the order of the defences with its uncertainty.

A table has one row per cell (attack, defense, spc, seed); shares are in 0..1. A cell with an error, or without figures,
has failed: means leave it out, and it is counted. `attack` names an attacked model; several models of one attack, such
as those of other training seeds, are replicates of it (see `attack_kind`).
"""

import math
import re
from functools import cache

import numpy as np
import pandas as pd

from gradprune.base.errors import require, require_known

KEYS = ["attack", "defense", "spc"]
_NEEDED = [*KEYS, "seed", "acc_before", "asr_before", "acc", "asr", "ra", "der", "seconds", "error"]
_BEST = {"der": "high", "acc": "high", "ra": "high", "asr": "low"}


def checked(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with `error` as text, a column `failed` (bool), and NaN for the figures of the failed cells.

    Raises InputError for a table that is empty, lacks a column or has a cell twice, or if every cell has failed.
    """
    lacking = [name for name in _NEEDED if name not in table]
    require(not lacking, f"the table of cells lacks the columns {', '.join(lacking)}.")
    require(len(table) > 0, "the table of cells is empty.")
    twice = table[table.duplicated([*KEYS, "seed"])]
    require(twice.empty, "the table of cells holds a cell twice: "
                         + ", ".join(f"{key}={twice[key].iloc[0]}" for key in [*KEYS, "seed"] if len(twice)) + ".")
    error = table["error"].fillna("").astype(str).str.strip()
    failed = (error != "") | table[["acc", "asr", "ra", "der"]].isna().any(axis=1)
    first = error.iloc[0].rstrip(".") or "no figures"
    require(not failed.all(), f"all {len(table)} cells have failed; the first says: {first}.")
    figures = ["acc", "asr", "ra", "der", "seconds"]
    table = table.assign(error=error.mask(failed & (error == ""), "no figures"), failed=failed)
    table[figures] = table[figures].astype(float).mask(failed)
    return table


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and half the range over seeds of acc, asr, ra, der and acc_drop (shares) by attack, defence and spc.

    Columns: attack, defense, spc; each figure and, with `_half_range`, half the distance from its lowest to its highest
    seed; seconds (median); cells; failed. NaN if all cells of a row failed. Raises InputError as `checked` does.
    """
    table = checked(table)
    table["acc_drop"] = table["acc_before"] - table["acc"]
    groups = table.groupby(KEYS, sort=False)
    columns = {}
    for key in ("acc", "asr", "ra", "der", "acc_drop"):
        columns[key] = groups[key].mean()
        columns[f"{key}_half_range"] = (groups[key].max() - groups[key].min()) / 2
    columns |= {"seconds": groups["seconds"].median(), "cells": groups.size(), "failed": groups["failed"].sum()}
    return pd.DataFrame(columns).reset_index()


def attack_kind(attack: str) -> str:
    """The attack that a model's name or path stands for: its last part without a trailing number.

    "badnets", "seeds/badnets_1" and "cifar10/badnets" are all "badnets": one attack, met by several models.
    """
    return re.sub(r"_\d+$", "", re.split(r"[/\\]", attack)[-1]) or attack


def even_means(cells: pd.DataFrame, by: list[str], figures: list[str]) -> pd.DataFrame:
    """Means of the figures for each value of the columns `by`, with the same weight for every attack.

    They are taken over the seeds of a model, then over the models of an attack (see `attack_kind`), then over attacks;
    NaN is left out.
    cells: as `checked` returns them.
    Returns one row for each value, which is the index.
    """
    means = cells.assign(kind=cells["attack"].map(attack_kind)).groupby([*by, "kind", "attack"])[figures].mean()
    return means.groupby([*by, "kind"]).mean().groupby(by).mean()


def ranking(table: pd.DataFrame, metric: str = "der") -> pd.DataFrame:
    """Mean rank (1 is best) and mean DER of each defence at each spc, with 95 % intervals, the best rank first.

    metric: der, acc, ra (high is good) or asr (low is good).

    A block is an attacked model and a seed. Only blocks with a cell of every defence count, so that all defences are
    judged on the same cells. In a block, ties share their average rank, and failed cells share the last rank; the mean
    DER leaves them out (`failed` counts them). Every attack has the same weight, whatever failed: the mean is taken
    over the seeds of a model, then over the models of an attack (see `attack_kind`), then over attacks.

    The interval is Student's, over the means of the attacks: mean +- t * s / sqrt(n) for n attacks, with n - 1 degrees
    of freedom. Attacks are the independent units: seeds are other draws of images for the same attacked model, models
    of one attack share its mark, and neither says much about another attack; their variation is part of the spread of
    the attacks' means. The rule is the same for all sizes: with four attacks a bootstrap is far too narrow, with many
    it gives the same. The interval is clipped to what is possible (ranks from 1, DER in 0..1), and NaN with one attack.
    It does not include the fact that all models use the same draws of images.

    Columns: spc, defense, rank, rank_low, rank_high, der, der_low, der_high, attacks, models, blocks, failed.
    Raises InputError for another metric, and as `checked` does.
    """
    require_known("metric", metric, _BEST)
    parts = []
    for spc, cells in checked(table).groupby("spc"):
        values, ders = _blocks(cells, metric), _blocks(cells, "der")
        ranks = values.rank(axis=1, ascending=_BEST[metric] == "low", na_option="bottom")
        part = pd.concat([_interval("rank", ranks, 1, len(values.columns)), _interval("der", ders, 0, 1)], axis=1)
        part = part.assign(spc=spc, **_size(values), failed=values.isna().sum())
        parts.append(part.rename_axis("defense").reset_index().sort_values(["rank", "der"], ascending=[True, False]))
    columns = ["spc", "defense", *(name + end for name in ("rank", "der") for end in ("", "_low", "_high"))]
    return pd.concat(parts, ignore_index=True)[[*columns, "attacks", "models", "blocks", "failed"]]


def gain(table: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """How far the DER of defence `one` is above that of `other`, at each spc, in the blocks where neither failed.

    Columns: spc, gain, gain_low, gain_high (the interval of `ranking`, for the paired differences), attacks, models,
    blocks. If the interval contains 0, the two do not differ significantly (see `significance`). An spc without such a
    block has no row. Raises InputError as `checked` does.
    """
    table, rows = checked(table), []
    table = table[table["defense"].isin([one, other]) & ~table["failed"]]
    for spc, cells in table.groupby("spc"):
        pairs = _blocks(cells, "der")
        if len(pairs) and len(pairs.columns) == 2:
            difference = (pairs[one] - pairs[other]).to_frame()
            rows.append({"spc": spc, **_interval("gain", difference, -1, 1).iloc[0], **_size(pairs)})
    return pd.DataFrame(rows, columns=["spc", "gain", "gain_low", "gain_high", "attacks", "models", "blocks"])


def significance(pair: pd.Series) -> str:
    """A row of `gain` in words: "do not differ significantly (95% interval -0.5 to +3.3 points)"."""
    if math.isnan(pair["gain_low"]):
        return "met one attack alone, so nothing tells whether they differ significantly"
    clear = "differ" if pair["gain_low"] > 0 or pair["gain_high"] < 0 else "do not differ"
    low, high = 100 * pair["gain_low"], 100 * pair["gain_high"]
    return f"{clear} significantly (95% interval {low:+.1f} to {high:+.1f} points)"


def _blocks(cells: pd.DataFrame, key: str) -> pd.DataFrame:
    """One figure at one spc: a row per block (attack, seed) with a cell of every defence, a column per defence."""
    names = list(dict.fromkeys(cells["defense"]))
    whole = cells[cells.groupby(["attack", "seed"])["defense"].transform("size") == len(names)]
    return whole.pivot(index=["attack", "seed"], columns="defense", values=key).reindex(columns=names)


def _size(blocks: pd.DataFrame) -> dict[str, int]:
    models = blocks.index.get_level_values("attack").unique()
    return {"attacks": len({attack_kind(name) for name in models}), "models": len(models), "blocks": len(blocks)}


def _interval(name: str, blocks: pd.DataFrame, least: float, most: float) -> pd.DataFrame:
    """Mean of each column, with the same weight for every attack, and its t interval clipped to `least`..`most`."""
    models = blocks.groupby(level="attack").mean()
    attacks = models.groupby(models.index.map(attack_kind)).mean()
    mean, count = attacks.mean(), attacks.count()
    reach = count.map(lambda n: t_quantile(n - 1) if n > 1 else np.nan) * attacks.std() / np.sqrt(count)
    return pd.DataFrame({name: mean, f"{name}_low": (mean - reach).clip(least, most),
                         f"{name}_high": (mean + reach).clip(least, most)}, index=blocks.columns)


@cache
def t_quantile(freedom: int, inside: float = 0.95) -> float:
    """The t with a share `inside` of Student's distribution between -t and t; freedom: degrees of freedom, 1 or more.

    It is found by bisection on the closed form of that share (Abramowitz & Stegun, 1972, 26.7.3 and 26.7.4), with t =
    sqrt(freedom) * tan(angle).
    """
    odd, low, high = freedom % 2, 0.0, math.pi / 2

    def share(angle: float) -> float:
        term = math.cos(angle) if odd else 1.0
        total = term if freedom > 1 else 0.0
        for k in range(2 + odd, freedom - 1, 2):
            term *= (k - 1) / k * math.cos(angle) ** 2
            total += term
        return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

    for _ in range(60):  # halvings, which are enough for the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) < inside else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
