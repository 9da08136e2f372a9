"""The report: one page that tells a defence's story to somebody who meets a backdoor for the first time."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

import torch

from gradprune import __version__
from gradprune.attacks.training import RECIPE
from gradprune.base.errors import require
from gradprune.base.paths import output_folder, write_atomic
from gradprune.datasets import ImageSet, draw_defense_images
from gradprune.defenses import DefenseResult
from gradprune.evaluation import Metrics, der, replay, verdict
from gradprune.pruning import filter_scores, pair_up
from gradprune.victims import Victim
from gradprune.views.figures.example_images import examples, first_of_each
from gradprune.views.figures.network_picture import network_drawn
from gradprune.views.figures.picture import Picture, count
from gradprune.views.figures.plots import before_after, loss_curves, pruning_trajectory, score_heatmap
from gradprune.views.figures.style import METRICS
from gradprune.views.reports.page import DEFINITIONS, page, table, terms

_REPLAYED = 6000  # images that the replay looks at, in all rounds together: about 3 seconds on one core
_LISTED = 60      # removed filters that are listed one by one
_EXPLAINED = {
    "examples": "The same images, clean and with the trigger, shown to the model before and after the "
                "defence. They are the first test image of each class: nobody picked them for their looks.",
    "scores": "The unlearning loss is the model’s error on triggered images when their true class is asked "
              "for. It is high while the backdoor lives, and its gradient points at the filters that carry "
              "it. Each cell is one filter of the attacked model: the higher its score, the sooner it is "
              "removed.",
    "network": "The network, from the image on the left to the answer on the right: each column is a layer, each cell "
               "a filter, dark where the trigger changes what the filter says, compared with the darkest of its layer "
               "in the attacked model. Arcs lead past layers. Crosses mark the filters that were removed.",
    "trajectory": "Each round removes the living filter with the best score, then looks at a few validation "
                  "images to decide when to stop and which round to keep. The figures of the lowest panel "
                  "were added afterwards, on {sample} of the test images, so they differ a little from the "
                  "table.",
    "fine_tuning": "The filters that are left learn from the same few images, clean and triggered, always "
                   "with their true class. Removed filters stay removed. The epoch with the lowest "
                   "validation loss is kept.",
}


def write_report(folder: Path, victim: Victim, result: DefenseResult, stages: dict[str, Metrics]) -> Path:
    """Write report.html, one file that needs no network, and its figures as PNG beside it; returns its path.

    victim: the attacked model. result: what the defence returned for it. stages: test figures by name, in
    order, the first before the defence and the last after it ({"before": ..., "pruned": ..., "tuned": ...}).
    Each file is written whole or not at all, the page last.
    Raises InputError for fewer than two stages, or a folder that cannot be written (before any work).
    """
    require(len(stages) >= 2, f"stages must hold figures before and after the defence, got {len(stages)}.")
    folder = output_folder(folder)
    stages = {"fine-tuned" if name == "tuned" else name: metrics for name, metrics in stages.items()
              if name != "tuned" or result.rows("tune")}
    rounds = result.rows("prune")
    each = _REPLAYED // (2 * len(rounds) * len(victim.data.test.classes))
    sample = first_of_each(victim.data.test, max(5, min(50, each)))
    figures = {}
    for name, picture in _pictures(victim, result, stages, sample).items():
        png = picture.save(folder / f"{name}.png").read_bytes()
        text = f"<p>{_EXPLAINED[name].format(sample=len(sample))}</p>" if name in _EXPLAINED else ""
        figures[name] = f'{text}<div class="wide">{picture.html(png)}</div>'
    text = _page(victim, result, stages, figures)
    return write_atomic(folder / "report.html", lambda temporary: temporary.write_text(text, "utf-8"))


def _pictures(victim: Victim, result: DefenseResult, stages: Mapping[str, Metrics],
              sample: ImageSet) -> dict[str, Picture]:
    """All figures by name; the scores are taken again from the defence images that the settings say."""
    found, kept, settings = result.mask.filters, result.mask.positions, result.settings
    score = settings.get("score", "gradient")
    images = draw_defense_images(victim.data.defense, settings.get("spc", 10), settings.get("seed", 0))
    pairs = pair_up(images.train, victim.trigger, next(victim.model.parameters()).device)
    scores, _ = filter_scores(victim.model, found, pairs.triggered, pairs.labels, score)
    replayed = replay(victim.model, result.history, sample, victim.trigger, victim.target, victim.label_map)
    models = {"before": victim.model, "after": result.model}
    pictures = {
        "examples": examples(models, victim.data.test, victim.trigger, victim.target, label_map=victim.label_map),
        "before_after": before_after(stages),
        "scores": score_heatmap(found, scores, kept, score=score),
        "network": network_drawn(models, found, pairs, {"after": kept}),
        "trajectory": pruning_trajectory(result.history, replayed, len(kept)),
    }
    return pictures | ({"fine_tuning": loss_curves(result.history)} if result.rows("tune") else {})


# ---- what it says


def _verdict(result: DefenseResult) -> str:
    """Which of several repairs the held-out images preferred, where there was a choice."""
    repairs = [f"{row['repair']} {row['val_loss']:.2f}" for row in result.rows("choose")]
    kept = [row["repair"] for row in result.rows("choose") if row["kept"]]
    if not kept:
        return ""
    return f". Its held-out images preferred the model that was <b>{kept[0]}</b> (loss: {', '.join(repairs)})"


def _story(victim: Victim, result: DefenseResult, before: Metrics, after: Metrics) -> str:
    """The whole run in one paragraph (HTML)."""
    removed, total = len(result.mask.positions), len(result.mask.filters)
    done = f"removed <b>{removed} of {count(total, 'filter')}</b>" if removed else "found no filter to remove"
    moved = ("images are taken for the next class" if victim.label_map == "all_to_all" else
             f"images of all other classes are taken for <b>{escape(victim.target_name)}</b>")
    return (f"The model gives {before.acc:.1%} of clean images their true class. With the attacker’s trigger "
            f"on them, {before.asr:.1%} of the {moved}. Grad-Prune got {result.settings.get('spc', 'a few')} "
            f"clean images of each class and the trigger. It {done}"
            + f" and fine-tuned the {'rest' if removed else 'model'}" * bool(result.rows("tune"))
            + _verdict(result)
            + f". Now the trigger works on <b>{after.asr:.1%}</b> of the images, {after.ra:.1%} of the "
              f"triggered images get their true class, and so do {after.acc:.1%} of the clean ones."
            + " The run was interrupted: this is the state that it had reached." * result.interrupted)


def _removed(result: DefenseResult) -> str:
    """The removed filters in the order of their removal, and why pruning stopped (HTML)."""
    rows = {(row["layer"], row["index"]): row for row in result.rows("prune")}
    forms = {"score": ".3g", "val_unlearning_loss": ".3f", "val_acc": ".1%"}
    lines = []
    for place, filter_ in enumerate(result.mask.removed, 1):
        row = rows.get(filter_, {})
        figures = [format(row[key], form) if key in row else "" for key, form in forms.items()]
        lines.append([str(place), str(filter_), *figures])
    head = ["round", "filter", "score", "validation unlearning loss", "validation accuracy"]
    text = table(lines[:_LISTED], head) if lines else "<p>Nothing: what was tried was taken back.</p>"
    if len(lines) > _LISTED:
        text += f"<p>And {count(len(lines) - _LISTED, 'filter')} more.</p>"
    if lines:
        text += ("<p>A filter is named by its convolution and its number in it. Removed means that it gives "
                 "zero from then on, during fine-tuning too.</p>")
    return text + (f"<p>Why pruning stopped: {escape(result.stopped)}.</p>" if result.stopped else "")


def _settings(victim: Victim, result: DefenseResult) -> list[list[str]]:
    """All that shaped the run, and what it was made with."""
    rate, digest = victim.card.get("attack", {}).get("rate"), str(victim.card.get("sha256", ""))
    trigger = f"{victim.trigger.name}({victim.trigger.extra_repr()})"
    facts = {"trigger": trigger, "target": victim.target_name, "test images": str(len(victim.data.test)),
             "departs": str(victim.card.get("attack", {}).get("departs", "")),
             "poison rate": "" if rate is None else f"{rate:.1%}",
             **{key: str(value) for key, value in result.settings.items()},
             **{f"seconds, {stage}": f"{seconds:.2f}" for stage, seconds in result.seconds.items()},
             "weights, sha256": digest[:16], "gradprune": __version__,
             "torch": torch.__version__.split("+")[0]}
    return [[key, value] for key, value in facts.items() if value]


def _reproduce(victim: Victim, result: DefenseResult) -> str:
    """Python that repeats the run; no name in it is a card's own, which may be a stranger's: readers will run it."""
    card, start = victim.card, 'gp.load_victim("...")  # the checkpoint that this page is about'
    if {"attack", "data", "model", "training"} <= set(card):
        attack, images = card["attack"], ("num_classes", "channels")
        model = {key: value for key, value in card["model"].items() if key not in images}
        made = {"data": Path(card["data"]["name"]).name,
                **({"size": victim.data.test.images.shape[-1]} if card["data"].get("size") else {}),
                "target": victim.target, "rate": attack.get("rate"),
                "trigger_settings": attack.get("settings", {}), "model": model,
                **{key: attack[key] for key in ("label_map",) if key in attack},
                **{key: card["training"][key] for key in (*RECIPE, "seed") if key in card["training"]}}
        start = f"gp.attack({attack['trigger']!r}, {_arguments(made)})"
    settings = result.settings if result.rows("tune") else {**result.settings, "tune": False}
    defense = f"victim.model, victim.data.defense, victim.trigger, {_arguments(settings)}"
    return (f"import gradprune as gp\n\nvictim = {start}\nresult = gp.grad_prune({defense})\n"
            "print(victim.evaluate(), victim.evaluate(result.model))\n")


def _arguments(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())


# ---- how it looks


def _page(victim: Victim, result: DefenseResult, stages: Mapping[str, Metrics],
          figures: Mapping[str, str]) -> str:
    before, *_, after = stages.values()
    moves = {key: f"{getattr(before, key):.1%} → <b>{getattr(after, key):.1%}</b>" for key in METRICS}
    tiles = "".join(f'<div class="tile {key}"><dt>{mark.name}</dt><dd class="figures">{moves[key]}</dd>'
                    f"<dd>{mark.meaning}</dd></div>" for key, mark in METRICS.items())
    rows = [[name, *(f"{value:.1%}" for value in (*metrics, der(before, metrics)))]
            for name, metrics in stages.items()]
    rows[0][-1] = ""  # a rating of the model against itself says nothing
    results = table(rows, ["stage", *DEFINITIONS],
                     f"Measured on {len(victim.data.test)} test images; the defence saw none of them.")
    sections = {
        "What the model says": figures["examples"],
        "Before and after": f'{figures["before_after"]}{results}{terms()}',
        "Which filters carry the backdoor": figures["scores"],
        "How far the trigger’s signal gets": figures["network"],
        "Pruning, round by round": figures["trajectory"],
        "Fine-tuning": figures.get("fine_tuning", ""),
        "What was removed": _removed(result),
        "Settings": table(_settings(victim, result)),
        "Do it again": f"<pre><code>{escape(_reproduce(victim, result))}</code></pre>",
    }
    outcome = verdict(before, after)
    return page(f"{outcome}: {victim.trigger.name}", _story(victim, result, before, after), sections,
                f'<dl class="tiles">{tiles}</dl>', outcome)
