"""scripts/download_models.sh hf against a local server that behaves like the Hugging Face hub."""

import hashlib
import json
import os
from importlib.util import find_spec
from urllib.parse import unquote, urlsplit

import pytest

from ldm.checkpoints.diffusers import weight_files
from ldm.checkpoints.places import resolve_model
from scripts.hub_model import needed
from tests.download import LocalServer, download, files

ID, COMMIT = "CompVis/ldm-celebahq-256", "0123456789012345678901234567890123456789"
LARGE = 100_000  # bytes from which files lie in large-file storage
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def content(size, name):
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


# A repository as the hub's are: of all its files only some are needed.
FILES = {
    "README.md": content(500, "card"),
    "LICENSE": content(900, "licence"),
    "model_index.json": b'{"_class_name": "LDMPipeline"}',
    "unet/config.json": b"{}",
    WEIGHTS: content(300_000, "unet"),
    "vqvae/config.json": b"{ }",
    "vqvae/diffusion_pytorch_model.bin": content(150_000, "vqvae"),
    "scheduler/scheduler_config.json": b"{  }",
}
OTHERS = {
    "unet/diffusion_pytorch_model.bin": content(200_000, "unet again"),
    "unet/diffusion_pytorch_model.fp16.safetensors": content(150_000, "unet in half"),
    "unet/diffusion_flax_model.msgpack": content(150_000, "flax"),
    "safety_checker/model.safetensors": content(150_000, "checker"),
    ".gitattributes": b"*.bin filter=lfs",
    "../escape.json": b"{}",
}


class Hub(LocalServer):
    """A hub of one model. Its attributes are how it behaves; `asked` lists the paths and ranges that were asked for."""

    def __init__(self):
        super().__init__()
        self.files = FILES | OTHERS
        self.sent = dict(self.files)  # what is sent, where that differs from what is announced
        self.cut_after = {}  # bytes of a file after which the next answer breaks off
        self.token = None  # where only who knows it gets anything
        self.asked = []

    def description(self):
        siblings = []
        for name, body in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
            entry = {"rfilename": name, "size": len(body), "blobId": blob}
            if len(body) >= LARGE:
                entry["lfs"] = {"sha256": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 130}
            siblings.append(entry)
        return json.dumps(
            {"id": ID, "sha": COMMIT, "cardData": {"license": "apache-2.0"}, "siblings": siblings}
        ).encode()

    def answer(self, request):
        path = unquote(urlsplit(request.path).path)
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            request.send_error(401)
            return
        if path == f"/api/models/{ID}":
            self.send(request, path, self.description(), "application/json")
            return
        name = path.removeprefix(f"/{ID}/resolve/{COMMIT}/")
        if name == path or name not in self.sent:
            request.send_error(404)
            return
        if request.command == "GET":
            self.asked.append((name, request.headers.get("Range")))
        self.send(request, name, self.sent[name], "binary/octet-stream")

    def send(self, request, name, body, kind):
        asked = request.headers.get("Range") if request.command == "GET" else None
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if start and start >= len(body):
            request.send_error(416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body) - start))
        request.send_header("ETag", f'"{hashlib.sha1(self.files.get(name, body)).hexdigest()}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("Accept-Ranges", "bytes")
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[start : start + self.cut_after.pop(name, len(body))])


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def without_library(tmp_path):
    """A folder for PYTHONPATH that makes huggingface_hub missing."""
    folder = tmp_path / "without"
    folder.mkdir()
    (folder / "huggingface_hub.py").write_text("raise ImportError")
    return str(folder)


@pytest.fixture
def run(hub, tmp_path, without_library):
    """Run the script with the hub and a models folder of the test's own; returns (status, messages)."""

    def run(*names, **environment):
        clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": without_library}
        return download(["hf", *names], tmp_path, {**clean, **own, **environment})

    return run


WHOLE = {f"hub/{ID}/{name}": body for name, body in FILES.items()}


def test_what_is_needed_comes_to_its_place_with_its_licence_and_nothing_else(run, hub, tmp_path):
    status, messages = run(ID)
    assert status == 0, messages
    assert files(tmp_path) == WHOLE
    assert sorted(name for name, _ in hub.asked) == sorted(FILES)
    assert "licence apache-2.0; 8 files" in messages
    assert resolve_model(ID, tmp_path / "models") == tmp_path / "models" / "hub" / ID
    assert not (tmp_path / "models" / ".downloads").exists()


@pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="needs huggingface_hub")
def test_by_huggingface_hub_it_is_the_same(run, tmp_path):
    status, messages = run(ID, PYTHONPATH="")
    assert status == 0, messages
    assert files(tmp_path) == WHOLE


