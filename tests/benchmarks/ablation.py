"""What recipe `verified` and its fine-tuning owe to each of their choices: data/results/ablation/.

    python tests/benchmarks/ablation.py prune|tune FOLDER [spc] [victims] [defence seeds]

FOLDER keeps the victims and their images, which are made on first use: see `tuning_models`, which shares neither with
anything that is reported. Each row changes one choice of the recipe as it is (`base`): of its pruning in the table `prune`,
of its fine-tuning in `tune`. These tables choose, so their figures are no result.
"""

import contextlib
import copy
import functools
import math
import platform
import sys
import time
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F
from tuning_models import tuning_victim

import gradprune as gp
from gradprune.base.paths import write_atomic
from gradprune.datasets import draw_defense_images
from gradprune.models import predict
from gradprune.pruning import Augment, FilterMask, Pairs, distilled_tune, fine_tune, judge, pair_up, verified
from gradprune.pruning.candidate_removals import fastest_candidate
from gradprune.pruning.filters import own_tensors

RECIPE, DISTILLED = (sys.modules[f"gradprune.pruning.{name}"] for name in ("verified", "distilled"))
OUT = Path(__file__).resolve().parents[2] / "data/results/ablation"
DOWNHILL = "end when no trial helps"
PRUNE = {"base": {}, DOWNHILL: {}, "score taylor": {"score": "taylor"}, "score gradient": {"score": "gradient"},
         "k 4": {"k": 4}, "k 48": {"k": 48}, "weight 1": {"weight": 1.0}, "weight 10": {"weight": 10.0},
         "clean term cross-entropy": {}, "no views": {}, "views without light": {}, "filters in blocks alone": {},
         "stop by training objective alone": {}, "validation pooled with training": {}, "backward pass": {}}
TUNE = ("not tuned", "base", "no pruning", "paper's fine-tuning", "neither", "no mixes", "labels, no mixes", "weight 1",
        "weight 8", "twice the rate", "half the rate", "100 steps", "320 steps", "last epoch", "statistics fixed")
UNPRUNED = ("no pruning", "neither")


class CrossEntropy(RECIPE.Objective):
    """The true labels as the clean target, not the given model's answers."""

    def __init__(self, given, pairs, weight):
        super().__init__(given, pairs, weight)
        self.wanted = F.one_hot(self.labels, self.wanted.shape[1]).to(self.wanted)


def downhill(trials, goal, positions, terms, mistakes):
    """As `fastest_candidate`; ends the rounds when no removal lowers the objective."""
    won = fastest_candidate(trials, goal, positions, terms, mistakes)
    if won is not None and won[1].sum() >= terms.sum():
        raise KeyboardInterrupt
    return won


def joined(*parts):
    return Pairs(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def put_back(given, model, mask, train):
    """The backward pass: filters whose return lowers the objective come back, last removed first."""
    goal, alone = RECIPE.Objective(given, train, RECIPE.WEIGHT), 0
    for position in reversed(tuple(mask.positions)):
        tensors = own_tensors(model, mask.filters, position)
        before, silenced = float(goal(predict(model, goal.images))), [tensor.clone() for tensor in tensors]
        for tensor, old in zip(tensors, own_tensors(given, mask.filters, position), strict=True):
            tensor.copy_(old)
        if float(goal(predict(model, goal.images))) < before:
            mask.positions.remove(position)
            alone += 1
        else:
            for tensor, old in zip(tensors, silenced, strict=True):
                tensor.copy_(old)
    return alone


def prune(name, victim, train, validation, seed):
    """One row of the first table: the pruned model, its mask."""
    model = copy.deepcopy(victim.model)
    found = gp.filters(model, train.clean[:1])
    augment = Augment(model, victim.trigger, train)
    light = 0.0 if name == "views without light" else sys.modules["gradprune.attacks.augment"].LIGHT
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("gradprune.attacks.augment.LIGHT", light))
        more = joined(train, validation) if name == "validation pooled with training" else train
        views = more if name == "no views" else augment.add_to(more, seed)
        if name in ("stop by training objective alone", "validation pooled with training"):
            validation = views
        if name == "clean term cross-entropy":
            stack.enter_context(mock.patch.object(RECIPE, "Objective", CrossEntropy))
        if name == DOWNHILL:
            stack.enter_context(mock.patch.object(RECIPE, "fastest_candidate", downhill))
        if name == "filters in blocks alone":
            inside = torch.cat([torch.full((layer.count,), layer.norm is not None) for layer in found.layers])
            score = RECIPE.filter_scores
            stack.enter_context(mock.patch.object(RECIPE, "filter_scores", lambda *arguments: (
                (result := score(*arguments))[0].masked_fill(~inside, -1e9), result[1])))
        outcome = verified(model, found, views, validation, progress=False, **PRUNE[name])
    if name == "backward pass":
        outcome.stopped += f"; {put_back(victim.model, model, outcome.mask, views)} put back"
    return model, outcome


