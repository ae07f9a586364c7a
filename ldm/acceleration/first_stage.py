"""Which layers of a first stage are computed by which faster classes."""

import torch
from torch import nn

from ldm.acceleration import layers
from ldm.acceleration.fast_convolution import pays
from ldm.modules.diffusionmodules.model import AttnBlock, Decoder, NormSiLU, ResnetBlock, Upsample


def accelerate_first_stage(
    stage: nn.Module, dtype: torch.dtype, processor: bool, compiled: bool = False, low_memory: bool = False
) -> None:
    """Change the classes of a first stage's layers; one that has none of them stays as it is.

    Args:
        stage: an autoencoder whose weights do not change any more.
        dtype: the number format that convolutions will be computed in.
        processor: it lives on a CPU, not on a card.
        compiled: a compiler will have the decoder: it decides for itself what to keep for a gradient.
        low_memory: keep only what goes from block to block of the decoder, and compute the blocks again.
    """
    if processor:
        _use_processor(stage)
    for decoder in (module for module in stage.modules() if isinstance(module, Decoder)):
        # UNet and encoder run rarely: there it would cost more memory than it saves time. A frozen convolution does not
        # go through a compiler, which helps a card more.
        if processor or not compiled:
            _freeze_convolutions(decoder, dtype, processor)
        if not processor and not compiled:
            _recompute(decoder, NormSiLU, layers.RecomputedNormSiLU)
        if low_memory:
            _recompute(decoder, ResnetBlock, layers.RecomputedResnetBlock)
            attention = layers.RecomputedProductAttention if processor else layers.RecomputedAttention
            _recompute(decoder, AttnBlock, attention)


def _use_processor(stage: nn.Module) -> None:
    """Order operations as a processor likes them."""
    for module in stage.modules():
        if isinstance(module, AttnBlock):
            layers.become(module, layers.ProductAttention)
        elif isinstance(module, ResnetBlock):
            layers.become(module.norm1, layers.FusedNormSiLU)
            layers.become(module.norm2, layers.FusedNormSiLU)
        elif isinstance(module, Decoder):
            layers.become(module.norm_out, layers.FusedNormSiLU)
            layers.become(module, layers.OneByOneDecoder)


def _freeze_convolutions(decoder: Decoder, dtype: torch.dtype, processor: bool) -> None:
    """Keep nothing for gradients of the 3x3 convolutions' weights, and save multiplications where that pays."""
    for module in decoder.modules():
        if isinstance(module, ResnetBlock):
            _freeze(module.conv1, dtype, processor)
            _freeze(module.conv2, dtype, processor)
        elif isinstance(module, Upsample):
            _freeze_upsampling(module, dtype, processor)
    _freeze(decoder.conv_out, dtype, processor)


def _freeze(conv: nn.Conv2d, dtype: torch.dtype, processor: bool) -> None:
    layers.become(conv, layers.WinogradConv if processor and pays(conv, dtype) else layers.DirectConv)


def _freeze_upsampling(layer: Upsample, dtype: torch.dtype, processor: bool) -> None:
    if not processor:
        layers.become(layer, layers.DirectUpsample)
    elif pays(layer.conv, dtype, upsampling=True):
        layers.become(layer, layers.WinogradUpsample)
    else:
        layers.become(layer, layers.FoldedUpsample).fold()


def _recompute(decoder: Decoder, kind: type[nn.Module], recomputed: type[nn.Module]) -> None:
    for module in decoder.modules():
        if isinstance(module, kind):
            layers.become(module, recomputed)
