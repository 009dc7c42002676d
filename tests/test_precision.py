"""bfloat16 or float32: who decides, what is kept when a run goes on elsewhere, and what answers a claim."""

import dataclasses
import os
from importlib import import_module

import pytest
import torch

from facepapers.common import cli, storage
from facepapers.common.evidence import claims, runs, schema
from facepapers.common.tools import reproduce
from facepapers.common.training import precision
from facepapers.papers.coarse_to_fine import config, train
from tests.conftest import TINY, one_line_error, python
from tests.test_runs import bits, folder_of, interrupt_at, same_bits

CPU = torch.device("cpu")
WORDS = [*TINY.split(), "--steps", "6", "--precision", "auto"]
PROBE = "import torch; from facepapers.common.training import precision; "
PROBE += "print(precision.choose('auto', torch.device('cpu')))"


def machine(monkeypatch, said, slower=None):
    """Make this a machine of whose bfloat16 torch says `said`, and where it takes `slower` times float32's time."""

    def measured():
        assert slower is not None, "nothing was to be measured"
        return slower

    monkeypatch.setattr(precision, "capability", lambda device: said)
    monkeypatch.setattr(precision, "slowdown", measured)


# The choice


@pytest.mark.parametrize(
    ("kind", "said", "slower", "chosen"),
    [
        ("cpu", True, 0.7, "bf16"),
        ("cpu", True, 6.0, "fp32"),  # a library was told to hide it
        ("cpu", None, 0.7, "bf16"),  # another architecture
        ("cpu", None, 3.0, "fp32"),
        ("cpu", False, None, "fp32"),
        ("cuda", True, None, "bf16"),
        ("cuda", False, None, "fp32"),
        ("mps", True, None, "bf16"),
        ("xpu", None, None, "fp32"),
    ],
)
def test_auto_takes_bfloat16_where_it_is_native(monkeypatch, kind, said, slower, chosen):
    machine(monkeypatch, said, slower)
    assert precision.choose("auto", torch.device(kind)) == chosen


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "aarch64", "neon": True}, None),
        ({}, None),
    ],
)
def test_what_torch_says_of_a_processor(monkeypatch, known, said):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert precision.capability(CPU) is said
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # before torch 2.11
    assert precision.capability(CPU) is None


@pytest.mark.parametrize("said", [True, False])
def test_what_torch_says_of_a_gpu(monkeypatch, said):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: said and not including_emulation)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: said and version == (14, 0))
    assert precision.capability(torch.device("cuda")) is said
    assert precision.capability(torch.device("mps")) is said


@pytest.mark.skipif(not precision.capability(CPU), reason="this processor has no bfloat16, as far as torch knows")
def test_hidden_bfloat16_is_not_taken():
    plain = {k: v for k, v in os.environ.items() if k not in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")}
    seen = [python("-c", PROBE, env=plain | more).stdout.strip() for more in ({}, {"ONEDNN_MAX_CPU_ISA": "AVX2"})]
    assert seen == ["bf16", "fp32"]


def test_the_measurement_disturbs_nothing(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: kept.append(n))
    kept, state = [], torch.get_rng_state()
    assert 0 < precision.slowdown.__wrapped__(rounds=1) < 1e4
    assert kept == [1, torch.get_num_threads()] and torch.equal(torch.get_rng_state(), state)


def test_an_unknown_precision_is_one_line():
    with pytest.raises(cli.UserError) as error:
        precision.choose("fp16", CPU)
    one_line_error(error, "--precision fp16", "known are auto, bf16, fp32")
    for paper in claims.papers():
        settings = import_module(f"facepapers.papers.{paper}.config")
        for name in precision.KNOWN:
            settings.check(dataclasses.replace(settings.preset("demo"), precision=name))
        with pytest.raises(cli.UserError) as error:
            settings.check(dataclasses.replace(settings.preset("demo"), precision="float16"))
        one_line_error(error, "--precision float16", "known are auto, bf16, fp32")


def test_forcing_what_is_emulated_warns_with_the_measured_factor(monkeypatch, capsys):
    machine(monkeypatch, False, 24.6)
    assert precision.choose("bf16", CPU) == "bf16"
    one_line_error(capsys.readouterr().err, "warning: --precision bf16", "emulated", "24.6 times as long as fp32")
    machine(monkeypatch, True, 0.7)
    assert precision.choose("bf16", CPU) == "bf16"
    machine(monkeypatch, False)  # float32 is taken without a look
    assert precision.choose("fp32", CPU) == "fp32"
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "said", "dtype"),
    [("bf16", False, torch.bfloat16), ("fp32", True, torch.float32), ("auto", True, torch.bfloat16),
     ("auto", False, torch.float32)],
)  # fmt: skip
def test_a_network_computes_in_the_precision(monkeypatch, wanted, said, dtype):
    machine(monkeypatch, said, 0.7)
    with precision.autocast(CPU, wanted):
        assert torch.nn.Linear(8, 8)(torch.zeros(2, 8)).dtype == dtype


