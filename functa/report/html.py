"""The frame of a self-contained page: style, sections, tables, trees. No script, no other file."""

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from functa.report import charts
from functa.runtime import image_io

STYLE = """
:root { color-scheme: light dark;
  --paper: #faf9f6; --card: #ffffff; --ink: #1f2430; --soft: #626a78; --line: #e4e2db;
  --grid: #ecebe6; --accent: #3257d6; --hit: 50 87 214; --miss: 206 82 35;
  --c0: #3257d6; --c1: #d9702b; --c2: #1f9a74; --c3: #9b4fc4; --c4: #b98a12; --c5: #6b7280; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14161c; --card: #1c1f27; --ink: #e8e9ee; --soft: #9ba2b0; --line: #2d313c;
  --grid: #282c36; --accent: #8ca6ff; --hit: 92 124 245; --miss: 232 112 62;
  --c0: #86a2ff; --c1: #f2985c; --c2: #4cc9a0; --c3: #c58ae8; --c4: #e0b64a; --c5: #9aa1ad; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 40px; }
h1 { font-size: clamp(1.7rem, 5vw, 2.5rem); line-height: 1.15; margin: 0 0 8px;
  letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 0 0 4px; letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 26px 0 8px; }
p { margin: 0 0 14px; max-width: 72ch; }
header p, .lead, .note { color: var(--soft); }
.note { font-size: .85rem; margin: 10px 0 0; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 14px 0 0; font-size: .9rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.tiles { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr));
  margin: 24px 0 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 14px 18px; }
.tile b { display: block; font-size: 1.75rem; line-height: 1.2; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; font-weight: 650; }
.tile b small { font-size: .95rem; font-weight: 500; color: var(--soft); letter-spacing: 0; }
.tile span { color: var(--soft); font-size: .85rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 16px;
  padding: 22px 24px 26px; margin: 22px 0; scroll-margin-top: 12px; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
caption { text-align: left; font-weight: 600; padding: 18px 0 6px; }
caption span { font-weight: 400; color: var(--soft); }
.results td { border-top: 1px solid var(--line); padding: 6px 14px 6px 0; vertical-align: top; }
.results td:first-child { width: 26%; overflow-wrap: anywhere; }
.results .value { text-align: right; font-variant-numeric: tabular-nums; font-weight: 600;
  width: 16%; overflow-wrap: anywhere; }
.results .unit { color: var(--soft); width: 11%; }
.results .meaning { color: var(--soft); padding-right: 0; }
img { display: block; width: 100%; height: auto; border-radius: 4px; }
img.pixels { image-rendering: pixelated; }
figure { margin: 0; min-width: 0; }
figcaption { color: var(--soft); font-size: .82rem; margin-top: 4px;
  font-variant-numeric: tabular-nums; }
.pairs { display: grid; gap: 18px 22px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 230px), 1fr)); }
.trio { display: grid; grid-template-columns: repeat(3, 1fr); gap: 3px; }
.trio img { border-radius: 3px; }
.framed { outline: 1px solid var(--line); outline-offset: -1px; }
.latents { display: grid; grid-template-columns: minmax(40px, 74px) 1fr; gap: 10px 14px;
  align-items: center; }
.channels { display: grid; grid-template-columns: repeat(16, 1fr); gap: 5px; }
.row { display: flex; gap: 12px; overflow-x: auto; padding-bottom: 8px; margin-bottom: 12px;
  scroll-snap-type: x proximity; }
.row figure { flex: 1 0 0; scroll-snap-align: start; }
.film figure { min-width: 96px; max-width: 190px; }
.scales figure { min-width: min(230px, 66vw); }
.charts { display: grid; gap: 20px 26px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); }
.chart b { font-size: .92rem; }
.legend { display: flex; flex-wrap: wrap; gap: 0 16px; font-size: .82rem; color: var(--soft);
  font-variant-numeric: tabular-nums; min-height: 1.3em; }
.legend i { display: inline-block; width: 14px; height: 3px; border-radius: 2px;
  margin-right: 6px; vertical-align: middle; background: var(--s); }
.legend .dashed { background: none; border-top: 2px dashed var(--soft); height: 0; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 11.5px; fill: var(--soft); font-family: inherit; }
.grid { stroke: var(--grid); } .axis { stroke: var(--soft); opacity: .55; }
.reference { stroke: var(--soft); stroke-dasharray: 5 4; stroke-width: 1.4; }
.curve { fill: none; stroke: var(--s); stroke-width: 1.9; stroke-linejoin: round; }
.dot { fill: var(--s); }
.bar { fill: var(--s); fill-opacity: .62; }
.mean { stroke: var(--s); stroke-width: 1.6; stroke-dasharray: 5 3; }
.series-0 { --s: var(--c0); } .series-1 { --s: var(--c1); } .series-2 { --s: var(--c2); }
.series-3 { --s: var(--c3); } .series-4 { --s: var(--c4); } .series-5 { --s: var(--c5); }
.scroll { overflow-x: auto; padding-bottom: 6px; }
.confusion { width: auto; font-size: .82rem; font-variant-numeric: tabular-nums;
  border-collapse: separate; border-spacing: 2px; }
.confusion td { width: 46px; min-width: 27px; height: 34px; padding: 0 2px; text-align: center;
  border-radius: 4px; background: rgb(var(--hue) / var(--a)); }
.confusion td.none { color: var(--soft); opacity: .5; }
.confusion td.strong { color: #fff; }
.confusion .right { --hue: var(--hit); } .confusion .wrong { --hue: var(--miss); }
.confusion td.recall { background: none; color: var(--soft); padding-left: 8px;
  white-space: nowrap; }
.confusion th { font-weight: 500; color: var(--soft); padding: 0 5px; text-align: right; }
.confusion thead th { text-align: center; vertical-align: bottom; padding: 4px 0; }
.confusion .upright span { writing-mode: vertical-rl; transform: rotate(180deg); }
.matrix { max-width: 640px; }
details { border-top: 1px solid var(--line); }
details details { margin-left: 16px; }
summary { cursor: pointer; padding: 6px 0; font-weight: 550; }
.leaves { display: grid; grid-template-columns: minmax(120px, 32%) 1fr; gap: 2px 14px;
  margin: 0 0 8px 16px; font-size: .9rem; }
.leaves dt { color: var(--soft); overflow-wrap: anywhere; }
.leaves dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
footer { color: var(--soft); font-size: .85rem; padding-bottom: 40px; }
@media (max-width: 640px) {
  header, main, footer { padding-left: 12px; padding-right: 12px; }
  header { padding-top: 24px; }
  section { padding: 18px 14px 20px; border-radius: 14px; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 8px; }
  .tile { padding: 12px 14px; } .tile b { font-size: 1.4rem; }
  .results tr { display: grid; grid-template-columns: 1fr auto auto; column-gap: 8px;
    border-top: 1px solid var(--line); padding: 7px 0; }
  .results td { border: 0; padding: 0; }
  .results td:first-child, .results .value, .results .unit { width: auto; }
  .results .unit:empty { display: none; } .results .value:has(+ .unit:empty) { grid-column: 2 / 4; }
  .results .meaning { grid-column: 1 / -1; font-size: .85rem; }
  .channels { grid-template-columns: repeat(8, 1fr); gap: 3px; }
  .confusion { font-size: .72rem; border-spacing: 1px; }
  .confusion td { width: 24px; min-width: 24px; height: 28px; padding: 0; }
  .confusion th { padding: 0 3px; } .confusion td.recall { padding-left: 4px; }
}
@media print { section { break-inside: avoid; } nav { display: none; } }
"""


