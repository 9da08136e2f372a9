"""What notebook 00 uses: its first picture, and the checks of `gradprune.cli.doctor` as a list to look at."""

import html

import torch
from PIL import Image

from gradprune.attacks import make_trigger
from gradprune.cli import doctor
from gradprune.datasets import load
from gradprune.lessons.runtime.notebook_setup import show

_LOOKS = {True: ("#007F5C", "✔"), "warn": ("#C45500", "!"), False: ("#DD2C40", "✘")}
_STOP, _SIDE = 1, 256  # which of the stop signs, and how many pixels wide it is shown
_LONGEST = 90  # characters of a finding: a list of versions is cut; advice never is


def story() -> Image.Image:
    """The picture that notebook 00 opens with, before anything runs: a stop sign without and with the sticker."""
    signs = load("signs").test
    stop = signs.subset(signs.labels == signs.classes.index("stop")).floats()[_STOP][None]
    pair = (torch.cat([stop, make_trigger("badnets")(stop)]) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    picture = Image.new("RGB", (2 * _SIDE + 32, _SIDE), "white")
    for place, pixels in enumerate(pair):
        large = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
        picture.paste(large, (place * (_SIDE + 32), 0))
    return picture


def checklist() -> None:
    """Check the machine and show a line for each check: ✔ fine, ! usable with limits, ✘ to be fixed, and how."""
    lines, texts, failed = [], [], []
    for check in doctor.checks():
        color, symbol = _LOOKS[check.ok]
        cut = check.ok is True and len(check.found) > _LONGEST
        found = check.found[:_LONGEST].rsplit(",", 1)[0] + ", ..." if cut else check.found
        advice = f"What to do: {check.advice}" if check.advice else ""
        text = f"<b>{html.escape(check.name)}</b>: {html.escape(found)}" + f"<br>{html.escape(advice)}" * bool(advice)
        lines.append(f'<li style="list-style:none"><b style="color:{color}">{symbol}</b> {text}</li>')
        texts.append(f"{symbol} {check.name}: {found} {advice}".rstrip())
        failed += [check.name] * (check.ok is False)
    verdict = f"To be fixed: {', '.join(failed)}." if failed else "This machine is ready."
    show(f'<ul role="status" style="padding-left:0.5em">{"".join(lines)}</ul><b>{html.escape(verdict)}</b>',
         "\n".join([*texts, verdict]))
