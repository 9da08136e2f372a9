"""The look of our HTML pages: one shell without network access, one style sheet, one table, the definitions."""

from collections.abc import Mapping, Sequence
from html import escape

DEFINITIONS = {
    "ACC": "Clean accuracy: the share of all test images, as they are, that get their true class. "
           "Higher is better.",
    "ASR": "Attack success rate: with the trigger put on the test images of all other classes, the share "
           "that is taken for the attacker’s target. Lower is better.",
    "RA": "Robust accuracy: of the same triggered images, the share that still get their true class. Higher "
          "is better. A model that answers wrongly, but not with the target, has a low ASR and a low RA.",
    "DER": "Defence effectiveness rating: what the defence took from ASR, less what it cost in ACC, on a "
           "scale from 0% to 100% where 50% is no effect.",
}


def page(title: str, lead: str, sections: Mapping[str, str], top: str = "", heading: str = "") -> str:
    """A whole page. title, heading (where it differs) and the sections’ titles are plain texts, the rest is HTML.

    lead: the first paragraph; top: what follows it in the header. Sections without content are left out.
    """
    body = "".join(f"<section><h2>{escape(name)}</h2>{text}</section>" for name, text in sections.items() if text)
    return _SHELL.format(css=_CSS, title=escape(title), heading=escape(heading or title), lead=lead, top=top, body=body)


def terms(definitions: Mapping[str, str] = DEFINITIONS) -> str:
    """Terms with their meaning, plain texts."""
    return ('<dl class="terms">' + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>"
                                           for name, text in definitions.items()) + "</dl>")


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = (), caption: str = "", kind: str = "") -> str:
    """A table of plain texts; the first cell of each row is its heading.

    kind "cells" is for wide tables of figures: lines break where the text does, and the first column stays in sight.
    """
    top = "<thead><tr>" + "".join(f'<th scope="col">{escape(text)}</th>' for text in head) + "</tr></thead>"
    body = "".join(f'<tr><th scope="row">{escape(first)}</th>'
                   + "".join(f"<td>{escape(text)}</td>" for text in rest) + "</tr>" for first, *rest in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    look = f"wide {kind}".strip()
    return f'<div class="{look}"><table>{title}{top if head else ""}<tbody>{body}</tbody></table></div>'


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
<header><h1>{heading}</h1><p class="lead">{lead}</p>{top}</header>
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
.cells table { font-size: .87rem }
.cells th, .cells td { white-space: pre; padding-right: 1rem }
@media screen and (min-width: 60rem) { .cells { position: relative; left: 50%; translate: -50%; width: max-content;
  min-width: 100%; max-width: calc(100vw - 3rem) } }
.cells tbody th, .cells thead th:first-child { position: sticky; left: 0; background: var(--paper) }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .3rem }
.terms { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; max-width: 47rem }
.terms dt { font-weight: 700 }
.terms dd { margin: 0 }
pre { background: var(--card); border-radius: 6px; padding: .8rem 1rem; margin: 0; font-size: .85rem;
  white-space: pre-wrap; overflow-wrap: anywhere }
@media print {
  :root { color-scheme: light; --ink: #000; --faint: #444; --paper: #fff; --card: #f5f6f8; --line: #bbb }
  body { font-size: 10.5pt } main { max-width: none; padding: 0 } .wide { overflow: visible }
  figure img { min-width: 0 } section, figure, tr, .tile, pre { break-inside: avoid }
  .tiles { grid-template-columns: repeat(3, 1fr) } .cells table { font-size: 7pt }
}
"""
