#!/usr/bin/env python3
"""List the files of a model on the Hugging Face hub that are needed, fetch them, and check what arrived.

scripts/download_models.sh calls this program. It uses the standard library, and huggingface_hub for `fetch`.
"""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PARTS = ("unet", "vqvae", "vae", "scheduler", "text_encoder", "tokenizer")  # of a pipeline; all others are not used
TOKENIZER = re.compile(r"(tokenizer|tokenizer_config|vocab|special_tokens_map)\.json|merges\.txt")
PAPERS = re.compile(r"(licen[cs]e|readme|notice)[^/]*", re.IGNORECASE)
# What the weights of the parts that have some are called, and the words in such names that tell a precision, in the
# order in which ldm/checkpoints/diffusers.py looks for them.
WEIGHTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("unet", "vqvae", "vae"), ("diffusion_pytorch_model",)),
    "text_encoder": ("model", "pytorch_model"),
}
PRECISIONS = ("", "fp32", "fp16", "bf16")
CHECKPOINTS = (".safetensors", ".ckpt", ".pt", ".pth")
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.(safetensors|bin)")
INDEX = re.compile(r"(?P<stem>.+)\.(?P<suffix>safetensors|bin)\.index(?P<word>\.\w+)?\.json")  # of shards
_PLAIN = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


def needed(names: Iterable[str], wanted: str | None = None) -> list[str]:
    """Return which files of a repository a restoration needs, with its licence and its card.

    Args:
        names: all its files.
        wanted: the checkpoint that was asked for, in a repository of several.

    Raises:
        ValueError: there is no model in it, or more than one; the message says what is there.
    """
    names = [name for name in names if _PLAIN.fullmatch(name) and ".." not in name.split("/")]
    papers = [name for name in names if PAPERS.fullmatch(name)]
    if wanted:
        if wanted not in names:
            raise ValueError(f"it has no file {wanted!a}")
        return [*papers, *_with_shards(wanted, names)]
    if "model_index.json" in names:
        return [*papers, "model_index.json", *(name for part in PARTS for name in _of_part(part, names))]
    if tokenizer := [name for name in names if TOKENIZER.fullmatch(name)]:
        return [*papers, *tokenizer]
    whole = [name for name in names if name.endswith(CHECKPOINTS) and not SHARD.fullmatch(name)]
    found = [name for name in names if "/" not in name and (name in whole or INDEX.fullmatch(name))]
    if len(found) != 1:
        several = (
            f"several models: ask for one as ID:FILE ({', '.join(found[:8])})" if found else "no model that can be used"
        )
        raise ValueError(f"it has {several}")
    return [*papers, *_with_shards(found[0], names)]


def _of_part(part: str, names: list[str]) -> list[str]:
    """The settings of a part of a pipeline and one form of its weights: whole before half, safetensors before .bin.

    Raises:
        ValueError: it has none that can be read.
    """
    own = [name for name in names if name.startswith(f"{part}/")]
    texts = [name for name in own if re.fullmatch(r"(?!.*index).*\.(json|txt)", name)]
    if part not in WEIGHTS or not (own or part == "unet"):
        return texts
    for word in PRECISIONS:
        for stem in WEIGHTS[part]:
            for suffix in ("safetensors", "bin"):
                forms = (stem, word, suffix), (stem, suffix, "index", word, "json")
                for form in forms:
                    name = f"{part}/{'.'.join(filter(None, form))}"
                    if name in own:
                        return [*texts, *_with_shards(name, names)]
    known = f"{WEIGHTS[part][0]}.safetensors or .bin, in shards with an index, or with {', '.join(PRECISIONS[1:])}"
    raise ValueError(f"it has no weights in {part}/ that can be used ({known})")


def _with_shards(wanted: str, names: list[str]) -> list[str]:
    """A checkpoint with the files that belong to it: an index lists shards, and a shard is part of them all.

    Raises:
        ValueError: shards or their index are missing.
    """
    if shard := SHARD.fullmatch(wanted):
        indices = [name for name in names if _stem(name) == shard.groups()]
        if not indices:
            raise ValueError(f"it has no index of the shards of {wanted!a}")
        wanted = indices[0]
    if not _stem(wanted):
        return [wanted]
    shards = [name for name in names if (shard := SHARD.fullmatch(name)) and shard.groups() == _stem(wanted)]
    if not shards:
        raise ValueError(f"it has no shards of {wanted!a}")
    return [*shards, wanted]


def _stem(name: str) -> tuple[str, str] | None:
    """Return what the names of an index's shards have before their numbers and behind; None for another file."""
    index = INDEX.fullmatch(name)
    return (index["stem"] + (index["word"] or ""), index["suffix"]) if index else None


def listing(index: dict[str, Any], wanted: str | None) -> list[tuple[str, int, str]]:
    """Return (name, bytes, hash) of each file that is needed, of the hub's description of a model.

    A hash is "sha256:..." of a large file, and "git:..." of a small one.
    """
    entries = {entry["rfilename"]: entry for entry in index["siblings"]}
    found = []
    for name in needed(entries, wanted):
        entry = entries[name]
        large = entry.get("lfs") or {}
        digest = f"sha256:{large['sha256']}" if large.get("sha256") else f"git:{entry.get('blobId', '')}"
        found.append((name, int(entry.get("size", large.get("size", -1))), digest))
    return found


def is_whole(path: Path, size: int, digest: str) -> bool:
    """Whether a file is the one of this size and hash."""
    kind, _, expected = digest.partition(":")
    if not path.is_file() or (size >= 0 and path.stat().st_size != size):
        return False
    found = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind == "git":  # as git names a blob
        found.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return not expected or found.hexdigest() == expected


def fetch(model: str, revision: str, names: list[str], folder: Path, endpoint: str) -> None:
    """Fetch files by huggingface_hub, which goes on where it stopped."""
    from huggingface_hub import hf_hub_download  # an extra

    for name in names:
        hf_hub_download(model, name, revision=revision, local_dir=folder, endpoint=endpoint)


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["list", "check", "fetch"])
    parser.add_argument("index", type=Path, help="the hub's description of the model")
    parser.add_argument("--file", help="the checkpoint that is wanted, in a repository of several")
    parser.add_argument("--folder", type=Path, help="check, fetch: where the files are or go")
    parser.add_argument("--only", help="check: one file")
    parser.add_argument("--model", help="fetch: the model's id")
    parser.add_argument("--endpoint", help="fetch: the hub's address")
    args = parser.parse_args()
    try:
        index = json.loads(args.index.read_text())
        files = listing(index, args.file)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        print(str(error) if isinstance(error, ValueError) else f"no description of a model: {error}", file=sys.stderr)
        return 1
    if args.what == "list":
        licence = (index.get("cardData") or {}).get("license") or "not stated"
        print(index.get("sha") or "main", licence, *(name for name, _, _ in files), sep="\n")
    elif args.what == "fetch":
        names = [name for name, _, _ in files]
        fetch(args.model, index.get("sha") or "main", names, args.folder, args.endpoint)
    else:
        chosen = [one for one in files if args.only in (None, one[0])]
        damaged = [name for name, size, digest in chosen if not is_whole(args.folder / name, size, digest)]
        if damaged:
            print(f"not what the hub has: {', '.join(damaged)}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