def test_what_is_there_is_not_fetched_again(run, hub):
    assert run(ID)[0] == 0
    before = len(hub.asked)
    status, messages = run(ID)
    assert (status, len(hub.asked)) == (0, before)
    assert "there already" in messages


def test_a_broken_connection_is_taken_up_where_it_stopped(run, hub, tmp_path):
    hub.cut_after = {WEIGHTS: 70_000}
    assert run(ID)[0] == 0
    assert files(tmp_path) == WHOLE
    assert [asked for name, asked in hub.asked if name == WEIGHTS] == [None, "bytes=70000-"]


def test_a_later_run_goes_on_where_an_interrupted_one_stopped(run, hub, tmp_path):
    part = tmp_path / "models" / ".downloads" / "hub" / ID / WEIGHTS
    part.parent.mkdir(parents=True)
    part.write_bytes(FILES[WEIGHTS][:123_456])
    (part.parent / "config.json").write_bytes(FILES["unet/config.json"])
    assert run(ID)[0] == 0
    assert files(tmp_path) == WHOLE
    assert (WEIGHTS, "bytes=123456-") in hub.asked
    assert "unet/config.json" not in [name for name, _ in hub.asked]


@pytest.mark.parametrize("name", [WEIGHTS, "unet/config.json"])
def test_what_is_not_as_announced_is_thrown_away_and_said(name, run, hub, tmp_path):
    hub.sent[name] = bytes(len(FILES[name]))
    status, messages = run(ID)
    assert status == 1
    assert f"not what the hub has: {name}" in messages
    assert "run the same command to fetch it anew" in messages
    assert not (tmp_path / "models" / "hub").exists()
    hub.sent[name] = FILES[name]
    assert run(ID)[0] == 0
    assert files(tmp_path) == WHOLE


def test_a_model_that_is_not_for_everybody(run, hub, tmp_path):
    hub.token = "secret"
    status, messages = run(ID)
    assert status == 1
    assert "the server answers 401. A model that is not for everybody needs HF_TOKEN" in messages
    assert run(ID, HF_TOKEN="secret")[0] == 0
    assert files(tmp_path) == WHOLE


@pytest.mark.parametrize("name", ["celebahq", "../x/y", "a/b/c", "a/..", "https://huggingface.co/a/b"])
def test_what_is_no_id_is_refused(name, run, hub):
    status, messages = run(name)
    assert status == 2
    assert "is no id of a model" in messages
    assert not hub.asked


def test_an_id_that_is_not_there(run, tmp_path):
    status, messages = run("CompVis/nothing")
    assert status == 1
    assert "the server answers 404" in messages
    assert not (tmp_path / "models" / "hub").exists()


PAPERS = {name: FILES[name] for name in ("README.md", "LICENSE")}
SINGLE = PAPERS | {name: content(2000, name) for name in ("one.safetensors", "two.ckpt", "sub/three.safetensors")}


def test_one_checkpoint_after_the_other(run, hub, tmp_path):
    hub.files = hub.sent = SINGLE
    folder, there = tmp_path / "models" / "hub" / ID, dict(PAPERS)
    for name in ("one.safetensors", "two.ckpt", "sub/three.safetensors"):
        status, messages = run(f"{ID}:{name}")
        assert status == 0, messages
        there[name] = SINGLE[name]
        assert files(tmp_path) == {f"hub/{ID}/{one}": body for one, body in there.items()}
        assert f"(--model {folder / name})" in messages
        assert resolve_model(folder / name) == folder / name
    before = len(hub.asked)
    status, messages = run(f"{ID}:two.ckpt")
    assert (status, len(hub.asked)) == (0, before)
    assert f"there already: {folder / 'two.ckpt'}" in messages


def test_a_whole_model_beside_a_checkpoint_of_its_repository(run, hub, tmp_path):
    hub.files = hub.sent = FILES | SINGLE
    assert run(f"{ID}:one.safetensors")[0] == 0
    status, messages = run(ID)
    assert status == 0, messages
    assert files(tmp_path) == WHOLE | {f"hub/{ID}/one.safetensors": SINGLE["one.safetensors"]}
    assert f"(--model {ID})" in messages


def test_the_only_checkpoint_of_a_repository_is_there_by_either_name(run, hub, tmp_path):
    hub.files = hub.sent = {"one.safetensors": SINGLE["one.safetensors"]}
    assert run(f"{ID}:one.safetensors")[0] == 0
    status, messages = run(ID)
    assert (status, len(hub.asked)) == (0, 1)
    assert "there already" in messages
    assert files(tmp_path) == {f"hub/{ID}/one.safetensors": SINGLE["one.safetensors"]}


