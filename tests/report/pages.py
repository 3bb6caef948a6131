"""What tests of pages share: claims of every verdict, and what a page loads, links to and says."""

import math
from html.parser import HTMLParser

import pandas as pd

from jaxsat.claims import Claim, Estimate, Paper, above, judge
from jaxsat.results import NotMeasured, Results

GODEY = Paper("godey2024", "Godey et al.", 2024, "Why do small models underperform?", "arXiv:2404.07647")
OTHER = Paper("other2026", "Other et al.", 2026, "Geometry", "arXiv:2602.20433")
EMPTY = Results("laptop", pd.DataFrame(), pd.DataFrame())


def missing(results: Results) -> Estimate:
    raise NotMeasured("document_loss of probe")


def claim(id: str, value=None, low=None, high=None, n=12, *, needs="", kind="paper", paper=GODEY, origin="secondary"):
    estimate = missing if value is None else lambda r: Estimate(value, low, high, "%", "rise of the loss over runs", n)
    says = f"The loss <goes> up by more than 0.2 %: {id}."
    return Claim(id, says, paper, "8 %", origin, estimate, above(0.2), lambda r: needs, kind=kind)


JUDGED = [
    judge(each, EMPTY)
    for each in (
        claim("up", 1.2, 0.4, 2.1),
        claim("down", -1.2, -1.5, -0.3),
        claim("between", 1.0, -math.inf, 2.3),
        claim("untested", 1.0, 0.5, 2.0, needs="no run has seen 21,000 tokens a parameter: `jaxsat plan`"),
        claim("unmeasured"),
        claim("later", 2.0, 1.0, 3.0, kind="follow-up", paper=OTHER),
        claim("theorem", 2.0, 1.9, 2.1, kind="check", origin="derived"),
    )
]


class Page(HTMLParser):
    """What a page loads, links to and says, and whether its tags close in order."""

    VOID = {"meta", "link", "img", "br", "wbr"}

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.links, self.ids, self.references, self.text, self.open = [], [], [], [], "", []
        self.names: set[str] = set()  # of tags and attributes
        self.feed(text)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.text += " "
        attrs = dict(attrs)
        self.names |= {tag, *attrs}
        loading = ("src", "srcset", "data", "poster") if tag not in ("a",) else ()
        self.loads += [attrs[k] for k in loading if k in attrs] + ([attrs["href"]] if tag == "link" else [])
        self.references += [attrs["href"][1:]] if tag == "use" else []
        self.references += [attrs["clip-path"][5:-1]] if "clip-path" in attrs else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data
