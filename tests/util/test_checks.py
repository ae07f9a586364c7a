import numpy as np
import pytest

from util.checks import odd_number, pair, real_number, whole_number
from util.errors import UserError


def test_accepted_values_come_in_their_type():
    assert whole_number("n", np.int64(3), 3, 3) == 3
    assert type(whole_number("n", np.int64(3), 3)) is int
    assert odd_number("n", 5, 3, 9) == 5
    assert real_number("x", 1, 0, 1) == 1
    assert type(real_number("x", np.float32(0.5), 0, 1)) is float
    assert pair("p", [1, 2], "numbers") == (1, 2)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: whole_number("n", 2, 3), "n: expected a whole number, 3 or more, got 2"),
        (lambda: whole_number("n", 9, 3, 8), "n: expected a whole number from 3 to 8, got 9"),
        (lambda: whole_number("n", 3.0, 3), "n: expected a whole number, 3 or more, got 3.0"),
        (lambda: whole_number("n", True, 0), "n: expected a whole number, 0 or more, got True"),
        (lambda: odd_number("n", 4, 3, 9), "n: expected an odd number from 3 to 9, got 4"),
        (lambda: odd_number("n", None, 3, 9), "n: expected an odd number from 3 to 9, got None"),
        (lambda: real_number("x", -1, 0), "x: expected a number, 0 or more, got -1"),
        (lambda: real_number("x", 2, 0, 1), "x: expected a number from 0 to 1, got 2"),
        (lambda: real_number("x", 0, 0, above_low=True), "x: expected a number above 0, got 0"),
        (lambda: real_number("x", 0, 0, 5, above_low=True), "x: expected a number above 0 and up to 5, got 0"),
        (lambda: real_number("x", float("nan")), "x: expected a number, got nan"),
        (lambda: real_number("x", "1"), "x: expected a number, got '1'"),
        (lambda: pair("p", [1, 2, 3], "numbers"), "p: expected numbers, as [low, high], got [1, 2, 3]"),
        (lambda: pair("p", "ab", "numbers"), "p: expected numbers, as [low, high], got 'ab'"),
        (lambda: pair("p", 5, "numbers"), "p: expected numbers, as [low, high], got 5"),
    ],
)
def test_messages(check, message):
    with pytest.raises(UserError) as caught:
        check()
    assert str(caught.value) == message
