"""What notebook 00 leans on: the checks of `gradprune.doctor` as a list to look at."""

import html

from gradprune import doctor
from gradprune.lessons.session import show

_LOOKS = {True: ("#007F5C", "✔"), "warn": ("#C45500", "!"), False: ("#B00020", "✘")}
_LONGEST = 90  # characters of a finding: a list of versions is cut, what to do never is


def checklist() -> None:
    """Check the machine and show a line for each check: ✔ fine, ! usable with limits, ✘ to be mended, and how."""
    done = doctor.checks()
    lines, texts = [], []
    for check in done:
        color, symbol = _LOOKS[check.ok]
        cut = check.ok is True and len(check.found) > _LONGEST
        found = check.found[:_LONGEST].rsplit(",", 1)[0] + ", ..." if cut else check.found
        advice = f"What to do: {check.advice}" if check.advice else ""
        text = f"<b>{html.escape(check.name)}</b>: {html.escape(found)}" + f"<br>{html.escape(advice)}" * bool(advice)
        lines.append(f'<li style="list-style:none"><b style="color:{color}">{symbol}</b> {text}</li>')
        texts.append(f"{symbol} {check.name}: {found} {advice}".rstrip())
    failed = [check.name for check in done if check.ok is False]
    verdict = f"To be mended: {', '.join(failed)}." if failed else "This machine is ready."
    show(f'<ul role="status" style="padding-left:0.5em">{"".join(lines)}</ul><b>{html.escape(verdict)}</b>',
         "\n".join([*texts, verdict]))
