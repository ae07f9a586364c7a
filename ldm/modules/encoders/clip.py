"""The conditioning stage of Stable Diffusion 1: CLIP's text model (Radford et al., 2021), by transformers."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, ConfigDict
from torch import Tensor, nn

from ldm.modules.sizes import Blocks, Channels, Entries
from util.errors import UserError
from util.logging import LOGGER
from util.settings import Count, Positive, Settings, read

LARGE = "openai/clip-vit-large-patch14"
MODELS = Path(__file__).resolve().parents[3] / "models" / "hub"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")  # one or the other


def _activation(value: Any) -> str:
    if value not in ("quick_gelu", "gelu"):
        raise ValueError("expected quick_gelu or gelu")
    return value


class TextModelSettings(Settings):
    """The shape of CLIP's text model, as its `config.json` has it; what else such a file says is not read.

    The defaults are those of `LARGE`, which Stable Diffusion 1 takes.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    vocab_size: Entries = 49408
    hidden_size: Channels = 768
    intermediate_size: Channels = 3072
    num_hidden_layers: Blocks = 12
    num_attention_heads: Channels = 12
    max_position_embeddings: Count = 77
    hidden_act: Annotated[str, BeforeValidator(_activation)] = "quick_gelu"
    layer_norm_eps: Positive = 1e-5


class FrozenCLIPEmbedder(nn.Module):
    """Texts to a context (B, max_length, width): what CLIP's text model makes of each token, behind its last norm.

    Args:
        version: which model; only `LARGE` is known by name.
        config: the model's settings, of `TextModelSettings`; by default those of `LARGE`.
        tokenizer: a folder with the tokenizer's files; by default where `LARGE` is on this machine. Nothing is fetched.
        max_length: tokens of a text, cut off or filled up to; by default as many as the model knows positions.
        device, freeze, layer: accepted because published settings name them; they change nothing.

    Raises:
        UserError: the package is missing, or settings are not those of such a model.
    """

    def __init__(
        self,
        version: str = LARGE,
        config: Mapping[str, Any] | None = None,
        tokenizer: str | None = None,
        max_length: Count | None = None,
        device: Any = None,
        freeze: Any = None,
        layer: Any = None,
    ):
        super().__init__()
        if version != LARGE and config is None:
            raise UserError(f"FrozenCLIPEmbedder: the text encoder {version!r:.80} is not known; only {LARGE} is")
        settings = read(TextModelSettings, config, "config of FrozenCLIPEmbedder")
        self.max_length = min(max_length or settings.max_position_embeddings, settings.max_position_embeddings)
        self.width, self.vocabulary = settings.hidden_size, settings.vocab_size
        transformers = _transformers()
        # The tokens' numbers are for an output that is not used here.
        unused = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        model = transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings.to_plain(), **unused))
        # Before version 5 of the package, the model was wrapped once more.
        self.transformer = getattr(model, "text_model", model)
        # Not among the weights, and needed where the model was built without memory.
        positions = torch.arange(settings.max_position_embeddings, device="cpu")[None]
        self.transformer.embeddings.register_buffer("position_ids", positions, persistent=False)
        self._folder, self._tokenizer = tokenizer, None

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, read when it is first asked for.

        Raises:
            UserError: its files are not on this machine, or not readable.
        """
        if self._tokenizer is None:
            self._tokenizer = _read_tokenizer(self._folder)
        return self._tokenizer

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, (B, max_length); a text that is cut off is told in the log.

        Raises:
            UserError: the tokenizer is another model's.
        """
        for text in texts:
            if (count := len(self.tokenizer(text)["input_ids"])) > self.max_length:
                LOGGER.warning("a text has %d tokens: those after the first %d are cut off", count, self.max_length)
        batch = self.tokenizer(list(texts), padding="max_length", max_length=self.max_length, truncation=True)
        tokens = torch.tensor(batch["input_ids"], device="cpu")
        if int(tokens.max()) >= self.vocabulary:
            raise UserError(f"the tokenizer has more than the text model's {self.vocabulary} tokens")
        return tokens.to(next(self.parameters()).device)

    @torch.no_grad()
    def forward(self, texts: str | Sequence[str]) -> Tensor:
        """Embed a text, or a batch of texts."""
        tokens = self.tokens([texts] if isinstance(texts, str) else texts)
        if tokens.is_meta:  # a model without weights, asked whether it would do
            return torch.empty(*tokens.shape, self.width, device="meta")
        return self.transformer(input_ids=tokens).last_hidden_state

    def encode(self, texts: str | Sequence[str]) -> Tensor:
        """As calling it; the name that published code has for it."""
        return self(texts)


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UserError("a model that takes texts needs transformers: pip install -r requirements-text.txt") from error


def _read_tokenizer(folder: str | None) -> Any:
    """Read a tokenizer from a folder, or `LARGE`'s from `models/hub` or transformers' own cache; nothing is fetched."""
    own = MODELS / LARGE
    for path in [Path(folder)] if folder else [own, own / "tokenizer"]:
        if any((path / name).is_file() for name in TOKENIZER_FILES):
            source = str(path)
            break
    else:
        if folder:
            raise UserError(f"{folder} holds no tokenizer: neither {' nor '.join(TOKENIZER_FILES)}")
        source = LARGE
    try:
        return _transformers().CLIPTokenizer.from_pretrained(source, local_files_only=True)
    except Exception as error:  # the tokenizers' own code raises nothing more special
        if source == LARGE:
            raise UserError(
                f"the tokenizer of {LARGE} is not on this machine: bash scripts/download_models.sh hf {LARGE}"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{source}: no tokenizer can be read: {ascii(reason)[1:-1][:160]}") from error
