"""A restoration's cost, told from its settings before it runs. No torch here."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Cost:
    """Passes through the networks and the operator for one restoration, at most: optimisations may stop early.

    Attributes:
        unet: forward passes of the UNet; classifier-free guidance doubles the batch of each.
        unet_backward: how many of these a gradient goes back through.
        encoder: forward passes of the encoder.
        encoder_backward: how many of these a gradient goes back through.
        decoder: forward and backward passes of the decoder; each goes through the operator, too.
        decoder_forward: forward passes of the decoder alone, which start the optimisations over images. The decoding
            of the result is not among them.
        pixel: forward and backward passes of the operator alone.
    """

    unet: int = 0
    decoder: int = 0
    decoder_forward: int = 0
    pixel: int = 0
    unet_backward: int = 0
    encoder: int = 0
    encoder_backward: int = 0

    def times(self, runs: int) -> "Cost":
        """Return the passes of so many runs."""
        return Cost(**{kind.name: runs * getattr(self, kind.name) for kind in fields(self)})

    def table(self) -> dict[str, int]:
        """Return the passes by what they go through, in words."""
        return {
            "UNet, forward": self.unet,
            "UNet, backward": self.unet_backward,
            "decoder, forward and backward": self.decoder,
            "decoder, forward only": self.decoder_forward,
            "encoder, forward": self.encoder,
            "encoder, backward": self.encoder_backward,
            "operator, forward and backward": self.pixel + self.decoder,
        }
