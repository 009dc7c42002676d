"""Signs of life, by a clock that the tests turn: no test waits."""

import sys
import threading

import pytest
import torch

from facepapers.common import progress
from facepapers.common.training import loop


@pytest.fixture
def clock(monkeypatch):
    """A clock at 0 seconds, turned by hand; the thread that looks by itself sleeps."""
    hands = [0.0]
    monkeypatch.setattr(progress, "clock", lambda: hands[0])
    monkeypatch.setattr(progress, "LOOK_S", 1e6)
    monkeypatch.setattr(progress, "_said", 0.0)
    monkeypatch.setattr(progress, "_open", [])
    return hands


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def at(meter, clock, seconds, done):
    """Let the time be `seconds` and the count `done`, then look as the thread would."""
    clock[0] = seconds
    meter.add(done - meter.done)
    meter.look()


def test_a_first_line_comes_within_ten_seconds_before_any_step_is_done(clock, capsys):
    with progress.Meter("training step", 260, "crops", batch=32) as meter:
        for second in range(1, 11):
            at(meter, clock, second, 0)
    assert lines(capsys) == ["training step 0/260  0:05 so far"]


def test_later_lines_come_with_each_tenth_or_after_half_a_minute(clock, capsys):
    with progress.Meter("training step", 100, "crops", batch=2) as meter:
        for second in range(1, 101):
            at(meter, clock, second, second)
    told = lines(capsys)
    assert [line.split()[2] for line in told] == ["5/100", *(f"{k}/100" for k in range(10, 101, 10))]
    assert told[3] == "training step 30/100  2.00 crops/s  1:10 left"


def test_after_a_resumption_the_rate_is_that_of_this_process(clock, capsys):
    """60 of 100 steps were done before: ten more in 20 seconds are one crop a second of two a step."""
    with progress.Meter("training step", 100, "crops", done=60, batch=2) as meter:
        at(meter, clock, 20, 70)
    assert lines(capsys) == ["training step 70/100  1.00 crops/s  1:00 left"]


def test_slow_steps_do_not_silence_it(clock, capsys):
    with progress.Meter("training step", 100, "crops") as meter:
        for second in range(1, 100):
            at(meter, clock, second, second // 60)
    ends = [line.split("  ")[-1] for line in lines(capsys)]
    assert ends == ["0:05 so far", "0:35 so far", "107:15 left", "156:45 left"]


def test_what_ends_soon_says_nothing_but_many_short_phases_do(clock, capsys):
    for start in range(0, 12, 3):
        clock[0] = start
        with progress.phase(f"phase {start}"):
            clock[0] = start + 2
            progress._open[-1].look()
    assert lines(capsys) == ["phase 3  0:02 so far", "phase 9  0:02 so far"]


def test_the_innermost_of_nested_meters_speaks(clock, capsys):
    with progress.phase("testing"):
        outer = progress._open[-1]
        inner = progress.progress([1, 2, 3], "embeddings", "batches")
        next(inner)
        clock[0] = 6
        outer.look()
        assert not lines(capsys)
        progress._open[-1].look()
        assert lines(capsys) == ["embeddings 0/3  0:06 so far"]
        assert list(inner) == [2, 3]
        clock[0] = 40
        outer.look()
        assert lines(capsys) == ["testing  0:40 so far"]
    assert not progress._open


def test_elements_come_through_in_order_and_an_error_ends_the_count(clock):
    assert list(progress.progress(iter("abc"), "letters", total=3)) == ["a", "b", "c"]
    with pytest.raises(ZeroDivisionError):
        for _ in progress.progress([1], "broken"):
            raise ZeroDivisionError
    assert not progress._open


def test_a_thread_looks_while_a_step_takes_long(clock, monkeypatch):
    said = threading.Event()
    monkeypatch.setattr(progress, "LOOK_S", 0)
    monkeypatch.setattr(progress.Meter, "say", lambda self: said.set())
    with progress.phase("one long call"):
        clock[0] = 60
        assert said.wait(60)


def test_only_the_main_process_speaks(clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with progress.Meter("training", 10) as meter:
        at(meter, clock, 60, 5)
    assert not lines(capsys)


def test_a_terminal_gets_a_bar_at_once_and_lines_only_for_what_cannot_be_counted(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.Meter("training", 10, "faces") as meter:
        at(meter, clock, 60, 5)
    assert "training:   0%" in (said := capsys.readouterr().err) and "so far" not in said and " left" not in said
    with progress.phase("testing"):
        clock[0] = 120
        progress._open[-1].look()
    assert "testing  1:00 so far" in capsys.readouterr().err


def test_steps_speak_by_time_without_reading_the_losses(clock, tmp_path, capsys, monkeypatch):
    flushed = []
    real = loop.Steps.flush
    monkeypatch.setattr(loop.Steps, "flush", lambda self: (flushed.append(self.step), real(self)))
    steps = loop.Steps(tmp_path, {}, total=60, batch=4, unit="faces", origin=loop.Origin("run"))
    for step in steps:
        steps.log(loss=torch.tensor(float(step)))
        clock[0] = 10.0 * (step + 1)
        progress._open[-1].look()
    said = lines(capsys)
    assert flushed == [49, 59], "a line waits for no loss"
    assert said[0] == "run step 0/60  0:10 so far" and said[1] == "run step 3/60  0.30 faces/s  12:40 left"
    assert said[-1] == "run step 60/60  loss 54.5  0.40 faces/s  0:00 left"
    assert len(said) >= 10
    assert [row["step"] for row in steps.history] == [50, 60]
