"""The report: one page that tells a defence's story to somebody who meets a backdoor for the first time."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import torch

from gradprune import __version__
from gradprune.datasets import ImageSet, draw_defense_images
from gradprune.defenses import DefenseResult
from gradprune.errors import require
from gradprune.evaluation import Metrics, der, replay
from gradprune.paths import output_folder, write_atomic
from gradprune.pruning import filter_scores, pair_up
from gradprune.views.picture import Picture, count
from gradprune.views.plots import before_after, examples, loss_curves, pruning_trajectory, score_heatmap
from gradprune.views.style import METRICS
from gradprune.zoo import Victim

_REPLAYED = 6000  # images that the replay looks at, in all rounds together: about 3 seconds on one core
_LISTED = 60      # removed filters that are listed one by one
_DEFINITIONS = {
    "ACC": "Clean accuracy: the share of all test images, as they are, that get their true class. "
           "Higher is better.",
    "ASR": "Attack success rate: with the trigger put on the test images of all other classes, the share "
           "that is taken for the attacker’s target. Lower is better.",
    "RA": "Robust accuracy: of the same triggered images, the share that still get their true class. Higher "
          "is better. A model that answers wrongly, but not with the target, has a low ASR and a low RA.",
    "DER": "Defence effectiveness rating: what the defence took from ASR, less what it cost in ACC, on a "
           "scale from 0% to 100% where 50% is no effect.",
}
_EXPLAINED = {
    "examples": "The same images, clean and with the trigger, shown to the model before and after the "
                "defence. They are the first test image of each class: nobody picked them for their looks.",
    "scores": "The unlearning loss is the model’s error on triggered images when their true class is asked "
              "for. It is high while the backdoor lives, and its gradient points at the filters that carry "
              "it. Each cell is one filter of the attacked model: the higher its score, the sooner it is "
              "removed.",
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
    sample = _first_of_each_class(victim.data.test, _REPLAYED // (2 * len(rounds)))
    figures = {}
    for name, picture in _pictures(victim, result, stages, sample).items():
        png = picture.save(folder / f"{name}.png").read_bytes()
        text = f"<p>{_EXPLAINED[name].format(sample=len(sample))}</p>" if name in _EXPLAINED else ""
        figures[name] = f'{text}<div class="wide">{picture.html(png)}</div>'
    page = _page(victim, result, stages, figures)
    return write_atomic(folder / "report.html", lambda temporary: temporary.write_text(page, "utf-8"))


def _pictures(victim: Victim, result: DefenseResult, stages: Mapping[str, Metrics],
              sample: ImageSet) -> dict[str, Picture]:
    """All figures by name; the scores are taken again from the defence images that the settings say."""
    found, kept, settings = result.mask.filters, result.mask.positions, result.settings
    score = settings.get("score", "gradient")
    images = draw_defense_images(victim.data.defense, settings.get("spc", 10), settings.get("seed", 0))
    pairs = pair_up(images.train, victim.trigger, next(victim.model.parameters()).device)
    scores, _ = filter_scores(victim.model, found, pairs.triggered, pairs.labels, score)
    replayed = replay(victim.model, result.history, sample, victim.trigger, victim.target)
    models = {"before": victim.model, "after": result.model}
    pictures = {
        "examples": examples(models, victim.data.test, victim.trigger, victim.target),
        "before_after": before_after(stages),
        "scores": score_heatmap(found, scores, kept, score=score),
        "trajectory": pruning_trajectory(result.history, replayed, len(kept)),
    }
    return pictures | ({"fine_tuning": loss_curves(result.history)} if result.rows("tune") else {})


def _first_of_each_class(images: ImageSet, total: int) -> ImageSet:
    """The first images of every class, equally many: about `total` in all, 5 to 50 of each."""
    each = max(5, min(50, total // len(images.classes)))
    labels = torch.arange(len(images.classes))
    return images.subset(torch.cat([(images.labels == label).nonzero()[:each, 0] for label in labels]))


# ---- what it says


def _verdict(before: Metrics, after: Metrics) -> str:
    if before.asr < 0.1:
        return "There was no backdoor to remove"
    if after.asr <= 0.05:
        return "The backdoor no longer works"
    return "The backdoor is weaker but still there" if after.asr <= before.asr / 2 else "The defence failed"


def _story(victim: Victim, result: DefenseResult, before: Metrics, after: Metrics) -> str:
    """The whole run in one paragraph (HTML)."""
    removed, total = len(result.mask.positions), len(result.mask.filters)
    done = f"removed <b>{removed} of {count(total, 'filter')}</b>" if removed else "found no filter to remove"
    return (f"The model gives {before.acc:.1%} of clean images their true class. With the attacker’s trigger "
            f"on them, {before.asr:.1%} of the images of all other classes are taken for "
            f"<b>{escape(victim.target_name)}</b>. Grad-Prune got {result.settings.get('spc', 'a few')} "
            f"clean images of each class and the trigger. It {done}"
            + f" and fine-tuned the {'rest' if removed else 'model'}" * bool(result.rows("tune"))
            + f". Now the trigger works on <b>{after.asr:.1%}</b> of the images, {after.ra:.1%} of the "
              f"triggered images get their true class, and so do {after.acc:.1%} of the clean ones."
            + " The run was interrupted: this is the state that it had reached." * result.interrupted)


def _removed(result: DefenseResult) -> str:
    """The removed filters in the order in which they fell, and why pruning stopped (HTML)."""
    rows = {(row["layer"], row["index"]): row for row in result.rows("prune")}
    forms = {"score": ".3g", "val_unlearning_loss": ".3f", "val_acc": ".1%"}
    lines = []
    for place, filter_ in enumerate(result.mask.removed, 1):
        row = rows.get(filter_, {})
        figures = [format(row[key], form) if key in row else "" for key, form in forms.items()]
        lines.append([str(place), str(filter_), *figures])
    head = ["round", "filter", "score", "validation unlearning loss", "validation accuracy"]
    text = _table(lines[:_LISTED], head) if lines else "<p>Nothing: what was tried was taken back.</p>"
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
             "poison rate": "" if rate is None else f"{rate:.1%}",
             **{key: str(value) for key, value in result.settings.items()},
             **{f"seconds, {stage}": f"{seconds:.2f}" for stage, seconds in result.seconds.items()},
             "weights, sha256": digest[:16], "gradprune": __version__,
             "torch": torch.__version__.split("+")[0]}
    return [[key, value] for key, value in facts.items() if value]


def _reproduce(victim: Victim, result: DefenseResult) -> str:
    """Python that repeats the run."""
    card, start = victim.card, 'gp.load_victim("...")  # the checkpoint that this page is about'
    if {"attack", "data", "model", "training"} <= set(card):
        attack, known = card["attack"], ("num_classes", "channels", "epochs_done", "interrupted")
        model, training = ({key: value for key, value in card[part].items() if key not in known}
                           for part in ("model", "training"))
        made = {"data": Path(card["data"]["name"]).name, "target": victim.target, "rate": attack.get("rate"),
                "trigger_settings": attack.get("settings", {}), "model": model, **training}
        start = f"gp.attack({attack['trigger']!r}, {_arguments(made)})"
    settings = result.settings if result.rows("tune") else {**result.settings, "tune": False}
    defense = f"victim.model, victim.data.defense, victim.trigger, {_arguments(settings)}"
    return (f"import gradprune as gp\n\nvictim = {start}\nresult = gp.grad_prune({defense})\n"
            "print(victim.evaluate(), victim.evaluate(result.model))\n")


def _arguments(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())


# ---- how it looks


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = (), caption: str = "") -> str:
    """A table of plain texts; the first cell of each row is its heading."""
    top = "<thead><tr>" + "".join(f'<th scope="col">{escape(text)}</th>' for text in head) + "</tr></thead>"
    body = "".join(f'<tr><th scope="row">{escape(first)}</th>'
                   + "".join(f"<td>{escape(text)}</td>" for text in rest) + "</tr>" for first, *rest in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}{top if head else ""}<tbody>{body}</tbody></table></div>'


def _page(victim: Victim, result: DefenseResult, stages: Mapping[str, Metrics],
          figures: Mapping[str, str]) -> str:
    before, *_, after = stages.values()
    verdict = _verdict(before, after)
    moves = {key: f"{getattr(before, key):.1%} → <b>{getattr(after, key):.1%}</b>" for key in METRICS}
    tiles = "".join(f'<div class="tile {key}"><dt>{mark.name}</dt><dd class="figures">{moves[key]}</dd>'
                    f"<dd>{mark.meaning}</dd></div>" for key, mark in METRICS.items())
    rows = [[name, *(f"{value:.1%}" for value in (*metrics, der(before, metrics)))]
            for name, metrics in stages.items()]
    rows[0][-1] = ""  # a rating of the model against itself says nothing
    results = _table(rows, ["stage", *_DEFINITIONS],
                     f"Measured on {len(victim.data.test)} test images; the defence saw none of them.")
    terms = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in _DEFINITIONS.items())
    sections = {
        "What the model says": figures["examples"],
        "Before and after": f'{figures["before_after"]}{results}<dl class="terms">{terms}</dl>',
        "Which filters carry the backdoor": figures["scores"],
        "Pruning, round by round": figures["trajectory"],
        "Fine-tuning": figures.get("fine_tuning", ""),
        "What was removed": _removed(result),
        "Settings": _table(_settings(victim, result)),
        "Do it again": f"<pre><code>{escape(_reproduce(victim, result))}</code></pre>",
    }
    body = "".join(f"<section><h2>{title}</h2>{text}</section>" for title, text in sections.items() if text)
    return _SHELL.format(css=_CSS, title=escape(f"{verdict}: {victim.trigger.name}"), verdict=verdict,
                         story=_story(victim, result, before, after), tiles=tiles, body=body)


_SHELL = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{css}</style>
</head>
<body><main>
<header><h1>{verdict}</h1><p class="lead">{story}</p><dl class="tiles">{tiles}</dl></header>
{body}
<footer>Method: Dunnett, Arablouei, Miller, Dedeoglu, Jurdak: “Unlearning Backdoor Attacks through
Gradient-Based Model Pruning”, 2024, arXiv:2405.03918.</footer>
</main></body>
</html>
"""

_CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #59636b; --paper: #fff; --card: #f5f6f8;
  --line: #d9dde1; --acc: #0072b2; --asr: #c45500; --ra: #007f5c }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --faint: #a5adb4; --paper: #16191d;
  --card: #21262b; --line: #3a4147; --acc: #5db7ec; --asr: #ff9350; --ra: #4cc9a0 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif }
main { max-width: 56rem; margin: 0 auto; padding: 1.5rem 1.1rem 3rem }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .4rem 0 .6rem }
h2 { font-size: 1.25rem; margin: 0 0 .5rem }
section, footer { border-top: 1px solid var(--line); margin-top: 1.8rem; padding-top: 1.3rem }
p { margin: .5rem 0; max-width: 47rem }
.lead { font-size: 1.1rem; max-width: none }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(15.5rem, 1fr)); gap: .7rem;
  margin: 1.1rem 0 0 }
.tile { background: var(--card); border-left: 5px solid var(--tone); border-radius: 6px;
  padding: .6rem .9rem }
.acc { --tone: var(--acc) } .asr { --tone: var(--asr) } .ra { --tone: var(--ra) }
.tile dt { color: var(--tone); font-weight: 700 }
.tile dd { margin: 0; color: var(--faint); font-size: .9rem }
.tile .figures { color: var(--ink); font-size: 1.3rem }
.figures, table { font-variant-numeric: tabular-nums }
.wide { overflow-x: auto; margin: .6rem 0 }
figure img { display: block; min-width: 560px; background: #fff }
figcaption, caption, footer { color: var(--faint); font-size: .9rem }
figcaption { margin-top: .4rem; position: sticky; left: 0; max-width: min(47rem, calc(100vw - 2.2rem)) }
table { border-collapse: collapse }
caption { caption-side: bottom; text-align: left; padding-top: .4rem }
th, td { text-align: left; padding: .3rem 1.3rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top }
thead th { color: var(--faint); font-weight: 600 }
td { overflow-wrap: anywhere }
.terms { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; max-width: 47rem }
.terms dt { font-weight: 700 }
.terms dd { margin: 0 }
pre { background: var(--card); border-radius: 6px; padding: .8rem 1rem; margin: 0; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere }
@media print {
  :root { color-scheme: light; --ink: #000; --faint: #444; --paper: #fff; --card: #f5f6f8; --line: #bbb }
  body { font-size: 10.5pt } main { max-width: none; padding: 0 } .wide { overflow: visible }
  figure img { min-width: 0 } section, figure, tr, .tile, pre { break-inside: avoid }
  .tiles { grid-template-columns: repeat(3, 1fr) }
}
"""
