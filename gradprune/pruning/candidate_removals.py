"""Try removals: the model's logits without one filter, recomputing only what depends on it.

`fastest_candidate` finds the best of several removals. No image lowers the `Objective`, so a candidate whose loss on
some images exceeds another's on all of them is beaten. It starts with the images that cost most, and most candidates
are beaten after a few.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from gradprune.models.inference import evaluating
from gradprune.models.pairing import mixes
from gradprune.models.tracing import all_values, output_without, trace
from gradprune.pruning.filters import Filters, keep_filter, silence

if TYPE_CHECKING:
    from gradprune.pruning.verified import Objective

CHUNK = 64  # images at once: few enough for the cached activations to stay small
PIECE = 32  # images between two checks of which candidates are beaten


class CandidateRemovals:
    """Runs a model without single filters: activations are computed once, then only what the filter affects.

    The model is traced with torch.fx; if that fails, or the trace gives other logits than the model, every trial runs
    the whole model instead, with the same results but more slowly (`traced` says which).
    found: all filters of the model.
    example: float (N, C, H, W) in [0, 1], to check the trace with.
    """

    def __init__(self, model: nn.Module, found: Filters, example: Tensor) -> None:
        self.model, self.found = model, found
        self.graph: fx.GraphModule | None = None
        self.silenced = {layer.name: {*layer.ends, *(name for name, norm in layer.pairs
                                                     if norm and mixes(model.get_submodule(norm)))}
                         for layer in found.layers}  # steps whose output is zero in a filter's channel
        with evaluating(model), torch.inference_mode():
            try:
                self.graph = trace(model, {end for layer in found.layers for end in layer.ends})
                ends = [0, len(found) // 2, len(found) - 1]
                for mine, whole in zip(self._traced(example, ends), self._whole(example, ends), strict=True):
                    torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-4)
            except Exception:  # foreign code may do what no trace can follow
                self.graph = None
        self.traced = self.graph is not None

    def logits(self, images: Tensor, positions: Iterable[int]) -> tuple[Tensor, Tensor]:
        """The model's logits as it is, (N, classes), and without each filter, (trials, N, classes).

        images: float (N, C, H, W) in [0, 1].
        positions: positions in the flat list, one trial each.
        The model runs in eval mode and is restored bit for bit.
        """
        positions = list(positions)
        with evaluating(self.model), torch.inference_mode():
            parts = [self._traced(chunk, positions) if self.graph else self._whole(chunk, positions)
                     for chunk in images.split(CHUNK)]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts], dim=1)

    def _traced(self, images: Tensor, positions: list[int]) -> tuple[Tensor, Tensor]:
        """Run the model once; then, for each trial, only the steps that its filter affects."""
        assert self.graph is not None
        as_it_is, values = all_values(self.graph, images)
        answers = []
        for position in positions:
            layer = self.found.layer_of(position)
            answers.append(output_without(self.graph, values, self.silenced[layer.name], position - layer.start))
        return as_it_is, torch.stack(answers) if answers else as_it_is.new_empty(0, *as_it_is.shape)

    def _whole(self, images: Tensor, positions: list[int]) -> tuple[Tensor, Tensor]:
        """Without a trace: silence, run the model, restore."""
        as_it_is, answers = self.model(images), []
        for position in positions:
            with ExitStack() as undo:
                undo.callback(keep_filter(self.model, self.found, position))
                silence(self.model, self.found, [position])
                answers.append(self.model(images))
        return as_it_is, torch.stack(answers) if answers else as_it_is.new_empty(0, *as_it_is.shape)


def fastest_candidate(trials: CandidateRemovals, goal: "Objective", positions: list[int], expected: Tensor,
                      mistakes: float) -> tuple[int, Tensor] | None:
    """The candidate with the lowest objective, as its index in `positions`, and its terms (2N,); None if none is left.

    expected: float (2N,), a forecast of each image's contribution. It decides which images come first and when a
        candidate is paused. A wrong forecast costs time but never changes the result: a paused candidate that may still
        win is resumed.
    mistakes: a candidate that misclassifies this many clean images is excluded.
    """
    expected = expected.cpu().double().clamp(min=0)
    order = expected.argsort(descending=True, stable=True)
    pieces = order.split(PIECE)
    ahead = torch.stack([expected[order[start:]].sum() for start in range(0, len(order) + PIECE, PIECE)])
    terms = torch.zeros(len(positions), len(order), dtype=torch.float64)
    lost, wrong = terms.sum(1), terms.sum(1)
    done = torch.zeros(len(positions), dtype=torch.int64)  # pieces that each trial has run
    while done[lead := int(lost.argmin())] < len(pieces) and lost[lead] < torch.inf:
        for number, chosen in enumerate(pieces):
            running = ((done == number) & (lost <= (lost + ahead[done]).min())).nonzero().flatten()
            if len(running) == 0:
                continue
            part = goal.of(chosen)
            _, logits = trials.logits(part.images, [positions[trial] for trial in running])
            terms[running[:, None], chosen] = part.terms(logits).cpu().double()
            wrong[running] += part.wrong(logits).sum(-1).cpu()
            done[running] += 1
            total = terms[running].sum(1)
            lost[running] = total.masked_fill((wrong[running] >= mistakes) | total.isnan(), torch.inf)
    return (lead, terms[lead]) if lost[lead] < torch.inf else None
