"""The page around the sections: self-contained, without scripts or external addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

from common.markup import Html

STYLE: LiteralString = """
:root{color-scheme:light dark;--ink:#1c1c1e;--soft:#5f6368;--line:#d9dce1;--paper:#fff;--panel:#f6f7f9;--a:#1f5fa8;--b:#b3261e;--c:#1b6e4b;--d:#8a5a00}
@media (prefers-color-scheme:dark){:root{--ink:#e9e9ec;--soft:#a2a7af;--line:#3a3d44;--paper:#16171a;--panel:#202227;--a:#7db1f0;--b:#ff8a80;--c:#6fd3a4;--d:#f0b95a}}
*{box-sizing:border-box}body{margin:0 auto;padding:2rem 1.2rem 4rem;max-width:72rem;font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .3rem}h2{font-size:1.2rem;margin:2.4rem 0 .6rem;border-bottom:1px solid var(--line);padding-bottom:.25rem}
h3{font-size:1rem;margin:1.4rem 0 .3rem}p{max-width:46rem;margin:.4rem 0}.soft,figcaption{color:var(--soft);font-size:.88rem}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}th,td{text-align:left;padding:.28rem .9rem .28rem 0;
border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right}.n{white-space:nowrap}.scroll{overflow-x:auto}.big{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.2rem 0}
.big div{background:var(--panel);border-radius:.5rem;padding:.7rem 1rem;min-width:13rem;flex:1}.big b{display:block;font-size:1.9rem;line-height:1.2}
.charts{display:flex;flex-wrap:wrap;gap:1rem}figure{margin:0 0 1rem}img{max-width:100%;height:auto}img.px{image-rendering:pixelated}
.grid{display:flex;flex-wrap:wrap;gap:.8rem}.grid figure{width:8rem}.grid img{width:100%;display:block;border-radius:.2rem;margin-bottom:2px}
.forget img{outline:2px solid var(--b);outline-offset:-2px}details{margin:.6rem 0}summary{cursor:pointer}code{overflow-wrap:anywhere}
.scroll img{max-width:max(100%,60rem)}
svg{max-width:100%;height:auto;background:var(--panel);border-radius:.5rem;padding:.4rem}.scroll svg{max-width:max(100%,40rem)}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}svg text.t{fill:var(--ink);font-weight:600;font-size:12px}
svg .g{stroke:var(--line)}svg .e{stroke:var(--soft);opacity:.6}
svg .i{stroke:var(--b);stroke-width:3;opacity:.45;stroke-linecap:round}svg .h{fill:none;stroke:var(--soft);stroke-width:1.6}
svg polyline{fill:none;stroke-width:1.8}svg .s0{stroke:var(--a)}svg .s1{stroke:var(--b)}svg .s2{stroke:var(--c)}svg .s3{stroke:var(--d)}
svg circle.s0{fill:var(--a)}svg circle.s1{fill:var(--b)}svg circle.s2{fill:var(--c)}svg circle.s3{fill:var(--d)}
@media print{body{max-width:none;padding:0;font-size:11pt}h2{break-after:avoid}figure,table,svg{break-inside:avoid}}
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The browser itself refuses scripts and requests, in case a text gets past the escaping."""


def page(title: str, sections: Sequence[Html]) -> Html:
    """The whole file."""
    return Html.fill(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        "<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n",
        policy=Html(POLICY),
        title=title,
        style=Html(STYLE),
        body=Html.join([section for section in sections if section], by="\n"),
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: int | None = None) -> Html:
    """A table of texts; the columns from `numbers` on are aligned right."""

    def cells(row: Sequence[str], tag: LiteralString) -> Html:
        return Html.join(
            Html.fill(
                "<{tag}{mark}>{text}</{tag}>",
                tag=tag,
                mark=Html("" if numbers is None or column < numbers else ' class="n"'),
                text=text,
            )
            for column, text in enumerate(row)
        )

    head = Html.fill("<thead><tr>{cells}</tr></thead>", cells=cells(header, "th")) if any(header) else ""
    body = Html.join(Html.fill("<tr>{cells}</tr>", cells=cells(row, "td")) for row in rows)
    return Html.fill(
        '<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>', head=head, body=body
    )
