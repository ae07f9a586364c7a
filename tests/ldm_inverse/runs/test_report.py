"""The page of a run, in a real browser: Debian's packages chromium and chromium-driver, driven by selenium."""

import base64
import io
import os
import re
import shutil
import time

import numpy as np
import pytest
import yaml
from PIL import Image

from ldm_inverse.runs.folder import RunFolder
from ldm_inverse.runs.manifest import FORMAT
from ldm_inverse.runs.report.page import report
from ldm_inverse.runs.results import FAILED, MEASURED, METRICS, csv_of
from ldm_inverse.runs.trace import TRACE
from scripts.report import main
from tests.browser import chromium
from tests.runs import shown

CURVES = True
RUN = "<b>run & more"
TAG = "<img src=x onerror=document.title='hacked'>"
END = "</script><script>document.title='hacked'</script><!--<script>"
NAMES = [TAG, "b 100%#?&amp;", "c", "d"]
PSNR = [24.0, 9.5, 31.25, float("inf")]
RESIDUALS = {"residual": 0.010523, "noise": 0.01, "baseline_residual": 0.00519, "residual_per_noise": 1.05}
SIDE = 16
TRUTH, MEASUREMENT, RESTORATION = (200, 100, 40), (128, 128, 128), (168, 132, 8)  # 32 off in each colour


def write_run(folder, names=tuple(NAMES), truth=True):
    """Write the folder of a run as the command leaves it, with plain pictures."""
    run = RunFolder(folder, names)
    colours = {"label": MEASUREMENT, "recon": RESTORATION} | ({"input": TRUTH} if truth else {})
    for name in names:
        for where, colour in colours.items():
            run.write_picture(where, name, np.full((SIDE, SIDE, 3), colour, np.uint8))
        losses = [(0, 0.1), (1, 0.01), (2, 0.001)]
        about = {"step": 3, "timestep": 40, "stage": "pixel", "iterations": 3, "first_loss": 0.1, "last_loss": 0.001}
        run.write_trace(name, [{**dict.fromkeys(TRACE), **about, "noise_floor": 1e-4, "stop": END, "losses": losses}])
    columns = METRICS if truth else MEASURED
    values = {"sample": 0, **dict.fromkeys(columns[2:], 20.0)}
    own = [{"psnr": psnr, "residual_per_noise": 1.05} for psnr in PSNR] if truth else [RESIDUALS] * len(names)
    rows = [{**values, "image": name, **found} for name, found in zip(names, own, strict=False)]
    (folder / "metrics.csv").write_bytes(csv_of(columns, rows))
    failed = {"image": TAG, "sample": 0, "step": 2, "reason": END}
    (folder / "failed.csv").write_bytes(csv_of(FAILED, [failed]))
    settings = {"measurement": {"operator": {"name": TAG}, "noise": {"name": "gaussian", "sigma": 0.01}}}
    record = {"format": FORMAT, "settings": settings, "run": {"seed": 0, "data": END, "n_samples_per_class": 1}}
    record |= {"versions": {}, "checkpoint": {}, "threads": 1, "device": "cpu"}
    (folder / "settings.yaml").write_text(yaml.safe_dump(record))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / RUN)
    assert main([str(folder)]) == 0
    return folder


# The page's content.


def test_all_text_from_outside_is_inside_the_data_and_ends_nothing(folder):
    page = (folder / "report.html").read_text()
    data = shown(page.encode())
    assert [row["name"] for row in data["rows"]] == NAMES
    assert data["failures"] == [[TAG, "0", "2", END]]
    assert ["run.data", END] in data["settings"]
    assert "<title>&lt;b&gt;run &amp; more</title>" in page
    assert page.count("<script") == page.count("</script") == 2
    for text in (TAG, END):
        assert text not in page


def test_nothing_is_fetched(folder):
    page = (folder / "report.html").read_text()
    addresses = re.findall("https?://[^\\s\"']*", page)
    assert set(addresses) <= {"http://www.w3.org/2000/svg\\"}  # the name of a format
    for row in shown(page.encode())["rows"]:
        assert all(picture.startswith("data:image/") for picture in row["pictures"].values())


