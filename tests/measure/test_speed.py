import itertools
from types import SimpleNamespace

import pytest

from jaxsat import machine
from jaxsat.checkpoints import Store
from jaxsat.config import InputError
from jaxsat.measure import latency, speed
from jaxsat.measure.packs import measured


def test_latency_is_the_median_of_repeats_on_a_named_device(trained, tiny_pack, monkeypatch):
    """By a clock whose times between first and second reading, third and fourth, and so on are these."""
    forward, decoding = [5.0, 1, 9, 2, 3], [50.0, 10, 90, 20, 40]
    clock = itertools.accumulate(x for took in forward + decoding for x in (1000, took))
    calls = []
    for name in ("token_losses", "generate_tokens"):
        real = getattr(speed, name)
        monkeypatch.setattr(speed, name, lambda *args, real=real: calls.append(args) or real(*args))
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with Store(trained / "checkpoints" / tiny_pack.id) as store:
        ((_, rows),) = measured(tiny_pack, store, None, {60: [(latency(), tiny_pack.runs[1:2])]})
    assert set(rows["series"]) == {tiny_pack.runs[1].id}
    found = rows.set_index("metric")["value"]
    assert found["forward_latency"] == pytest.approx(3 / 1024)  # 64 rows of 16
    assert found["decoding_latency"] == pytest.approx(40 / 16)  # the context has room for no more
    assert found["latency_device.cpu"] == machine.cores() and len(found) == 3
    shapes = [args[2].shape for args in calls[:6]]
    assert shapes == [(64, 17)] * 6 and [args[2:] for args in calls[6:]] == [([[0]], 16)] * 6
    assert all(args[0].head_rank == 2 == args[1]["head"]["a"].shape[1] for args in calls)


def test_no_repeats_are_refused():
    with pytest.raises(InputError, match="latency of 0 repeats: must be at least 1"):
        latency(repeats=0)
