"""The conditioning stage of Stable Diffusion 1: CLIP's text model (Radford et al., 2021), by transformers."""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm.modules.encoders.text_settings import TextModelSettings
from util.errors import UserError
from util.logging import LOGGER
from util.settings import Count, read

LARGE = "openai/clip-vit-large-patch14"
MODELS = Path(__file__).resolve().parents[3] / "models" / "hub"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json")  # one or the other
_FRAME = 2  # tokens that mark a text's start and end


class FrozenCLIPEmbedder(nn.Module):
    """Texts to a context (B, length, width): what CLIP's text model makes of each token, behind its last norm.

    Args:
        version: which model; only `LARGE` is known by name.
        config: the model's settings, of `TextModelSettings`; by default those of `LARGE`.
        tokenizer: a folder with the tokenizer's files; by default where `LARGE` is on this machine. Nothing is fetched.
        max_length: tokens of a text, cut off or filled up to; by default as many as the model knows positions, or
            fewer where the tokenizer says so (its `model_max_length`), as diffusers has it.
        device, freeze: accepted because published settings name them; they change nothing.
        layer: which layer's output; only the last one's, behind the norm, is supported.

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
        layer: Literal["last"] | None = None,
    ):
        super().__init__()
        if version != LARGE and config is None:
            raise UserError(f"FrozenCLIPEmbedder: the text encoder {version!r:.80} is not known; only {LARGE} is")
        settings = read(TextModelSettings, config, "config of FrozenCLIPEmbedder")
        self.max_length = min(max_length or settings.max_position_embeddings, settings.max_position_embeddings)
        self._length_is_given = max_length is not None
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

    def _length(self) -> int:
        """How many tokens a text is cut off or filled up to."""
        if self._length_is_given:
            return self.max_length
        longest = self.tokenizer.model_max_length  # as its file says, which may say anything; 1e30 where it is silent
        if not isinstance(longest, int | float) or not longest >= _FRAME:
            raise UserError(f"the tokenizer's model_max_length is {longest!a:.40}: expected a number, {_FRAME} or more")
        return int(min(self.max_length, longest))

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, (B, length); a text that is cut off is told in the log.

        Raises:
            UserError: the tokenizer is another model's, or says no length that a text may have.
        """
        length = self._length()
        for text in texts:
            if (count := len(self.tokenizer(text)["input_ids"])) > length:
                LOGGER.warning("a text has %d tokens: those after the first %d are cut off", count, length)
        batch = self.tokenizer(list(texts), padding="max_length", max_length=length, truncation=True)
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