def test_pictures_beyond_the_limit_stay_where_they_are(folder, tmp_path, capsys):
    parts = ("input/{}.png", "label/{}.png", "recon/{}.png", "progress/{}/residual.svg")
    size = sum((folder / part.format(NAMES[0])).stat().st_size for part in parts)
    data = shown(report(folder, inlined_mb=1.5 * size / 1e6))
    assert [row["inlined"] for row in data["rows"]] == [True, False, False, False]
    assert "3 restorations" in data["notes"][0]
    path = tmp_path / "apart.html"
    assert main([str(folder), "--inline", "0", "--save", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert not any(row["inlined"] for row in shown(path.read_bytes())["rows"])


def test_what_is_no_run_is_told(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_file_is_named(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "progress" / "c" / "trace.csv").write_bytes(b"step,stage\n3,\xff\n")
    assert main([str(copy)]) == 2
    assert "trace.csv" in capsys.readouterr().err


# The page in a browser.


@pytest.fixture(scope="module")
def browser():
    with chromium("browser", "--hide-scrollbars") as driver:
        yield driver


def opened(browser, path, size=(1200, 1400)):
    """Open a page, and wait for its pictures; nothing may be complained about."""
    browser.set_window_size(*size)
    browser.get(path.as_uri())
    deadline = time.monotonic() + 60
    seen = "[...document.images].filter((image) => image.getClientRects().length)"
    loaded = f"return {seen}.every((image) => image.complete && image.naturalWidth > 0)"
    # A browser loads what is far below when it is scrolled to.
    browser.execute_script("[...document.images].forEach((image) => { image.loading = 'eager'; })")
    while not browser.execute_script(loaded):
        assert time.monotonic() < deadline, "a picture does not load"
        time.sleep(0.05)
    assert browser.get_log("browser") == []
    return browser


def names(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('#images td.name')].map((cell) => cell.textContent)"
    )


def one(browser, selector):
    return browser.find_element("css selector", selector)


def screenshot(element):
    return np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB")).astype(int)


def colour(pixels, across, down=0.5):
    """The colour at a place given in parts of the width and height."""
    return pixels[int(down * (pixels.shape[0] - 1)), int(across * (pixels.shape[1] - 1))]


def test_hostile_names_settings_and_reasons_are_shown_as_they_are(browser, folder):
    opened(browser, folder / "report.html")
    assert browser.title == RUN
    assert names(browser) == NAMES
    assert one(browser, "#name").text == TAG
    assert END in one(browser, "#failures").text
    assert TAG in one(browser, "#subtitle").text
    assert browser.execute_script("return document.querySelectorAll('img[src=x], h1 b, main script').length") == 0
    browser.execute_script("document.querySelector('#settings').open = true")
    assert END in one(browser, "#settings").text


def test_pictures_that_lie_beside_the_page_are_found(browser, folder, tmp_path):
    for path in (folder / "linked.html", tmp_path / "linked.html"):
        assert main([str(folder), "--inline", "0", "--save", str(path)]) == 0
        opened(browser, path)
        assert browser.execute_script("return document.images.length") > 3 * len(NAMES)
        assert tuple(colour(screenshot(one(browser, "[data-kind=truth] .view")), 0.5)) == TRUTH
    (folder / "linked.html").unlink()


def test_the_table_sorts_by_a_metric_worst_first_and_back(browser, folder):
    opened(browser, folder / "report.html")
    assert names(browser) == NAMES
    head = one(browser, "th[data-column=psnr]")
    for direction, order in (("ascending", (1, 0, 2, 3)), ("descending", (3, 2, 0, 1))):
        head.find_element("css selector", "button").click()
        assert head.get_attribute("aria-sort") == direction
        assert names(browser) == [NAMES[place] for place in order]
    browser.find_elements("css selector", "#images tbody tr")[1].click()
    assert one(browser, "#name").text == "c"
    one(browser, "#next").click()
    assert one(browser, "#name").text == TAG


def test_the_slider_uncovers_what_was_before(browser, folder):
    from selenium.webdriver import ActionChains

    opened(browser, folder / "report.html")
    stage = one(browser, "#stage")
    pixels = screenshot(stage)
    assert tuple(colour(pixels, 0.25)) == MEASUREMENT
    assert tuple(colour(pixels, 0.75)) == RESTORATION
    ActionChains(browser).move_to_element(stage).click_and_hold().move_by_offset(
        -stage.size["width"] * 0.4, 0
    ).release().perform()
    assert float(one(browser, "#cut").get_attribute("value")) == pytest.approx(10, abs=1)
    pixels = screenshot(stage)
    assert tuple(colour(pixels, 0.05)) == MEASUREMENT
    assert tuple(colour(pixels, 0.15)) == RESTORATION
    one(browser, "#before [value=truth]").click()
    assert tuple(colour(screenshot(stage), 0.05)) == TRUTH


def test_the_error_map_is_the_amplified_mean_difference(browser, folder):
    opened(browser, folder / "report.html")
    view = one(browser, "[data-kind=error] .view")
    for gain, expected in ((4, (185, 60, 80)), (20, (252, 255, 163))):  # 4 x 32 / 255: the middle of the scale
        browser.execute_script(f"gain.value = {gain}; gain.dispatchEvent(new Event('input'))")
        assert colour(screenshot(view), 0.5) == pytest.approx(expected, abs=4)


def test_zoom_moves_all_pictures_together(browser, folder):
    from selenium.webdriver import ActionChains

    opened(browser, folder / "report.html")

    def transforms():
        script = (
            "return [...document.querySelectorAll('#panes img, #stage img')].map((i) => getComputedStyle(i).transform)"
        )
        return browser.execute_script(script)

    assert len(transforms()) == 7  # two of them in the error map and two in the slider
    before = transforms()[0]
    view = one(browser, "[data-kind=truth] .view")
    ActionChains(browser).double_click(view).perform()
    assert one(browser, "#zoom").text == "2×"
    zoomed = transforms()
    ActionChains(browser).move_to_element(view).click_and_hold().move_by_offset(20, 10).release().perform()
    moved = transforms()
    one(browser, "#fit").click()
    assert before != zoomed[0] != moved[0]
    assert transforms()[0] == before
    panes, sliders = slice(0, 5), slice(5, 7)  # the slider has a size of its own
    for state in (zoomed, moved):
        assert len(set(state[panes])) == len(set(state[sliders])) == 1


def test_the_residual_is_drawn_with_its_noise_floor(browser, folder):
    opened(browser, folder / "report.html")
    image = one(browser, "#plot img")
    assert browser.execute_script("return arguments[0].decode().then(() => arguments[0].naturalWidth)", image) > 500
    drawn = base64.b64decode(image.get_attribute("src").partition(",")[2]).decode()
    assert "noise floor 0.0001" in drawn
    assert drawn == (folder / "progress" / names(browser)[0] / "residual.svg").read_text()
    browser.execute_script("document.querySelector('#residual details').open = true")
    assert "0.001" in one(browser, "#events").text


def test_without_a_truth_there_is_no_error_map(browser, tmp_path):
    folder = write_run(tmp_path / "own", ["a"], truth=False)
    assert main([str(folder)]) == 0
    opened(browser, folder / "report.html")
    kinds = [figure.get_attribute("data-kind") for figure in browser.find_elements("css selector", "#panes figure")]
    assert kinds == ["measurement", "restoration"]
    assert not one(browser, "#gain_label").is_displayed()
    cells = [cell.text for cell in browser.find_elements("css selector", "#images tbody td.number")]
    assert cells[:3] == ["0.01052", "0.01000", "0.005190"]
    tiles = {
        tile.text.split("\n")[1].partition(" (")[0]: tile for tile in browser.find_elements("css selector", ".tile")[1:]
    }
    assert tiles["residual"].text.split("\n")[0] == "0.01052"
    assert "(+0.00533)" in tiles["residual"].text
    assert not tiles["residual"].find_elements("css selector", ".better, .worse")  # more of it is neither


def test_what_is_far_from_its_noise_is_marked(browser, tmp_path):
    folder = write_run(tmp_path / "own", ["a", "b", "c"])
    table = (folder / "metrics.csv").read_text().splitlines()
    for place, ratio in ((1, "3.2"), (2, "0.3")):
        table[place] = table[place].rpartition(",")[0] + f",{ratio}"
    (folder / "metrics.csv").write_text("\n".join(table))
    assert main([str(folder)]) == 0
    opened(browser, folder / "report.html")
    assert [cell.text for cell in browser.find_elements("css selector", "#images td.worse")] == ["3.200", "0.3000"]
    (tile,) = (t.text for t in browser.find_elements("css selector", ".tile") if "far from the noise" in t.text)
    assert tile.split() == ["2", "far", "from", "the", "noise"]


@pytest.mark.parametrize("size", [(1600, 1000), (420, 900)])
def test_light_and_dark_and_any_width(browser, folder, size):
    opened(browser, folder / "report.html", size)
    light = {}
    for theme in ("auto", "light", "dark"):
        assert one(browser, "#theme").text.endswith(theme)
        light[theme] = screenshot(one(browser, "body"))[5, 5].mean()
        one(browser, "#theme").click()
    assert light["dark"] < 60 < 200 < light["light"]
    overhang = browser.execute_script("return document.documentElement.scrollWidth - innerWidth")
    assert overhang <= 0
    if os.environ.get("REPORT_SCREENSHOTS"):
        browser.save_screenshot(f"{os.environ['REPORT_SCREENSHOTS']}/{size[0]}.png")
