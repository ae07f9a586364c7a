"""What is said of how far a run is."""

from util import pace
from util.pace import Pace


def test_the_time_left_goes_by_what_was_done_since_the_start(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    finished = ["a", "another run's"]  # one of four is there already, which took no time
    run = Pace("abcd", finished)
    assert run.text(finished) == "1 of 4"
    now[0] += 30
    assert run.text([*finished, "c"]) == "2 of 4, 01:00 left"
    now[0] += 30
    assert run.text([*finished, "c", "d"]) == "3 of 4, 00:30 left"
    assert run.text("abcd") == "4 of 4"
