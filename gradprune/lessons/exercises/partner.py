"""The last exercise of notebook 06: which BatchNorm belongs to which convolution, told from who reads whom."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradprune.lessons.runtime.feedback import Seen
from gradprune.lessons.runtime.grading import Complaint, Exercise, Function, Misconception, Untouched

# ---- partners(reads, convs, norms) -> conv -> norm

Reads = Sequence[tuple[str, str]]


def _partners(reads: Reads, convs: Sequence[str], norms: Sequence[str]) -> dict[str, str]:
    return {conv: norm for conv, norm in _direct(reads, convs, norms)
            if _readers(reads, conv) == [norm] and _sources(reads, norm) == [conv]}


def _direct(reads: Reads, convs: Sequence[str], norms: Sequence[str]) -> list[tuple[str, str]]:
    return [(source, reader) for source, reader in reads if source in convs and reader in norms]


def _readers(reads: Reads, name: str) -> list[str]:
    return [reader for source, reader in reads if source == name]


def _sources(reads: Reads, name: str) -> list[str]:
    return [source for source, reader in reads if reader == name]


def _reached(reads: Reads, convs: Sequence[str], norms: Sequence[str]) -> dict[str, str]:
    """The first BatchNorm that is reached from each convolution, through whatever lies between."""
    found = {}
    for conv in convs:
        waiting, seen = _readers(reads, conv), set()
        while waiting:
            name = waiting.pop(0)
            if name in norms:
                found[conv] = name
                break
            waiting += [reader for reader in _readers(reads, name) if reader not in seen]
            seen.add(name)
    return found


def _graphs() -> list[tuple[Any, ...]]:
    """A residual block that keeps a sum, and a network in which outputs are shared, joined and read twice."""
    block = [("image", "conv1"), ("conv1", "norm1"), ("norm1", "relu"), ("relu", "conv2"), ("conv2", "norm2"),
             ("norm2", "relu_1"), ("relu_1", "conv3"), ("conv3", "add"), ("relu", "add"), ("add", "norm3"),
             ("norm3", "output")]
    other = [("image", "norm_a"), ("norm_a", "conv_e"), ("conv_e", "norm_d"), ("norm_d", "conv_b"),
             ("conv_b", "norm_b"), ("conv_b", "cat"), ("norm_b", "conv_c"), ("conv_c", "norm_s"),
             ("norm_d", "conv_d"), ("conv_d", "norm_s"), ("norm_s", "cat"), ("cat", "conv_f"), ("conv_f", "relu"),
             ("relu", "norm_c"), ("norm_c", "conv_g"), ("norm_c", "join"), ("conv_g", "norm_g"), ("norm_g", "join"),
             ("norm_g", "output"), ("join", "output")]
    return [(block, ["conv1", "conv2", "conv3"], ["norm1", "norm2", "norm3"]),
            (other, ["conv_b", "conv_c", "conv_d", "conv_e", "conv_f", "conv_g"],
             ["norm_a", "norm_b", "norm_c", "norm_d", "norm_g", "norm_s"])]


def _small_graph() -> list[tuple[Any, ...]]:
    """A chain whose second BatchNorm reads a sum."""
    reads = [("image", "c1"), ("c1", "n1"), ("n1", "c2"), ("c2", "add"), ("n1", "add"), ("add", "n2"), ("n2", "output")]
    return [(reads, ["c1", "c2"], ["n1", "n2"])]


def _pairs_found(function: Function, case: Sequence[Any]) -> Seen:
    """A table of ones and zeros, a row and a column for each name; who has no partner may be there with None."""
    found = function(*case)
    if found is None or found is ...:
        raise Untouched
    if not isinstance(found, Mapping):
        raise Complaint("a dict is wanted, convolution -> BatchNorm, without those that have no partner.")
    names = [*case[1], *case[2]]
    return [torch.tensor([[float(found.get(row, "") == column) for column in names] for row in names]).double()]


PARTNERS = Exercise(
    notebook="06", name="partners", signature="partners(reads, convs, norms)",
    praise="the BatchNorm reads this convolution alone, and nobody else reads it.",
    reference=_partners, cases=_graphs, observe=_pairs_found, examples=_small_graph,
    misconceptions=(
        Misconception("the first convolution gets the first BatchNorm, and so on. The lists say in which order "
                      "somebody WROTE the layers, not who reads whom: look into `reads`.",
                      lambda r, c, n: dict(zip(c, n, strict=True))),
        Misconception("these are the partners in the seller's network, written down. The hidden networks are others: "
                      "work them out from `reads`.", lambda r, c, n: {"conv1": "norm1", "conv2": "norm2"}),
        Misconception("the names decide. Nobody has to call the partner of conv3 norm3, and here it is not: look into "
                      "`reads`.", lambda r, c, n: {one: other for one in c for other in n if one[4:] == other[4:]}),
        Misconception("it is enough for yours that the BatchNorm reads the convolution. If somebody else reads it, "
                      "too, its filters speak past the BatchNorm; if the BatchNorm has a second source, silencing it "
                      "hits that as well. Check both.", lambda r, c, n: dict(_direct(r, c, n))),
        Misconception("you check that nobody else reads the convolution, but not that the BatchNorm has no other "
                      "source. Silencing it would hit that as well.",
                      lambda r, c, n: {one: other for one, other in _direct(r, c, n) if _readers(r, one) == [other]}),
        Misconception("you check that the BatchNorm has no other source, but not that nobody else reads the "
                      "convolution. Its filters would still speak there.",
                      lambda r, c, n: {one: other for one, other in _direct(r, c, n) if _sources(r, other) == [one]}),
        Misconception("the dict is turned around: convolution -> BatchNorm is wanted.",
                      lambda r, c, n: {other: one for one, other in _partners(r, c, n).items()}),
        Misconception("you look who reads the BatchNorm. Its readers do not matter: count those of the CONVOLUTION.",
                      lambda r, c, n: {one: other for one, other in _direct(r, c, n) if len(_readers(r, other)) == 1
                                       and _sources(r, other) == [one]}),
        Misconception("these are the BatchNorms BEFORE the convolutions: in a pair (source, reader) the source comes "
                      "first.", lambda r, c, n: {one: other for other, one in r if other in n and one in c}),
        Misconception("you follow the output through whatever comes next. Behind a ReLU or a sum the BatchNorm "
                      "does not hold this filter's channel alone: its ONLY source must be the convolution itself.",
                      _reached),
        Misconception("through a single step in between a BatchNorm counts, too. Whatever lies in between changes the "
                      "channel: only a direct reader is a partner.",
                      lambda r, c, n: _partners(r, c, n) | {one: _readers(r, middle[0])[0] for one in c
                                                            if len(middle := _readers(r, one)) == 1
                                                            and [*_readers(r, middle[0]), ""][0] in n}),
    ))
