"""The best of many trials, found without running every trial on every image.

An image adds to a trial's objective and never takes away. So what a trial has lost on some of the images is the least
that it can lose on all, and a trial that has lost more already than another one in all is beaten. Where the images that
cost most come first, most trials are beaten after a few.
"""

import torch
from torch import Tensor

from gradprune.pruning.candidate_removals import CandidateRemovals
from gradprune.pruning.objective import Objective

PIECE = 32  # images between two looks at who is beaten


def fastest_candidate(trials: CandidateRemovals, goal: Objective, positions: list[int], expected: Tensor,
                      mistakes: float) -> tuple[int, Tensor] | None:
    """The candidate with the lowest objective, as its index in `positions`, and its terms (2N,).

    expected: float (2N,), a forecast of what each image will add. It decides which images come first and when a
    candidate is paused. A wrong forecast costs time, never the result: a paused candidate that may still win goes on.
    mistakes: a candidate that gives this many clean images a wrong label is out. Returns None if all are out.
    """
    expected = expected.cpu().double().clamp(min=0)
    order = expected.argsort(descending=True, stable=True)
    pieces = order.split(PIECE)
    ahead = torch.stack([expected[order[start:]].sum() for start in range(0, len(order) + PIECE, PIECE)])
    terms = torch.zeros(len(positions), len(order), dtype=torch.float64)
    lost, wrong = terms.sum(1), terms.sum(1)
    done = torch.zeros(len(positions), dtype=torch.int64)  # pieces that a trial has run
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
