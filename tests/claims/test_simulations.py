import subprocess
import sys
from pathlib import Path

import pytest

from tests.claims import simulations

ROOT = Path(__file__).parents[2]
WRONG = 0.1  # the most that a verdict may be wrong, with and without the effect


def wrong(setting: simulations.Setting, repeats: int) -> tuple[float, float]:
    """Reproduced without the effect, and not reproduced with it."""
    none, some = (setting.shares(truth, repeats) for truth in (setting.null, setting.effect))
    return none["reproduced"], some["not reproduced"]


@pytest.mark.parametrize("setting", simulations.SETTINGS, ids=lambda s: f"{s.estimator}, {s.data}")
def test_wrong_verdicts(setting: simulations.Setting):
    assert max(wrong(setting, 200)) <= WRONG


@pytest.mark.slow
def test_effects_are_found():
    """An estimator that never decides would never be wrong."""
    settings = {(s.estimator, s.data): s for s in simulations.SETTINGS}
    saturating = settings["late_rise", "pod: one run, 154 checkpoints, jitter .2 %"]
    assert saturating.shares(saturating.effect, 100)["reproduced"] > 0.95
    weak = {k for k, s in settings.items() if s.shares(s.effect, 60)["reproduced"] < 0.5}
    assert not weak


@pytest.mark.slow
def test_the_page_has_the_table():
    printed = subprocess.run(
        [sys.executable, "-m", "tests.claims.simulations"], cwd=ROOT, capture_output=True, text=True
    )
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.strip() in (ROOT / "docs" / "verdicts.md").read_text()


def test_every_setting_is_on_the_page():
    page = (ROOT / "docs" / "verdicts.md").read_text()
    assert [s.data for s in simulations.SETTINGS if f"| {s.estimator} | {s.data} |" not in page] == []
