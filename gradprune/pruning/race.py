"""The best of many trials, found without running every trial on every image.

An image adds to a trial's objective and never takes away. So what a trial has lost on some of the images is the least
that it can lose on all, and a trial that has lost more already than another one in all is beaten. Where the images that
cost most come first, most trials are beaten after a few.
"""

import torch
from torch import Tensor

from gradprune.pruning.objective import Objective
from gradprune.pruning.trials import Trials

PIECE = 32  # images between two looks at who is beaten


def race(trials: Trials, goal: Objective, positions: list[int], expected: Tensor, mistakes: float
         ) -> tuple[int, Tensor] | None:
    """The trial with the lowest objective among those that count, by its place in `positions`, and its terms (2N,).

    expected: float (2N,), about what each image will add; says which images come first and when a trial is left lying.
    It decides on the time, not on the winner: a trial left lying that may still win is taken up again.
    mistakes: so many clean images given a wrong label, and a trial does not count. None where no trial counts.
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