def test_presets_leave_the_choice_to_the_hardware_but_the_papers_keep_float32():
    for paper in claims.papers():
        presets = import_module(f"facepapers.papers.{paper}.config").PRESETS
        assert presets["paper"].precision == "fp32"
        assert {cfg.precision for cfg in presets.values()} <= {"auto", "fp32"}
        assert paper == "face_attributes" or presets["short"].precision == "auto"


# Runs


@pytest.mark.parametrize(
    ("changes", "end"),
    [({}, ""), ({"precision": "bf16"}, "-bf16"), ({"precision": "fp32", "seed": 2}, "-fp32"), ({"lr": 0.5}, None),
     ({"precision": "fp32", "lr": 0.5}, None)],
)  # fmt: skip
def test_a_forced_precision_is_read_from_the_folders_name(changes, end):
    cfg = dataclasses.replace(config.preset("demo"), **changes)
    end = "-" + runs.fingerprint(cfg) if end is None else end
    assert cfg.run_name == f"embedded-demo-cft-s{cfg.seed}{end}"


def test_rows_that_need_each_other_are_found_in_a_forced_precision():
    from facepapers.papers.face_attributes.config import preset

    for name, end in (("bf16", "-bf16"), ("fp32", "")):
        cfg = dataclasses.replace(preset("demo", "best"), precision=name)
        assert (cfg.run_name, cfg.name_of("stage3")) == (f"embedded-demo-best-s0{end}", f"embedded-demo-stage3-s0{end}")


def start(out, *words):
    return train.main([*WORDS, "--out", str(out), *words])


@pytest.mark.parametrize(("native", "used"), [(True, "bf16"), (False, "fp32")])
def test_a_record_holds_what_was_used(tiny, tmp_path, monkeypatch, native, used):
    monkeypatch.setattr(precision, "native", lambda device: native)
    record = start(tmp_path / "auto")
    assert (record["precision"], record["config"]["precision"]) == (used, "auto")
    assert "precision" not in record["overrides"]
    forced = start(tmp_path / "forced", "--precision", used)
    assert (forced["precision"], forced["config"]["precision"], forced["overrides"]["precision"]) == (used,) * 3
    assert same_bits(bits(tmp_path / "auto"), bits(tmp_path / "forced"))


def test_the_precision_changes_what_is_learned(tiny, tmp_path):
    one, other = (bits_of(tmp_path / name, "--precision", name)[1]["error_px"] for name in ("bf16", "fp32"))
    assert (one != other).any()


def bits_of(out, *words):
    start(out, *words)
    return bits(out)


