import pytest

from ldm.class_names import class_number
from util.errors import UserError


def test_numbers_and_names(tmp_path):
    config = tmp_path / "cin-v2.yaml"
    (tmp_path / "cin-v2.classes.txt").write_text("tench, Tinca tinca\ngoldfish\ncrane\nowl, crane\n")
    assert class_number("207", config) == 207
    assert class_number("Tinca Tinca", config) == 0
    assert class_number("goldfish", config) == 1
    assert class_number("owl", config) == 3
    with pytest.raises(UserError, match="'crane' is the name of classes 2, 3"):
        class_number("crane", config)
    with pytest.raises(UserError, match=r"unknown class 'goldfsh': did you mean 'goldfish'\? \(4 classes"):
        class_number("goldfsh", config)
    with pytest.raises(UserError, match=r"unknown class '0x' \(4 classes"):
        class_number("0x", config)


def test_without_a_list_a_number_is_needed(tmp_path):
    with pytest.raises(UserError, match=r"'owl': give the class's number, or list names in .*m.classes.txt \(No such"):
        class_number("owl", tmp_path / "m.yaml")
    (tmp_path / "m.classes.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="give the class's number"):
        class_number("owl", tmp_path / "m.yaml")
