"""The shape of CLIP's text model. No torch here: a folder's configuration is read before anything heavy loads."""

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict

from ldm.modules.sizes import Blocks, Channels, Entries
from util.settings import Count, Positive, Settings


def _activation(value: Any) -> str:
    if value not in ("quick_gelu", "gelu"):
        raise ValueError("expected quick_gelu or gelu")
    return value


class TextModelSettings(Settings):
    """The shape of CLIP's text model, as its `config.json` has it; what else such a file says is not read.

    The defaults are those of `clip.LARGE`, which Stable Diffusion 1 takes.
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
