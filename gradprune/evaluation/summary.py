"""A bench in a few numbers: means over seeds, and the order of the defences with its uncertainty.

A table has one row a cell (attack, defense, spc, seed); shares are in 0..1. A cell with an error, or without figures,
has failed: means leave it out and count it.
"""

import numpy as np
import pandas as pd

from gradprune.errors import require, unknown

KEYS = ["attack", "defense", "spc"]
_NEEDED = [*KEYS, "seed", "acc_before", "asr_before", "acc", "asr", "ra", "der", "seconds", "error"]
_BEST = {"der": "high", "acc": "high", "ra": "high", "asr": "low"}


def checked(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with `error` as text, a column `failed` (bool), and NaN for the figures of the failed cells.

    Raises InputError for a table that is empty, lacks a column, or holds a cell twice, or where every cell has failed.
    """
    lacking = [name for name in _NEEDED if name not in table]
    require(not lacking, f"the table of cells lacks the columns {', '.join(lacking)}.")
    require(len(table) > 0, "the table of cells is empty.")
    twice = table[table.duplicated([*KEYS, "seed"])]
    require(twice.empty, "the table of cells holds a cell twice: "
                         + ", ".join(f"{key}={twice[key].iloc[0]}" for key in [*KEYS, "seed"] if len(twice)) + ".")
    error = table["error"].fillna("").astype(str).str.strip()
    failed = (error != "") | table[["acc", "asr", "ra", "der"]].isna().any(axis=1)
    require(not failed.all(), f"all {len(table)} cells have failed; the first says: {error.iloc[0] or 'no figures'}.")
    figures = ["acc", "asr", "ra", "der", "seconds"]
    table = table.assign(error=error.mask(failed & (error == ""), "no figures"), failed=failed)
    table[figures] = table[figures].astype(float).mask(failed)
    return table


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and half the range over seeds of acc, asr, ra, der and acc_drop (shares) by attack, defence and spc.

    Columns: attack, defense, spc; each figure and, with `_half_range`, half the distance from its lowest to its highest
    seed; seconds (median); cells; failed. NaN where all cells of a row failed. Raises InputError as `checked` does.
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


def ranking(table: pd.DataFrame, metric: str = "der", draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Mean rank (1 is best) and mean DER of each defence at each spc, with 95 % intervals, the best rank first.

    A block is an attack and a seed, and only blocks that hold a cell of every defence count, so that all are judged on
    the same cells. In a block ties share their average rank, and failed cells rank last, equal among themselves; the
    mean DER leaves them out (`failed` counts them). A block weighs 1 / (seeds of its attack): attacks weigh the same.

    The interval is a bootstrap (percentiles 2.5 and 97.5) in two stages: attacks are drawn with replacement, then seeds
    within each drawn attack. Attacks are the independent units: seeds are other draws of images on the same attacked
    model and tell nothing about the next attack. With few attacks the interval is too narrow; with one it is NaN.

    metric: der, acc, ra (high is good) or asr (low). Columns: spc, defense, rank, rank_low, rank_high, der, der_low,
    der_high, attacks, blocks, failed. Raises InputError for another metric, and as `checked` does.
    """
    if metric not in _BEST:
        raise unknown("metric", metric, _BEST)
    parts = []
    for spc, cells in checked(table).groupby("spc"):
        values, ders = _blocks(cells, metric), _blocks(cells, "der")
        ranks = values.rank(axis=1, ascending=_BEST[metric] == "low", na_option="bottom")
        part = pd.concat([_interval("rank", ranks, draws, seed), _interval("der", ders, draws, seed)], axis=1)
        part = part.assign(spc=spc, **_size(values), failed=values.isna().sum())
        parts.append(part.rename_axis("defense").reset_index().sort_values(["rank", "der"], ascending=[True, False]))
    columns = ["spc", "defense", *(name + end for name in ("rank", "der") for end in ("", "_low", "_high"))]
    return pd.concat(parts, ignore_index=True)[[*columns, "attacks", "blocks", "failed"]]


def gain(table: pd.DataFrame, one: str, other: str, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """By how much the DER of defence `one` is above that of `other`, at each spc, in the blocks where both went well.

    Columns: spc, gain, gain_low, gain_high (the interval of `ranking`, for the paired difference), attacks, blocks. An
    spc without such a block has no row. Raises InputError as `checked` does.
    """
    table, rows = checked(table), []
    table = table[table["defense"].isin([one, other]) & ~table["failed"]]
    for spc, cells in table.groupby("spc"):
        pairs = _blocks(cells, "der")
        if len(pairs) and len(pairs.columns) == 2:
            difference = (pairs[one] - pairs[other]).to_frame()
            rows.append({"spc": spc, **_interval("gain", difference, draws, seed).iloc[0], **_size(pairs)})
    return pd.DataFrame(rows, columns=["spc", "gain", "gain_low", "gain_high", "attacks", "blocks"])


def _blocks(cells: pd.DataFrame, key: str) -> pd.DataFrame:
    """One figure of one spc: a row a block (attack, seed) that holds a cell of every defence, a column a defence."""
    names = list(dict.fromkeys(cells["defense"]))
    whole = cells[cells.groupby(["attack", "seed"])["defense"].transform("size") == len(names)]
    return whole.pivot(index=["attack", "seed"], columns="defense", values=key).reindex(columns=names)


def _size(blocks: pd.DataFrame) -> dict[str, int]:
    return {"attacks": blocks.index.get_level_values("attack").nunique(), "blocks": len(blocks)}


def _interval(name: str, blocks: pd.DataFrame, draws: int, seed: int) -> pd.DataFrame:
    """Mean of each column, every attack weighing the same, and its bootstrap interval: attacks first, seeds within."""
    generator, attacks = np.random.default_rng(seed), blocks.index.get_level_values("attack")
    places = [np.flatnonzero(attacks == attack) for attack in attacks.unique()]
    weights = np.zeros((draws + 1, len(blocks)))
    for draw, row in enumerate(weights):  # row 0 is the sample itself
        drawn = generator.integers(len(places), size=len(places)) if draw and places else range(len(places))
        for seeds in (places[attack] for attack in drawn):
            chosen = seeds[generator.integers(len(seeds), size=len(seeds))] if draw else seeds
            np.add.at(row, chosen, 1 / len(seeds))
    known = blocks.notna().to_numpy(float)
    with np.errstate(invalid="ignore"):
        means = pd.DataFrame(weights @ blocks.fillna(0).to_numpy(float) / (weights @ known), columns=blocks.columns)
    low, high = (means[1:].quantile(share) if len(places) > 1 else np.nan for share in (0.025, 0.975))
    return pd.DataFrame({name: means.iloc[0], f"{name}_low": low, f"{name}_high": high}, index=blocks.columns)
