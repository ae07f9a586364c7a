"""The page on which a photo is restored: its parts, and the whole driven in a browser."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ldm_inverse.runs.settings import from_words
from sample_condition import main as restore
from scripts.app import main
from scripts.webapp.faults import FAULTS, Answers, words
from scripts.webapp.job import ROOT, Job
from scripts.webapp.photos import keep, keep_kernel, mask_of
from tests.browser import chromium
from tests.runs import QUICK
from tests.tiny import SIDE
from util.cli import split_word
from util.errors import UserError

DEMO = ["--ldm_config", "configs/latent-diffusion/demo-ldm-vq-4.yaml", "--diffusion_config"]
DEMO += ["models/demo/model.safetensors"]


def test_gradio_is_asked_for_in_a_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main([]) == 2
    assert capsys.readouterr().err == "error: the page needs Gradio: pip install -r requirements-app.txt\n"


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_becomes_words_that_the_command_takes(fault, tmp_path, monkeypatch, capsys):
    photo = np.random.RandomState(0).randint(0, 256, (32, 32, 3) if fault == "small" else (128, 128, 3))
    Image.fromarray(photo.astype(np.uint8)).save(tmp_path / "photo.png")
    mask = np.full((128, 128), 255, np.uint8)
    mask[30:60, 30:60] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    told = [*words(fault, Answers(tmp_path / "mask.png")), *DEMO, "--measurement", str(tmp_path / "photo.png")]
    monkeypatch.chdir(ROOT)
    assert restore([*told, "--preset", "fastest", "--save_dir", str(tmp_path), "--dry_run"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out.partition("\nmodel ")[0])
    names = {"a hole": "inpainting", "blurred": "gaussian_blur", "small": "super_resolution", "noisy": "noise"}
    assert settings["measurement"]["operator"]["name"] == names.get(fault, "jpeg")
    assert settings["measurement"]["noise"]["sigma"] == pytest.approx(4 / 255, rel=0.01)


def test_a_folder_of_any_name_is_told_as_it_is():
    for folder in (Path("mine, 2024: a"), Path("it's #1 {new}")):
        for fault, key in (("a hole", "mask_file"), ("blurred", "kernel")):
            operator = words(fault, Answers(folder / "mask.png", kernel=folder / "kernel.npy"))[2]
            told = from_words([split_word(operator)])["measurement"]["operator"]
            assert told[key] in {str(folder / "mask.png"), str(folder / "kernel.npy")}


def test_a_blur_may_have_its_kernel_in_a_file(tmp_path):
    photo, kernel = ROOT / "data" / "own" / "blurred.png", ROOT / "data" / "own" / "kernel.npy"
    assert keep_kernel(kernel, tmp_path, photo, None) == "kernel.npy"
    assert (tmp_path / "kernel.npy").read_bytes() == kernel.read_bytes()
    (operator,) = (word for word in words("blurred", Answers(kernel=tmp_path / "kernel.npy")) if "operator" in word)
    assert operator == f"measurement.operator={{name: motion_blur, kernel: {tmp_path / 'kernel.npy'}, boundary: valid}}"
    with pytest.raises(UserError, match="needs the photo as it is"):
        keep_kernel(kernel, tmp_path, photo, 64)
    (tmp_path / "no.npy").write_text("a kernel, honestly")
    with pytest.raises(UserError, match=r"not a \.npy file"):
        keep_kernel(tmp_path / "no.npy", tmp_path, photo, None)


@pytest.mark.slow
def test_a_kernel_is_asked_for_where_a_photo_is_blurred(page, browser):
    address, folder = page
    before = set((folder / "results").glob("*")) if (folder / "results").exists() else set()
    open_photo(browser, address, "blurred")
    find(browser, "#fault input[value=blurred]").click()
    find(browser, "#kernel input[type=file]").send_keys(str(ROOT / "data/own/kernel.npy"))
    wait_for(lambda: "kernel" in find(browser, "#kernel").text)
    find(browser, "#start").click()
    wait_for(lambda: "motion_blur" in find(browser, "#command .cm-content").text)
    find(browser, "#cancel").click()
    wait_for(lambda: status(browser) == "stopped")
    (run,) = set((folder / "results").iterdir()) - before
    assert (run / "kernel.npy").read_bytes() == (ROOT / "data" / "own" / "kernel.npy").read_bytes()


def test_the_mask_lies_where_it_was_painted(tmp_path):
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    layer = np.zeros((100, 200, 4), np.uint8)
    layer[40:60, 90:110, 3] = 128  # in the middle
    layer[:10, :10, 3] = 255  # and in a corner, which is cut off
    painted = {"layers": [Image.fromarray(layer)], "background": None}
    whole = mask_of(painted, keep(tmp_path / "a.png", tmp_path, None), is_cut=False)
    assert np.array_equal(np.asarray(whole) == 0, layer[..., 3] > 0)
    cut = np.asarray(mask_of(painted, keep(tmp_path / "a.png", tmp_path, 50), is_cut=True))
    assert cut.shape == (50, 50)
    assert (cut[20:30, 20:30] == 0).all()
    assert (cut == 0).sum() == 100
    assert mask_of({"layers": [Image.new("RGBA", (200, 100))]}, tmp_path / "a.png", is_cut=False) is None
    assert mask_of(None, tmp_path / "a.png", is_cut=False) is None


def test_a_photo_is_kept_as_it_is_or_cut(tmp_path):
    (tmp_path / "kept").mkdir()
    Image.new("L", (60, 40), 7).save(tmp_path / "A.JPG")
    whole = keep(tmp_path / "A.JPG", tmp_path / "kept", None)
    assert whole.name == "photo.jpg"
    assert whole.read_bytes() == (tmp_path / "A.JPG").read_bytes()
    assert Image.open(keep(tmp_path / "A.JPG", tmp_path / "kept", 32)).size == (32, 32)


# ---------------------------------------------------------------- the command in a process of its own


@pytest.fixture
def told(place, tmp_path):
    """The words of a short restoration with the tiny model, and its folder."""
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)).save(tmp_path / "p.png")
    return [
        *words("noisy", Answers()),
        *("--ldm_config", str(place / "tiny.yaml"), "--diffusion_config", str(place / "tiny.safetensors")),
        *("--measurement", str(tmp_path / "p.png"), "--ddim_steps", "3", "--save_dir", str(tmp_path / "run"), *QUICK),
    ]


def test_a_job_does_what_its_command_says(told, tmp_path):
    job = Job(told, tmp_path / "run")
    while job.is_running():
        job.wait(1)
    assert job.outcome() == "done"
    assert job.progress().startswith("step 3 of 3")
    assert job.result() == tmp_path / "run" / "recon" / "p.png"
    assert job.estimate() is not None
    again = shlex.split(job.command())
    assert again[:2] == ["python", "sample_condition.py"]
    assert again[2:] == told


def test_a_job_tells_its_commands_error(told, tmp_path):
    job = Job([*told, "--preset", "nonsense"], tmp_path / "run")
    while job.is_running():
        job.wait(1)
    assert job.outcome().startswith("error: ")
    assert "nonsense" in job.outcome()
    assert job.result() is None


def test_a_job_can_be_stopped(told, tmp_path):
    job = Job([*told, "--ddim_steps", "1000"], tmp_path / "run")
    deadline = time.monotonic() + 120
    while "step" not in job.progress() and job.is_running() and time.monotonic() < deadline:
        job.wait(0.2)
    job.stop()
    assert not job.is_running()
    assert job.outcome() == "stopped"
    assert job.result() is None


# ---------------------------------------------------------------- the page in a browser

# Runs in every Python process of the server, and of the commands that it starts: writes down who is asked for.
NO_SOCKETS = """
import os, socket
def refuse(name, host):
    if str(host) not in ("127.0.0.1", "localhost", "::1", "None", "0.0.0.0", ""):
        with open(os.environ["ASKED"], "a") as file:
            file.write(f"{name} {host}\\n")
        raise OSError(f"no sockets here: {name} {host}")