@pytest.mark.parametrize(("before", "after"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_run_that_goes_on_elsewhere_keeps_its_precision_and_says_so(
    tiny, tmp_path, monkeypatch, capsys, before, after
):
    monkeypatch.setattr(precision, "native", lambda device: before == "bf16")
    whole = bits_of(tmp_path / "whole")
    undo = interrupt_at(monkeypatch, 3)
    with pytest.raises(cli.Interrupted):
        start(tmp_path / "cut")
    undo()
    monkeypatch.setattr(precision, "native", lambda device: after == "bf16")
    capsys.readouterr()
    record = start(tmp_path / "cut")
    said = [line for line in capsys.readouterr().err.splitlines() if "begun in" in line]
    one_line_error("\n".join(said), folder_of(tmp_path / "cut"), f"begun in {before}", f"would take {after}", "delete")
    assert record["precision"] == before and same_bits(bits(tmp_path / "cut"), whole)


def test_a_run_that_goes_on_where_it_began_says_nothing_of_precision(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "native", lambda device: False)
    undo = interrupt_at(monkeypatch, 3)
    with pytest.raises(cli.Interrupted):
        start(tmp_path)
    undo()
    assert start(tmp_path)["precision"] == "fp32" and "begun in" not in capsys.readouterr().err


def test_a_damaged_checkpoint_is_one_line_before_anything_is_trained(tmp_path):
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1" / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(cli.UserError) as error:
        precision.of_checkpoint(tmp_path)
    one_line_error(error, "stage1/checkpoint.pt", "cannot resume", "delete it")


def test_a_run_from_before_auto_counts_as_the_presets_own(tiny, tmp_path):
    """Its record says bf16 where the preset now says auto, and not what it computed in."""
    start(tmp_path)
    path = folder_of(tmp_path) / "run.json"
    old = storage.read_json(path)
    del old["precision"]
    old["config"]["precision"] = "bf16"
    storage.write_json(path, old)
    assert start(tmp_path) == old and runs.precision_of(old) == "bf16"


def test_a_forced_precision_answers_in_the_table_of_a_reproduction(tiny, tmp_path, monkeypatch, capsys):
    """Other settings do not, and are said."""
    for row in ("cft", "direct"):
        start(tmp_path, "--row", row, "--precision", "fp32")
    for path in (tmp_path / "coarse_to_fine").glob("*/run.json"):  # as if no more had been changed
        one = storage.read_json(path)
        one["overrides"] = {"precision": "fp32"} if one["config"]["row"] == "cft" else {"steps": 6}
        storage.write_json(path, schema.sealed(one))
    monkeypatch.setattr(import_module("facepapers.papers.coarse_to_fine.figures"), "draw", lambda *_: [])
    reproduce.show("coarse_to_fine", "demo", "embedded", tmp_path)
    said = capsys.readouterr().out
    assert "\nCFT on embedded faces " in said and "Direct training" not in said
    (line,) = [line for line in said.splitlines() if "answers no cell" in line]
    assert "-direct-" in line


def record(seed=0, started="2026-01-01", used="bf16", **overrides):
    settings = {"preset": "demo", "row": "cft", "seed": seed, "precision": overrides.get("precision", "auto")}
    changed = overrides | ({"seed": seed} if seed else {})
    return {"data": {"name": "embedded"}, "config": settings, "overrides": changed, "started": started,
            "precision": used}  # fmt: skip


def test_of_one_seed_one_run_answers():
    plain, forced = record(), record(precision="fp32", used="fp32", started="2026-02-01")
    newer, other = record(precision="bf16", started="2026-03-01"), record(seed=1, precision="bf16")
    assert runs.of_presets([forced, plain, newer]) == [plain], "the one without a forced precision"
    assert runs.of_presets([forced, newer, other]) == [newer, other], "the newest, and every seed"
    assert runs.of_presets([newer, forced]) == [newer], "in whatever order they come"
    assert runs.of_presets([record(lr=1.0), record(lr=1.0, precision="fp32")]) == []
    assert runs.precision_of(plain, forced) == "bf16+fp32" and runs.precision_of(plain, newer) == "bf16"


def test_forcing_another_precision_beside_a_begun_run_says_so(tmp_path, monkeypatch, capsys):
    config, begun = Settings("fp32"), tmp_path / "embedded-demo-cft-s0"
    monkeypatch.setattr(precision, "of_checkpoint", lambda folder: "bf16" if folder == begun else None)
    assert precision.settle(config, tmp_path / "embedded-demo-cft-s0-fp32", CPU).precision == "fp32"
    one_line_error(capsys.readouterr().err, begun, "begun in bf16", "--precision fp32 starts a run beside it")
    assert precision.settle(config, tmp_path / "another", CPU).precision == "fp32" and not capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class Settings:
    precision: str


@pytest.mark.parametrize("elsewhere", [True, False])
def test_all_processes_compute_in_one_precision(monkeypatch, tmp_path, elsewhere):
    """Where one of them has no native bfloat16, none takes it."""
    from facepapers.common.training import parallel

    @dataclasses.dataclass(frozen=True)
    class Settings:
        precision: str = "auto"

    asked = []
    monkeypatch.setattr(precision, "native", lambda device: True)
    monkeypatch.setattr(parallel, "any_rank", lambda flag, device: (asked.append(flag), flag or elsewhere)[1])
    found = precision.settle(Settings(), tmp_path, torch.device("cpu"))
    assert found.precision == ("fp32" if elsewhere else "bf16") and asked == [False]


@pytest.mark.parametrize(("said", "factor", "native"), [
    (True, 0.7, True), (True, 4.0, False), (None, 0.7, True), (None, 4.0, False), (False, 0.7, False),
])  # fmt: skip
def test_a_processor_is_believed_only_if_a_measurement_agrees(monkeypatch, said, factor, native):
    monkeypatch.setattr(precision, "capability", lambda device: said)
    monkeypatch.setattr(precision, "slowdown", lambda: factor)
    assert precision.native(torch.device("cpu")) is native


def test_the_factor_says_how_much_longer_bfloat16_takes(monkeypatch):
    """By a clock on which it takes three times as long, and once, on a loaded machine, ten times."""
    spent = iter([9, 9, 3, 1, 10, 1])  # a warm-up of each, then two rounds
    now = [0.0, 0]

    def clock():
        now[0] += next(spent) if now[1] % 2 else 0
        now[1] += 1
        return now[0]

    monkeypatch.setattr(precision.time, "thread_time", clock)
    assert precision.slowdown.__wrapped__(rounds=2) == 3


# Channels that a processor cannot train


@pytest.mark.parametrize(
    ("capability", "limit", "refused"),
    [("AVX2", None, True), ("AVX512", None, False), ("AVX512", "AVX2", True), ("AVX512", "avx2_vnni", True),
     ("AVX512", "AVX512_CORE", False), ("DEFAULT", None, False)],
)  # fmt: skip
def test_channels_that_crash_torch_on_avx2_alone_are_refused(monkeypatch, capability, limit, refused):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    settings = [
        ("arcface", "--widths 16 7 16 16", ["--preset", "demo", "--widths", "16", "7", "16", "16"]),
        ("resup", "--width 4", ["--preset", "demo", "--width", "4"]),
        ("face_attributes", "--widths 4 8 8 8", ["--preset", "demo", "--row", "trunk", "--widths", "4", "8", "8", "8"]),
    ]
    for paper, said, words in settings:
        parse = import_module(f"facepapers.papers.{paper}.train").parse
        if refused:
            with pytest.raises(cli.UserError) as error:
                parse(words)
            one_line_error(error, said, "AVX2", "take 8 or more")
        else:
            parse(words)
        parse([word if not word.isdigit() else "8" for word in words])
