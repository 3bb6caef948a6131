"""Topologies, and what is refused before an engine is asked."""

import shlex
from pathlib import Path

import pytest

from jaxsat.config import InputError
from launch import sky, tpu_vm, xpk
from launch.jobs import accelerator_type, main, slice_shape

OUT = ("--", "jaxsat", "train", "saturation", "--out", "gs://bucket/runs")
ENGINES = {
    tpu_vm.TpuVm: ("--zone", "us-west4-a", "--install", "jaxsat[tpu] @ git+https://example.com/jaxsat@0123abc"),
    xpk.Xpk: ("--cluster", "mine"),
    sky.Sky: (),
}


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        ("v4:8x8x4", "v4-512"),  # counts TensorCores, two a chip
        ("v4:2x2x1", "v4-8"),
        ("v5p:4x4x8", "v5p-256"),
        ("v5e:16x16", "v5litepod-256"),  # counts chips
        ("v5e:2x4", "v5litepod-8"),
        ("v6e:16x16", "v6e-256"),
        ("v6e:1x1", "v6e-1"),
    ],
)
def test_accelerator_types(topology, expected):
    assert accelerator_type(topology) == expected


def test_slices_that_are_turned_are_the_same():
    assert slice_shape("v4:8x8x4") == slice_shape("v4:4x8x8") == ("v4", [4, 8, 8])
    assert slice_shape("v5p:1x2x2") == ("v5p", [2, 2, 1])


UNKNOWN = (
    "",
    "v5e",
    "v5e:",
    "v5e:16",
    "v5e:16x16x1",
    "v4:8x8",
    "v5e:0x16",
    "v5e:16X16",
    "h100:8",
    "v5e:4x4\n",
    "v5e:-1x4",
)


@pytest.mark.parametrize("topology", UNKNOWN)
def test_unknown_topologies(topology):
    with pytest.raises(InputError, match="v5e:16x16"):
        slice_shape(topology)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--topology", "v5e:16", *OUT), "no topology 'v5e:16': give one such as"),
        (("--topology", "v5e:4x4"), "after -- comes the command"),
        (("--topology", "v5e:4x4", "--", "rm", "-rf", "--out", "gs://b/c"), "after -- comes the command"),
        (("--topology", "v5e:4x4", "--", "jaxsat", "train", "x"), "--out gs://BUCKET/DIR"),
        (("--topology", "v5e:4x4", "--", "jaxsat", "train", "x", "--out", "runs/x"), "--out gs://BUCKET/DIR"),
        (("--topology", "v5e:4x4", "--", "jaxsat", "train", "x", "--out", "gs://bucket"), "--out gs://BUCKET/DIR"),
        (("--topology", "v5e:4x4", "--", "jaxsat", "train", "x", "--out"), "--out gs://BUCKET/DIR"),
        (("--topology", "v5e:4x4", "--", "jaxsat", "train", "a\nb", "--out", "gs://b/c"), "control character"),
        (("--topology", "v5e:4x4", "--setup", "a\tb", *OUT), "control character"),
        (("--topology", "v5e:4x4", "--name", "$(id)", *OUT), "--name '$(id)'"),
        (("--topology", "v5e:4x4", "--name", "Big", *OUT), "--name 'Big'"),
        (("--topology", "v5e:4x4", "--name", "a" * 33, *OUT), "at most 32"),
        (("--topology", "v5e:4x4", "--shares", "0", *OUT), "--shares 0: at least 1"),
    ],
)
def test_refused_in_one_line(engine, argv, said, capsys):
    assert main(engine, [*ENGINES[engine], "--dry-run", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("launch: ") and err.count("\n") == 1 and said in err


@pytest.mark.parametrize(
    ("engine", "argv", "said"),
    [
        (tpu_vm.TpuVm, ("--zone", "us-west4-a"), "queued resources start without your checkout"),
        (tpu_vm.TpuVm, ("--zone", "a;b", "--install", "jaxsat"), "--zone 'a;b'"),
        (tpu_vm.TpuVm, ("--zone", "a", "--install", "jaxsat", "--slices", "0"), "--slices 0"),
        (tpu_vm.TpuVm, ("--zone", "a", "--install", "jaxsat", "--restarts", "-1"), "--restarts -1"),
        (tpu_vm.TpuVm, ("--zone", "a", "--install", "jaxsat", "--flags", "'"), "--flags"),
        (xpk.Xpk, ("--cluster", "$(id)"), "--cluster '$(id)'"),
        (xpk.Xpk, ("--cluster", "c", "--project", "p q"), "--project 'p q'"),
        (xpk.Xpk, ("--cluster", "c", "--install", "gs://b/jaxsat.whl[tpu]"), "no gcloud to copy a wheel"),
        (sky.Sky, ("--zone", "*"), "--zone '*'"),
        (sky.Sky, ("--mount", "runs"), "--mount 'runs': gs://BUCKET"),
    ],
)
def test_refused_by_one_engine(engine, argv, said, capsys):
    assert main(engine, [*argv, "--topology", "v5e:4x4", "--dry-run", *OUT]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("engine", "program"), [(tpu_vm.TpuVm, "gcloud"), (xpk.Xpk, "xpk"), (sky.Sky, "sky")])
def test_a_missing_engine_is_named(engine, program, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(engine, [*ENGINES[engine], "--topology", "v5e:4x4", *OUT]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"launch: {program} is not on the PATH: ") and "install" in err and err.count("\n") == 1


def test_zone_of_queued_resources_is_needed(capsys):
    with pytest.raises(SystemExit) as e:
        main(tpu_vm.TpuVm, ["--topology", "v5e:4x4", *OUT])
    assert e.value.code == 2 and "--zone" in capsys.readouterr().err


def test_out_of_the_command():
    for words in (("--out", "gs://b/c/"), ("--out=gs://b/c",), ("--share=1/2", "--out", "gs://b/c")):
        assert sky.Sky(topology="v5e:4x4", command=("jaxsat", "train", "x", *words)).out() == "gs://b/c"


def test_commands_of_the_guide(capsys):
    """Those of docs/pods.md, as they stand there."""
    page = (Path(__file__).parents[2] / "docs" / "pods.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```sh\n")[1:]]
    engines = {f"launch.{engine.__module__.rpartition('.')[2]}": engine for engine in ENGINES}
    for block in blocks:
        python, option, module, *argv = shlex.split(block.replace("\\\n", " "))
        assert (python, option) == ("python", "-m") and "--dry-run" in argv
        assert main(engines.pop(module), argv) == 0, capsys.readouterr().err
    assert not engines