connect, look_up = socket.socket.connect, socket.getaddrinfo
def checked_connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        refuse("connect", address[0])
    return connect(self, address)
def checked_look_up(host, *args, **kwargs):
    refuse("getaddrinfo", host)
    return look_up(host, *args, **kwargs)
socket.socket.connect, socket.getaddrinfo = checked_connect, checked_look_up
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a page that is served without sockets to elsewhere, and the file of who was asked for."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("app")
    (folder / "sitecustomize.py").write_text(NO_SOCKETS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(folder), "ASKED": str(folder / "asked"), "HOME": str(folder)}
    command = [sys.executable, "scripts/app.py", "--port", str(port), "--save_dir", str(folder / "results")]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and server.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
                break
            except OSError:
                time.sleep(0.5)
        assert server.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}/", folder
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(30) in (0, 130)


@pytest.fixture
def browser():
    closed = ("--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    with chromium("performance", *closed) as driver:
        driver.set_window_size(1400, 1600)
        yield driver


def wait_for(what, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def find(browser, selector):
    from selenium.webdriver.common.by import By

    return wait_for(lambda: browser.find_elements(By.CSS_SELECTOR, selector))[0]


def status(browser):
    return find(browser, "#status textarea").get_attribute("value")


def open_photo(browser, address, name="scratched"):
    """Open the page, and drop a photo on it."""
    browser.get(address)
    find(browser, "#photo input[type=file]").send_keys(str(ROOT / f"data/own/{name}.png"))
    wait_for(lambda: name in find(browser, "#photo").text)
    time.sleep(3)  # the editor draws it


def paint(browser):
    from selenium.webdriver import ActionChains

    canvas = find(browser, "#painted canvas")
    across, down = canvas.size["width"] // 32, canvas.size["height"] // 40
    stroke = ActionChains(browser, duration=50).move_to_element_with_offset(canvas, -4 * across, -4 * down)
    stroke.click_and_hold()
    for _ in range(8):
        stroke.move_by_offset(across, down)
    stroke.release().perform()
    time.sleep(1)


def start_painted(browser):
    """Paint and start, again where the editor had not drawn the photo yet, as on a busy machine."""

    def has_begun():
        paint(browser)
        find(browser, "#start").click()
        deadline = time.monotonic() + 20
        while not status(browser) and time.monotonic() < deadline:
            time.sleep(0.2)
        return status(browser)

    wait_for(has_begun, 300)


def asked_elsewhere(browser, address):
    """Requests of the page to any address but its own."""
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked
    return [url for url in asked if not url.startswith((address, "data:", "blob:"))]


@pytest.mark.slow
def test_from_a_painted_hole_to_the_saved_picture(page, browser):
    address, folder = page
    open_photo(browser, address)
    start_painted(browser)
    seen = set()
    wait_for(lambda: seen.add(status(browser)) or seen & {"done"} or any("error" in text for text in seen), 400)
    assert "done" in seen, seen
    assert any("left" in text for text in seen), seen
    run = max((folder / "results").iterdir())  # on a busy machine it may have been started twice
    mask = np.asarray(Image.open(run / "mask.png"))
    assert 0.02 < (mask == 0).mean() < 0.5
    saved = Image.open(run / "run" / "recon" / "photo.png")
    assert saved.size == (128, 128)
    kept = np.asarray(saved)[mask == 255].astype(int) - np.asarray(Image.open(run / "photo.png"))[mask == 255]
    assert np.abs(kept).mean() < 6, "what was not painted over stays"
    link = wait_for(lambda: find(browser, "#result a")).get_attribute("href")
    assert urllib.request.urlopen(link).read() == (run / "run" / "recon" / "photo.png").read_bytes()
    assert find(browser, "#pair img")
    command = find(browser, "#command .cm-content").text.replace("\n", "")
    assert command.startswith("python sample_condition.py")
    assert asked_elsewhere(browser, address) == []
    assert not (folder / "asked").exists(), (folder / "asked").read_text()


@pytest.mark.slow
def test_cancel(page, browser):
    address, folder = page
    before = set((folder / "results").glob("*")) if (folder / "results").exists() else set()
    open_photo(browser, address)
    start_painted(browser)
    wait_for(lambda: "step" in status(browser))
    find(browser, "#cancel").click()
    wait_for(lambda: status(browser) == "stopped")
    run = max(set((folder / "results").iterdir()) - before)
    assert not list(run.glob("run/recon/*"))
    time.sleep(2)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(run) not in running


@pytest.mark.slow
def test_what_is_missing_is_told(page, browser):
    address, _ = page
    browser.get(address)
    find(browser, "#start").click()
    assert "drop a photo first" in wait_for(lambda: find(browser, ".toast-body").text)
