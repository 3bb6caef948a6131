"""A figure as SVG inside a page: selectable text, colours and fonts that follow the page, ids and values of its own."""

import io
from xml.etree import ElementTree

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from jaxsat.report.figures import DARK, PAPER, STYLE

_LINK = "{http://www.w3.org/1999/xlink}href"


def settle(figure: Figure) -> None:
    """Ends the layout, so that every format shows the same drawing."""
    with matplotlib.rc_context(STYLE):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def render(figure: Figure, kind: str) -> bytes:
    """Bytes without a date; on white, except for SVG, which takes the page's background."""
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        paper = "none" if kind == "svg" else PAPER
        figure.savefig(buffer, format=kind, dpi=200, facecolor=paper, metadata=dates[kind])
    return buffer.getvalue()


def inline(figure: Figure, name: str, label: str) -> str:
    """The <svg> element. Its ids begin with `name`.

    Every labelled line becomes a group with its name and its values (data-label, data-x, data-y), which the page's
    script shows under the pointer. Colours of `DARK` become the page's variables: --0072b2 for #0072b2.
    """
    lines = {}
    for line in (line for ax in figure.axes for line in ax.lines):
        if len(line.get_xdata()) and not line.get_label().startswith("_"):
            line.set_gid(f"line{len(lines)}")
            lines[line.get_gid()] = line
    root = ElementTree.fromstring(render(figure, "svg"))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # inside a page SVG needs no namespace
    for tag in ("metadata", "style"):  # a rule for all elements would hold outside of the drawing too
        for parent in list(root.iter()):
            for child in parent.findall(tag):
                parent.remove(child)
    used = set()
    for element in root.iter():
        if line := lines.get(element.get("id")):
            x, y = line.get_xydata().T
            element.attrib |= {"data-label": line.get_label(), "data-x": _numbers(x), "data-y": _numbers(y)}
        if _LINK in element.attrib:
            target = element.attrib.pop(_LINK).removeprefix("#")
            element.set("href", f"#{name}-{target}")
            used.add(target)
        if (clip := element.get("clip-path")) is not None:
            target = clip.removeprefix("url(#").removesuffix(")")
            element.set("clip-path", f"url(#{name}-{target})")
            used.add(target)
        if "style" in element.attrib:
            element.set("style", _style(element.get("style")))
        element.text, element.tail = (
            text and (text if text.strip() else "\n") for text in (element.text, element.tail)
        )
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used:
            element.set("id", f"{name}-{own}")
    box = root.get("viewBox")
    root.attrib.clear()
    rule = "stroke-linejoin: round; stroke-linecap: butt"
    root.attrib |= {"viewBox": box, "role": "img", "aria-label": label, "style": rule}
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _style(text: str) -> str:
    """Its declarations, with the page's colours and font."""
    declarations = [declaration.partition(":")[::2] for declaration in text.split(";")]
    own = {key.strip(): value.strip() for key, value in declarations}
    shown = {key: f"var(--{value[1:]})" if value in DARK else value for key, value in own.items()}
    if "font-family" in shown:
        shown["font-family"] = "var(--sans)"
    return "; ".join(f"{key}: {value}" for key, value in shown.items())


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.5g}" for value in values)
