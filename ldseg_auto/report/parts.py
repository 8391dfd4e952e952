"""Paragraphs, tables and plots of an HTML page; all text is escaped here."""

from __future__ import annotations

import html
import io
import re
import zlib
from collections.abc import Callable, Sequence

from matplotlib import rc_context, rcParamsDefault
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure


def paragraph(sentence: str) -> str:
    """A sentence as <p>."""
    return f"<p>{html.escape(sentence)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] | None = None) -> str:
    """Cells of text; rows that are `marked` have the class `chosen`."""
    body = "".join(f"<tr{' class=chosen' if mark else ''}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
                   + "</tr>" for row, mark in zip(rows, marked or [False] * len(rows), strict=True))
    cells = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in head)
    return f"<div class=scroll><table><tr>{cells}</tr>{body}</table></div>"


def plot(draw: Callable[[Axes], None], description: str, caption: str = "",
         inches: tuple[float, float] = (7, 3.2)) -> str:
    """What `draw` draws, as SVG within the page, in the page's own text colour.

    Args:
        description: what is read out in place of the picture.
        caption: what stands below it.
    """
    with rc_context(rcParamsDefault), rc_context({"svg.hashsalt": "ldseg"}):  # nnU-Net's logger sets large fonts
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    # within HTML no namespaces are declared, and matplotlib's metadata name web pages: this page names none
    svg = re.sub(r"<metadata>.*?</metadata>| xmlns(:\w+)?=\"[^\"]*\"", "", text[text.index("<svg"):], flags=re.DOTALL)
    svg = svg.replace("<svg", "<svg fill='currentColor'", 1)
    svg = svg.replace("#000000", "currentColor").replace("#ffffff", "none")
    prefix = f"p{zlib.crc32(svg.encode()):08x}-"  # ids are the page's: those of two plots must not be the same
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{prefix}", svg)
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return f'<figure class=plot><div role=img aria-label="{html.escape(description)}">{svg}</div>{below}</figure>'