class Labels(DISTILLED.Distilled):
    """The true labels for the triggered images, the given model's answers for the clean ones alone."""

    def __call__(self, model, batch):
        wanted = predict(self.given, batch.clean).log_softmax(1)
        kept = F.kl_div(model(batch.clean).log_softmax(1), wanted, log_target=True, reduction="batchmean")
        return F.cross_entropy(model(batch.triggered), batch.labels) + self.weight * kept


def weighted(other, given, weight=None, make=DISTILLED.Distilled):
    """The loss with another weight than by default; the validation loss names its own."""
    return make(given, other if weight is None else weight)


def unmixed(augment, pairs, generator):
    """What `Augment.mixed` gives, with no image mixed."""
    enough = sys.modules["gradprune.attacks.augment"].ENOUGH
    return joined(pairs, augment(pairs, generator, math.ceil(enough / len(pairs.labels))))


def tune(name, victim, train, validation, seed, pruned, mask):
    """One row of the second table: the fine-tuned model."""
    model = copy.deepcopy(victim.model if name in UNPRUNED else pruned)
    mask = FilterMask(mask.filters) if name in UNPRUNED else mask
    if name == "not tuned":
        return model
    if name in ("paper's fine-tuning", "neither"):
        fine_tune(model, mask, train, validation, seed=seed, progress=False)
        return model
    changes = {"LR": DISTILLED.LR} | {
        "twice the rate": {"LR": 2e-3}, "half the rate": {"LR": 5e-4}, "100 steps": {"STEPS": 100}, "320 steps": {"STEPS": 320},
        "statistics fixed": {"fine_tune": functools.partial(fine_tune, statistics="fixed")},
        "labels, no mixes": {"Distilled": Labels}, "last epoch": {"fine_tune": functools.partial(fine_tune, keep="last")}}.get(name, {})
    if name.startswith("weight"):
        changes |= {"Distilled": functools.partial(weighted, float(name.split()[1]))}
    augment = Augment(victim.model, victim.trigger, train)
    watch = judge(victim.model, validation, augment, seed)
    with mock.patch.multiple(DISTILLED, **changes), \
            mock.patch.object(Augment, "mixed", unmixed if "no mixes" in name else Augment.mixed):
        distilled_tune(victim.model, model, mask, train, validation, augment, watch, seed=seed, progress=False)
    return model


def rows(table, folder, spc, victims, seeds, done):
    for victim_name in victims:
        kind, number = victim_name.rsplit("_", 1)
        victim = tuning_victim(folder, kind, int(number))
        for seed in seeds:
            train, validation = (pair_up(part, victim.trigger)
                                 for part in draw_defense_images(victim.data.defense, spc, seed))
            waiting = [name for name in (PRUNE if table == "prune" else TUNE) if (victim_name, seed, name) not in done]
            if table == "tune" and waiting:
                pruned, outcome = prune("base", victim, train, validation, seed)
            for name in waiting:
                start = time.process_time()
                if table == "prune":
                    model, outcome = prune(name, victim, train, validation, seed)
                else:
                    model = tune(name, victim, train, validation, seed, pruned, outcome.mask)
                taken = time.process_time() - start
                figures, removed = victim.evaluate(model), 0 if name in UNPRUNED else len(outcome.mask.positions)
                print(f"{victim_name:18} spc {spc} seed {seed} {name:34} {figures} {removed:3} "
                      f"filters {taken:5.1f} s {outcome.stopped}", flush=True)
                yield {"victim": victim_name, "spc": spc, "seed": seed, "choice": name,
                       **{key: round(value, 4) for key, value in figures._asdict().items()},
                       "filters": removed, "cpu_seconds": round(taken, 1),
                       "stopped": outcome.stopped if table == "prune" else "", "gradprune": gp.__version__,
                       "torch": torch.__version__.split("+")[0], "machine": platform.machine()}


def main(table, folder, spc="2", victims="blended_11,low_frequency_11,sig_11,sig_clean_label_11", seeds="100,101"):
    """Add the rows that are missing; delete the file to measure anew."""
    path = OUT / f"{table}_spc{spc}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["victim", "seed", "choice"])
    done = set(zip(made.victim, made.seed, made.choice, strict=True))
    seeds = [int(seed) for seed in seeds.split(",")]
    for row in rows(table, Path(folder), int(spc), victims.split(","), seeds, done):
        made = pd.concat([made, pd.DataFrame([row])])
        write_atomic(path, lambda temporary, made=made: made.to_csv(temporary, index=False))
    print((100 * made.groupby("choice", sort=False)[["acc", "asr", "ra"]].mean()).round(1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
