"""Progress: lines where there is no terminal, one bar per stage where there is one."""

import pytest

from functa.training import progress
from functa.training.progress import Console, ProgressLine, Stopwatch, duration

LINES = [
    "meta_learn  images -> field",
    ProgressLine("training PSNR 20.00 dB", stage="meta_learn", done=5, total=10),
    "meta_learn  step 5/10  validation psnr 21.5",
    ProgressLine("training PSNR 22.00 dB", stage="meta_learn", done=10, total=10),
    "encode  field + images -> functaset",
]


def say_all():
    console = Console()
    for line in LINES:
        console(line)


def test_without_a_terminal_every_line_is_printed(capsys):
    say_all()
    assert capsys.readouterr().out.splitlines() == LINES


def test_on_a_terminal_progress_moves_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    say_all()
    out, err = capsys.readouterr()
    assert out.splitlines() == [line for line in LINES if not isinstance(line, ProgressLine)]
    for part in ("meta_learn", " 50%", " 5/10", "training PSNR 20.00 dB", "100%", "22.00 dB"):
        assert part in err


def test_a_progress_line_is_its_text():
    assert LINES[1] == "meta_learn  step 5/10  training PSNR 20.00 dB"


def test_speed_is_reliable_after_some_seconds():
    watch = Stopwatch(seconds=9.0, active_seconds=4.0, steps=100)
    assert not watch.is_reliable()
    assert watch.steps_per_second() == 25
    assert Stopwatch(active_seconds=6.0).is_reliable()


@pytest.mark.parametrize(("seconds", "text"), [(45, "45 s"), (192, "3.2 min"), (5400, "1.5 h")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_stage_that_stops_leaves_its_bar_on_a_line_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    console = Console()
    console(LINES[1])
    console.close()
    console("stopped")
    out, err = capsys.readouterr()
    assert err.endswith("\n")
    assert out == "stopped\n"
