"""Reading YAML: plain values, published tuples, and one line for everything else."""

from itertools import pairwise

import pytest

from util.errors import UserError
from util.yaml import load_yaml

# Each line is ten times the one before.
LAUGHS = "a: &a [1]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefg"))


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "a.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_yaml(tmp_path / "a.yaml")

    return read


def test_plain_values_and_published_tuples(read):
    text = "mask: {range: !!python/tuple [0.7, 0.71]}\nshape: !!python/tuple [1, 3]\non: [true, null, text, 2]\n"
    assert read(text) == {"mask": {"range": (0.7, 0.71)}, "shape": (1, 3), True: [True, None, "text", 2]}


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("-2E5", -2e5), (".5e2", 50.0), ("1.5e3", 1500.0)])
def test_numbers_with_an_exponent_are_numbers(read, text, value):
    assert read(f"a: {text}") == {"a": value}


def test_dates_are_text_and_anchors_work(read):
    assert read("a: &x {b: 2024-01-01}\nc: *x\nd: {<<: *x, e: 1}") == {
        "a": {"b": "2024-01-01"},
        "c": {"b": "2024-01-01"},
        "d": {"b": "2024-01-01", "e": 1},
    }


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/name:os.system", "!!python/module:os", "!!python/list", "!own"]
)
def test_any_other_tag_is_refused_by_name_in_one_line(read, tag):
    with pytest.raises(UserError, match="line 2") as error:
        read(f"a: 1\nb: {tag} [x]")
    assert tag in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "a/${oc.env:HOME}", "${oc.${b}:HOME}", "${oc.decode:'x'}"])
def test_a_file_cannot_read_the_environment(read, text):
    with pytest.raises(UserError, match="calls no function") as error:
        read(f'a: [{{c: "{text}"}}]\nb: env')
    assert "\n" not in str(error.value)


def test_the_name_of_another_setting_stays_as_it_is(read):
    assert read('a: "c:/${b.c}/d"\nb: {c: 1}') == {"a": "c:/${b.c}/d", "b": {"c": 1}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: &x [*x]", "contains itself"),
        ("a: &x {b: *x}", "contains itself"),
        ("a: &x !!python/tuple [*x]", "recursive"),
        (LAUGHS, "more than"),
        ("[" * 3_000, "recursion"),
        ("a: 1\nb: 2\na: 3", "'a' appears twice"),
        ("a: [1,", "line 1"),
        ("a: 'x", "line 1"),
        ("- 1", "expected settings"),
        ("", "expected settings"),
        ("text", "expected settings"),
        ("? [1]\n: 2", "unhashable"),
        ("a: !!int x", "invalid literal"),
        ("a: !!bool x", "not valid"),
        (b"a: \xff", "not valid"),
        (b"\x00\x01", "not valid"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(read, text, why):
    with pytest.raises(UserError, match=why) as error:
        read(text)
    assert "a.yaml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_are_said(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_yaml(tmp_path / "a.yaml")
    with pytest.raises(UserError, match="Is a directory"):
        load_yaml(tmp_path)