def test_what_is_left_of_another_download_is_not_taken_for_a_model(run, hub, tmp_path):
    hub.files = hub.sent = SINGLE
    part = tmp_path / "models" / ".downloads" / "hub" / ID / "two.ckpt"
    part.parent.mkdir(parents=True)
    part.write_bytes(SINGLE["two.ckpt"][:500])
    assert run(f"{ID}:one.safetensors")[0] == 0
    assert not (tmp_path / "models" / "hub" / ID / "two.ckpt").exists()
    assert run(f"{ID}:two.ckpt")[0] == 0
    assert ("two.ckpt", "bytes=500-") in hub.asked
    assert (tmp_path / "models" / "hub" / ID / "two.ckpt").read_bytes() == SINGLE["two.ckpt"]


def test_which_files_are_needed():
    single = ["README.md", "sd-v1-4.ckpt", "sd-v1-4-full-ema.ckpt"]
    with pytest.raises(
        ValueError, match=r"several models: ask for one as ID:FILE \(sd-v1-4.ckpt, sd-v1-4-full-ema.ckpt\)"
    ):
        needed(single)
    assert needed(single, "sd-v1-4.ckpt") == ["README.md", "sd-v1-4.ckpt"]
    clip = ["README.md", "config.json", "merges.txt", "model.safetensors", "pytorch_model.bin", "vocab.json"]
    assert needed(clip) == ["README.md", "merges.txt", "vocab.json"]
    shards = [f"unet/diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    repository = ["model_index.json", "unet/config.json", *shards, index, "unet/model.onnx", "text_encoder/config.json",
                  "text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors", "tokenizer/vocab.json",
                  "tokenizer/merges.txt", "feature_extractor/preprocessor_config.json"]  # fmt: skip
    wanted = set(repository) - {"unet/model.onnx", "text_encoder/model.fp16.safetensors", repository[-1]}
    assert set(needed(repository)) == wanted
    with pytest.raises(ValueError, match="no model that can be used"):
        needed(["README.md", "model.onnx"])


PIPELINE = ["model_index.json", "unet/config.json", "vae/config.json"]


@pytest.mark.parametrize("word", ["", ".fp32", ".fp16", ".bf16"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_of_every_precision_that_the_loader_reads_are_needed(word, suffix):
    weights = [f"unet/diffusion_pytorch_model{word}.{suffix}", f"vae/diffusion_pytorch_model.fp16.{suffix}"]
    others = ["unet/diffusion_pytorch_model.ema.safetensors", "unet/model.safetensors"]
    assert set(needed([*PIPELINE, *weights, *others])) == {*PIPELINE, *weights}


def test_the_first_precision_is_that_of_the_loader(tmp_path):
    names = [f"diffusion_pytorch_model{word}.{suffix}"
             for word in (".bf16", ".fp16", ".fp32", "") for suffix in ("bin", "safetensors")]  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    while names:
        (path,) = weight_files(tmp_path, ("diffusion_pytorch_model",))
        assert f"unet/{path.name}" in needed(["model_index.json", *(f"unet/{name}" for name in names)])
        names.remove(path.name)
        path.unlink()


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["model_index.json", "vae/diffusion_pytorch_model.bin"], "unet"),
        ([*PIPELINE, "unet/diffusion_pytorch_model.bin", "vae/diffusion_flax_model.msgpack"], "vae"),
        ([*PIPELINE, "unet/diffusion_pytorch_model.non_ema.bin", "vae/diffusion_pytorch_model.bin"], "unet"),
        ([*PIPELINE, "unet/diffusion_pytorch_model-00001-of-00002.bin"], "unet"),
    ],
)
def test_a_part_without_weights_is_told_before_anything_is_fetched(names, part):
    with pytest.raises(ValueError, match=f"it has no weights in {part}/ that can be used"):
        needed(names)


@pytest.mark.parametrize(
    ("index", "stem"),
    [
        ("model.safetensors.index.json", "model"),
        ("pytorch_model.bin.index.json", "pytorch_model"),
        ("model.safetensors.index.fp16.json", "model.fp16"),
        ("model.fp16.safetensors.index.json", "model.fp16"),
    ],
)
def test_an_index_is_one_checkpoint_with_its_shards(index, stem):
    suffix = "bin" if ".bin" in index else "safetensors"
    shards = [f"{stem}-0000{n}-of-00002.{suffix}" for n in (1, 2)]
    names = ["README.md", *shards, index, "config.json", f"other-00001-of-00001.{suffix}"]
    wanted = ["README.md", *shards, index]
    assert needed(names) == needed(names, index) == needed(names, shards[1]) == wanted
    with pytest.raises(ValueError, match=f"several models: .*{index}, one.ckpt"):
        needed([*names, "one.ckpt"])
    for less in ({*names} - {*shards}, {*names} - {index}):
        with pytest.raises(ValueError, match="no shards of|no model that can be used"):
            needed(less)
        with pytest.raises(ValueError, match="no shards of|no index of the shards"):
            needed(less, (less & {index, *shards}).pop())
