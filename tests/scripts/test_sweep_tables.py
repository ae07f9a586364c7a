"""Plans, names and tables of a sweep, without a model."""

from pathlib import Path

import pytest

from scripts.evaluation.entries import Entry, Observation
from scripts.sweeps import run as running
from scripts.sweeps.grid_table import grid_table
from scripts.sweeps.plot import front
from scripts.sweeps.points import Point, split_values
from tests.scripts.grids import read_grid


def test_the_plan_counts_every_kind_of_pass_that_is_made():
    class Planned:
        root, folder = Path("out"), Path("out/task")

        def __init__(self, **passes):
            self.passes = lambda: {"UNet": 0, "encoder": 0, "operator": 0, **passes}
            self.restorations = lambda: 3

    text = running.plan([Planned(UNet=10, operator=1000), Planned(UNet=20)], [1, 0])
    assert [line.split()[-4:] for line in text.splitlines()] == [
        ["restorations", "left", "UNet", "operator"],
        ["3", "2", "20", "2,000"],
        ["3", "3", "60", "0"],
        ["6", "5", "80", "2,000"],
    ]


@pytest.mark.parametrize(
    ("labels", "headings"),
    [
        (["demo/eta=0", "demo/eta=1"], ["0", "1"]),
        (["demo/lr=1,steps=4", "demo/lr=1,steps=8"], ["4", "8"]),
        (
            ["demo/lr=1,steps=4", "demo/lr=1,steps=8", "demo/lr=2,steps=4"],
            ["lr=1,steps=4", "lr=1,steps=8", "lr=2,steps=4"],
        ),
        (["demo/lr=1,steps=4", "paper/lr=1,steps=4"], ["demo", "paper"]),
        (["demo/lr=1", "paper/lr=2"], ["demo,lr=1", "paper,lr=2"]),
        (["demo/size=[1,2]", "demo/size=[1,3]"], ["[1,2]", "[1,3]"]),
        (["demo", "demo/lr=1"], ["demo", "demo/lr=1"]),
        (["demo/main_sampler=dps", "demo/main_sampler=daps"], ["dps", "daps"]),
        (["demo"], ["demo"]),
    ],
)
def test_headings_are_as_short_as_can_be_told_apart(labels, headings):
    head = grid_table({"task": [(label, Entry(label, [])) for label in labels]}, {}).splitlines()[0]
    assert [cell.strip() for cell in head.split("|")[3:-1]] == headings


def test_commas_that_separate_values():
    assert split_values("a.b=1,2.5") == ("a.b", ["1", "2.5"])
    assert split_values("a=[1, 2],[3]") == ("a", ["[1, 2]", "[3]"])
    assert split_values("a={x: 1, y: [2, 3]}") == ("a", ["{x: 1, y: [2, 3]}"])
    assert split_values("a='1,2',\"3,\"") == ("a", ["'1,2'", '"3,"'])


def test_long_settings_get_a_folder_that_a_file_system_takes():
    points = [Point(Path("t.yaml"), "demo", 0, (f"a={'x' * 300}{end}",), Path("out"), ()) for end in "ab"]
    assert all(len(part.encode()) <= 200 for point in points for part in point.folder.parts)
    assert points[0].folder != points[1].folder


def test_tasks_by_settings_have_quality_in_the_cells_and_the_cost_below(tmp_path):
    def entry(psnr, ssim, seconds, unet, images=("a", "b")):
        values = {"psnr": psnr, "ssim": ssim, "seconds": seconds, "unet": unet, "unet_backward": 0.0}
        return Entry("", [Observation(image, image, "", values) for image in images])

    panels = {
        "one_task": [("p/sampler=x", entry(20.0, 0.5, 1.0, 3.0)), ("p/sampler=long", entry(21.0, 0.6, 2.0, 4.0))],
        "other": [("p/sampler=x", entry(9.0, 0.1, 5.0, 3.0, "a"))],
        "third": [("p/sampler=x", entry(8.0, 0.1, 3.0, 3.0, "a"))],
    }
    (tmp_path / "t.md").write_text(grid_table(panels, {"other": entry(10.0, 0.2, 0.0, 0.0, "a")}))
    cells = read_grid(tmp_path / "t.md")
    assert cells["one task"] == {"images": "2", "baseline": "", "x": "20.00 / 0.500", "long": "**21.00 / 0.600**"}
    assert cells["other"] == {"images": "1", "baseline": "**10.00 / 0.200**", "x": "9.00 / 0.100", "long": ""}
    assert cells["seconds"] == {"images": "", "baseline": "0.0", "x": "3.0", "long": "2.0"}  # the middle of three
    assert cells["UNet passes"] == {"images": "", "baseline": "0 + 0", "x": "3 + 0", "long": "4 + 0"}
    assert cells["encoder passes"]["x"] == ""  # a run of before they were counted


def test_columns_over_different_numbers_of_images_are_told(tmp_path):
    def entry(*images):
        return Entry("", [Observation(image, image, "", {"psnr": 20.0, "ssim": 0.5}) for image in images])

    panels = {"one": [("x", entry("a", "b")), ("y", entry("a"))], "other": [("x", entry("a")), ("y", entry("a"))]}
    (tmp_path / "t.md").write_text(grid_table(panels, {}))
    assert [cells["images"] for cells in list(read_grid(tmp_path / "t.md").values())[:2]] == ["1 or 2", "1"]


def test_the_front_is_what_nothing_beats_in_both():
    assert front([(1, 20), (2, 25), (2, 24), (3, 25), (4, 26), (5, 22)]) == [(1, 20), (2, 25), (4, 26)]
