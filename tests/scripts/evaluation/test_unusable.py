"""Words and runs that cannot be evaluated are refused in a line."""

import shutil

import pytest

WORDS = [
    ([], "give either runs, or --recon"),
    (["RUN", "--recon", "RUN/recon"], "give either runs, or --recon"),
    (["--recon", "RUN/recon"], "--reference"),
    (["nowhere"], "no run in nowhere"),
    (["RUN/label"], "no run in"),
    (["RUN", "--lpips", "squeeze"], "squeeze"),
    (["RUN", "--nothing"], "--nothing"),
    (["--recon", "nowhere", "--reference", "RUN/label"], "nowhere"),
]


@pytest.mark.parametrize(("words", "message"), WORDS)
def test_words_that_cannot_be_used(words, message, runs, refused):
    folder = str(runs / "inpainting" / "one")
    assert message in refused(*(word.replace("RUN", folder) for word in words))


SPOILT = {
    "settings.yaml": ("a: 1", "is not the record of a run"),
    "results/a.json": ("{", "is damaged"),
    "label/a.safetensors": ("{", "is not a readable measurement"),
    "input/a.png": ("", "an empty file"),
    "recon/a.png": (None, "recon/a.png"),
    "progress/a/trace.csv": ("unet\nmany\n", "is not a readable trace"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_damaged_folder_is_told(name, runs, refused, tmp_path):
    content, message = SPOILT[name]
    folder = shutil.copytree(runs / "inpainting" / "one", tmp_path / "spoilt")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    assert message in refused(folder)