class Section(NamedTuple):
    """anchor: word for links; title and lead: plain text; body: HTML."""

    anchor: str
    title: str
    lead: str
    body: str


class Tile(NamedTuple):
    """One number to see first, all plain text."""

    value: str
    unit: str
    label: str


def page(*, title: str, lead: str, tiles: Sequence[Tile], sections: Sequence[Section]) -> str:
    """A complete HTML document."""
    links = "".join(f'<a href="#{one.anchor}">{escape(one.title)}</a>' for one in sections)
    numbers = "".join(
        f'<div class="tile"><b>{escape(tile.value)} <small>{escape(tile.unit)}</small></b>'
        f"<span>{escape(tile.label)}</span></div>"
        for tile in tiles
    )
    body = "".join(
        f'<section id="{one.anchor}"><h2>{escape(one.title)}</h2>'
        f'<p class="lead">{escape(one.lead)}</p>{one.body}</section>'
        for one in sections
    )
    breakable = escape(title).replace(",", ",<wbr>").replace(":", ":<wbr>")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"</head><body><header><h1>{breakable}</h1><p>{escape(lead)}</p>"
        f'<div class="tiles">{numbers}</div><nav>{links}</nav></header><main>{body}</main>'
        "<footer>Everything is inside this one file: it can be copied, sent and printed.</footer>"
        "</body></html>\n"
    )


def escape(text: Any) -> str:
    return html.escape(str(text))


def image(array: np.ndarray, *, alt: str, kind: str = "pixels") -> str:
    """An array of `pictures.png` as an <img> that holds its own bytes."""
    return f'<img class="{kind}" alt="{escape(alt)}" src="{image_io.data_uri(array)}">'


def figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def tree(values: dict[str, Any], *, unfold: bool) -> str:
    """Nested dicts as folding lists, leaves as they are; lists of numbers as 8 x 8 x 16."""
    leaves = {key: value for key, value in values.items() if not isinstance(value, dict)}
    rows = "".join(
        f"<dt>{escape(key)}</dt><dd>{escape(leaf(value))}</dd>" for key, value in leaves.items()
    )
    inside = f'<dl class="leaves">{rows}</dl>' if rows else ""
    for key, value in values.items():
        if isinstance(value, dict):
            mark = " open" if unfold else ""
            branch = tree(value, unfold=False)
            inside += f"<details{mark}><summary>{escape(key)}</summary>{branch}</details>"
    return inside


def leaf(value: Any) -> str:
    """A configured value as text."""
    if isinstance(value, list | tuple):
        numbers = all(isinstance(one, int | float) for one in value)
        return (" × " if numbers else ", ").join(leaf(one) for one in value)
    return '""' if value == "" else str(value)


def legend(entries: Sequence[str], *, reference: str = "") -> str:
    """Colours of the curves or groups of a chart, and of its dashed reference line."""
    inside = "".join(
        f'<span><i class="series-{index % charts.COLOURS}"></i>{escape(entry)}</span>'
        for index, entry in enumerate(entries)
    )
    if reference:
        inside += f'<span><i class="dashed"></i>{escape(reference)}</span>'
    return f'<div class="legend">{inside}</div>'


def chart(title: str, legend: str, svg: str) -> str:
    """A drawing of `charts` under its title and legend."""
    return f'<div class="chart"><b>{escape(title)}</b>{legend}{svg}</div>'
