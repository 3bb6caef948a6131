import json
import math
from pathlib import Path

import pytest

from jaxsat import verdicts
from jaxsat.claims import Claim, Judged, Paper, above, to_json
from jaxsat.config import InputError
from jaxsat.verdicts import Estimate, Told

HERE = Paper("here2024", "Here & There", 2024, "On small things", "arXiv:0000.00001")
CLAIM = Claim("rise", "It rises by 4 %.", HERE, "4 %", "secondary", lambda r: None, above(0), kind="follow-up")

RISE = {"value": 1, "low": 1, "high": 2, "unit": "", "how": "", "n": 3}


def test_what_a_report_has_written_is_read_back(tmp_path: Path):
    found = Estimate(4.5, 1.25, math.inf, "%", "a rise", 5)
    (tmp_path / "claims.json").write_text(
        to_json([Judged(CLAIM, "reproduced", above(0), found), Judged(CLAIM, "not measured", above(0), needs="a run")])
    )
    shared = ("rise", "Here & There (2024), arXiv:0000.00001", "follow-up", "It rises by 4 %.", "4 %", "secondary")
    assert verdicts.read(tmp_path / "claims.json", "make it again") == [
        Told(*shared, "reproduced", "", found),
        Told(*shared, "not measured", "a run", None),
    ]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"verdict": "maybe"}, "1.verdict = \"maybe\": must be 'reproduced' or"),
        ({"origin": "hearsay"}, "1.origin = \"hearsay\": must be 'full' or"),
        ({"says": None}, "1.says = null: must be a string"),
        ({"estimate": []}, "1.estimate = ..: must be an object or null"),
        ({"estimate": {"value": 1}}, "1.estimate = {'value': 1}"),
        ({"estimate": RISE | {"value": 9}}, "1.estimate = {'value': 9"),  # outside its interval
        ({"estimate": RISE | {"value": 10**400, "high": None}}, "1.estimate = {'value': 1000"),
        ({"estimate": RISE | {"value": None}}, "1.estimate = {'value': None"),
    ],
)
def test_another_format_is_named(tmp_path: Path, change: dict, said: str):
    documents = json.loads(to_json([Judged(CLAIM, "not measured", above(0))] * 2))
    (tmp_path / "claims.json").write_text(json.dumps([documents[0], documents[1] | change]))
    with pytest.raises(InputError, match=f"claims.json is not claims of a report .{said}.*: make it again"):
        verdicts.read(tmp_path / "claims.json", "make it again")


def test_a_cut_file_is_named(tmp_path: Path):
    text = to_json([Judged(CLAIM, "not measured", above(0))])
    for end in (0, len(text) // 2):
        (tmp_path / "claims.json").write_text(text[:end])
        with pytest.raises(InputError, match="claims.json is not claims of a report .*: make it again"):
            verdicts.read(tmp_path / "claims.json", "make it again")
