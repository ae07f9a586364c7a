"""What a restoration costs, told from its settings before it runs. No torch here."""

from dataclasses import dataclass

from ldm.models.diffusion.resample_settings import ResampleSettings


@dataclass(frozen=True)
class Cost:
    """Passes through the networks and the operator for one restoration, at most: optimisations may stop early.

    Attributes:
        unet: forward passes of the UNet; classifier-free guidance doubles the batch of each.
        unet_backward: how many of these a gradient goes back through.
        encoder: forward passes of the encoder.
        encoder_backward: how many of these a gradient goes back through.
        decoder: forward and backward passes of the decoder.
        decoder_forward: forward passes of the decoder alone, which start the optimisations over images. The decoding
            of the result is not among them.
        pixel: forward and backward passes of the operator alone.
        events: how many times hard consistency is imposed over ("pixel", "latent").
    """

    unet: int = 0
    decoder: int = 0
    decoder_forward: int = 0
    pixel: int = 0
    events: tuple[int, int] = (0, 0)
    unet_backward: int = 0
    encoder: int = 0
    encoder_backward: int = 0

    def table(self) -> dict[str, int]:
        """Return the passes by what they go through, in words."""
        return {
            "UNet, forward": self.unet,
            "UNet, backward": self.unet_backward,
            "decoder, forward and backward": self.decoder,
            "decoder, forward only": self.decoder_forward,
            "encoder, forward": self.encoder,
            "encoder, backward": self.encoder_backward,
            "operator, forward and backward": self.pixel,
        }


def most_passes(settings: ResampleSettings, steps: int) -> Cost:
    """Return the most passes that a restoration by ReSample in ``steps`` steps can take."""
    run = settings.first_index(steps) + 1
    stages = {index: settings.stage_at(index, steps) for index in range(run)}
    travel = sum(min(settings.travel_length, index) for index, stage in stages.items() if stage)
    pixel, latent = (list(stages.values()).count(stage) for stage in ("pixel", "latent"))
    final = settings.final_stage.max_iters if settings.final_stage else 0
    soft = run if settings.soft_step else 0
    return Cost(
        unet=run + travel,
        decoder=soft + latent * settings.latent.max_iters + final,
        decoder_forward=pixel,
        pixel=pixel * settings.pixel.max_iters,
        encoder=pixel + (run < steps),  # after each optimisation over an image, and of the first guess
        events=(pixel, latent),
    )
