"""How many fake CPU devices the tests have. Eight, as `make test-all` asks for, cost half as much again as four: each
checkpoint, for one, 0.28 s instead of 0.19."""

import os

import pytest

DEVICES = int(os.environ.get("JAXSAT_TEST_DEVICES", "4"))
NEEDS_8 = [pytest.mark.slow, pytest.mark.skipif(DEVICES < 8, reason="needs JAXSAT_TEST_DEVICES=8")]
