"""A tiny text model of CLIP with a tokenizer of single letters, as transformers makes and reads them."""

import json
from pathlib import Path
from typing import Any

LENGTH = 12
SHAPE = {
    **{"vocab_size": 600, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "max_position_embeddings": LENGTH, "hidden_act": "quick_gelu"},
}


def write_tokenizer(folder: Path) -> Path:
    """Write the files of a tokenizer that knows single letters, inside and at the end of a word."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def embedder_config(folder: Path) -> dict[str, Any]:
    """A conditioning stage with this text model; its tokenizer is written into a folder."""
    params = {"config": SHAPE, "max_length": LENGTH, "tokenizer": str(write_tokenizer(folder / "tokenizer"))}
    return {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": params}
