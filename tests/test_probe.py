"""The speed of this machine, and the times expected from it."""

import pytest
import torch

from facepapers.common.plan import Plan, duration
from facepapers.common.tools import reproduce
from facepapers.common.training import precision, probe


def test_the_probe_counts_two_operations_a_multiply_add_and_keeps_the_threads(monkeypatch):
    monkeypatch.setattr(probe, "product_seconds", lambda side, dtype, device: 2 * side**3 / 50e9)
    threads = torch.get_num_threads()
    assert probe.gflops(seconds=0.02) == pytest.approx(50)
    assert torch.get_num_threads() == threads


def test_the_probe_takes_the_threads_that_it_is_told(monkeypatch):
    seen, threads = set(), torch.get_num_threads()
    monkeypatch.setattr(probe, "best_rate", lambda *words: seen.add(torch.get_num_threads()) or 1.0)
    probe.gflops(threads=threads + 1)
    assert seen == {1, threads + 1} and torch.get_num_threads() == threads


def test_an_interrupted_probe_gives_the_threads_back(monkeypatch):
    threads = torch.get_num_threads()

    def interrupted(*words):
        torch.set_num_threads(threads + 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(probe, "best_rate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe.gflops()
    found = torch.get_num_threads()
    torch.set_num_threads(threads)
    assert found == threads


def test_the_probe_measures_real_products():
    assert probe.gflops(torch.float32, seconds=0.02) > 0
    assert probe.product_seconds(128, torch.float32, torch.device("cpu")) > 0


def test_a_slow_type_is_not_asked_for_larger_products(monkeypatch):
    sides, now = [], [0.0]

    def slow(side, dtype, device):
        sides.append(side)
        now[0] += 0.06  # three products of 20 ms
        return 0.02 * len(sides)  # another process slows the second down

    monkeypatch.setattr(probe, "product_seconds", slow)
    monkeypatch.setattr(probe.time, "perf_counter", lambda: now[0])
    assert probe.best_rate(torch.bfloat16, torch.device("cpu"), 0.1) == pytest.approx(2e-9 * 128**3 / 0.02)
    assert sides == [128, 128]


@pytest.mark.parametrize(
    ("fp32", "bf16", "seconds"), [(74, 0, 300), (37, 0, 600), (148, 3, 150), (74, 111, 200), (74, 900, 150)]
)
def test_expected_seconds_scale_with_the_machine(fp32, bf16, seconds):
    assert Plan((), (), (), reference_s=300.0).seconds(fp32, bf16) == pytest.approx(seconds)


def test_the_expected_time_is_said_in_words(monkeypatch):
    rates = {torch.float32: 74.0, torch.bfloat16: 200.0}
    monkeypatch.setattr(probe, "gflops", rates.get)
    monkeypatch.setattr(precision, "native", lambda device: True)
    plan, threads = Plan((), (), (), reference_s=384.0), torch.get_num_threads()
    assert reproduce.expected(plan, "fp32") == f"about 6 minutes on this machine ({threads} threads, 74 GFLOP/s)"
    assert reproduce.expected(plan, "bf16").startswith("about 3 minutes")
    assert "200 in bf16" in reproduce.expected(plan, "auto")
    assert [duration(s) for s in (3, 52, 100, 9000)] == ["10 seconds", "50 seconds", "2 minutes", "2.5 hours"]
