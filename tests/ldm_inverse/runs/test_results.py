"""Results in files: damaged ones, and names that a spreadsheet would run."""

import csv
import json

import pytest

from ldm_inverse.runs.results import METRICS, Results, csv_of, text_of
from util.errors import UserError

NAMES = ["=1+2", "+x", "-x", "@SUM(A1)", "\tx", "'=x", "'quoted'", "plain", "a=b", ""]
ROW = dict.fromkeys(METRICS, 1.0) | {"image": "a", "sample": 0}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_for_a_spreadsheet_and_comes_back(name):
    content = csv_of(["image", "psnr"], [{"image": name, "psnr": -1.5}]).decode()
    ((_, _), (cell, number)) = csv.reader(content.splitlines())
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert text_of(cell) == name
    assert number == "-1.5"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"3", b"\xff" * 10_000, b"{}", b'{"image": "a"}'),
        *(json.dumps({**ROW, **change}).encode() for change in ({"psnr": "high"}, {"image": 3}, {"seconds": None})),
        *(json.dumps({**ROW, **change}).encode() for change in ({"sample": [0]}, {"inputs": 3}, {"ssim": True})),
        *(json.dumps({**ROW, **change}).encode() for change in ({"image": "b"}, {"sample": -1}, {"sample": 0.5})),
        *(json.dumps({**ROW, **change}).encode() for change in ({"image": "../a"}, {"psnr": float("nan")})),
        json.dumps({"image": "a", "sample": 0, "step": "x", "reason": "lost"}).encode(),
    ],
)
def test_a_damaged_result_is_named(content, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json is damaged: delete it") as told:
        Results(tmp_path).read()
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 200 + len(str(tmp_path))


def test_a_result_that_cannot_be_read_is_not_called_damaged(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*a\.json: Is a directory"):
        Results(tmp_path).read()


def test_results_are_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROW))
    failed = {"image": "b", "sample": 0, "step": None, "reason": "cannot be read"}
    (tmp_path / "b.json").write_text(json.dumps(failed))
    (tmp_path / "c_s2.json").write_text(json.dumps({**ROW, "image": "c", "sample": 2, "psnr": float("inf")}))
    assert Results(tmp_path).read()["c_s2"]["psnr"] == float("inf")  # as of a restoration that is the truth
    (tmp_path / "c_s2.json").unlink()
    assert Results(tmp_path).read() == {"a": {**ROW, "inputs": None}, "b": {**failed, "inputs": None}}
    (tmp_path / "a.json").write_text(json.dumps({**ROW, "inputs": "67707a"}))
    assert Results(tmp_path).read()["a"]["inputs"] == "67707a"
