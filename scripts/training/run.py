"""A training: one stage of a configuration's model, from pictures to weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.utils import save_image

from data.picture_array import load_pictures
from ldm.acceleration.arithmetic import can_compile
from ldm.acceleration.memory import keep_freed_memory
from ldm.checkpoints.reading import read_checkpoint, write_checkpoint
from ldm.models.autoencoder import IdentityFirstStage, VQModelInterface
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.ddpm import LatentDiffusion
from ldm.training.autoencoder import AutoencoderLoss, DecoderLoss, round_trip_psnr
from ldm.training.diffusion import DiffusionLoss
from ldm.training.initialise import codebook_from_data, linear_encoder
from ldm.training.latents import encode_pictures
from ldm.training.loop import Budget, Training
from ldm.training.settings import AutoencoderSettings, CodebookFit, PriorSettings, TrainingSettings, read_training
from ldm.util import instantiate_from_config
from model_loader import build_model, load_model_from_config, load_yaml, resolve_device
from util.errors import UserError
from util.files import make_folder


@dataclass(frozen=True)
class StageTraining:
    """The training of one stage. The attributes are the arguments of `scripts/train.py`."""

    stage: str
    config: Path
    data: Sequence[Path]
    out: Path
    max_minutes: float
    max_steps: int | None
    val: Path | None
    first_stage: Path | None
    start: Path | None
    teacher: Sequence[Path]
    teacher_config: Sequence[Path]
    precision: str
    compile: bool
    device: str
    threads: int | None
    seed: int
    save_minutes: float

    def run(self) -> None:
        """Build the model of the config, train the stage, write the weights.

        Raises:
            UserError: the model's stage cannot be trained so, or a file cannot be used.
        """
        keep_freed_memory()
        config, device = load_yaml(self.config), resolve_device(self.device)
        group = AutoencoderSettings if self.stage == "autoencoder" else PriorSettings
        settings: TrainingSettings = read_training(group, config, self.stage)
        check(build_model(config), settings, self.config)
        if isinstance(settings, PriorSettings):
            settings.check_teachers(len(self.teacher))
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        if self.start:
            model = load_model_from_config(config, self.start, device)
        else:
            model = instantiate_from_config(config["model"]).to(device)
        if self.first_stage:  # also in place of the one in `start`
            load_first_stage(model.first_stage_model, self.first_stage)
        configs = self.teacher_config or [self.config] * len(self.teacher)
        teachers = [load_teacher(*files, model) for files in zip(self.teacher, configs, strict=True)]
        make_folder(self.out)
        side = model.first_stage_model.resolution
        pictures = load_pictures(self.data, side, self.out / "pictures.u8")
        if isinstance(settings, AutoencoderSettings):
            validation = load_pictures([self.val], side, self.out / "validation.u8") if self.val else pictures[-32:]
            self._train_first_stage(settings, model.first_stage_model, pictures, validation)
        elif isinstance(settings, PriorSettings):
            self._train_prior(settings, model, pictures, teachers)

    def _begin(
        self,
        network: nn.Module,
        settings: TrainingSettings,
        report: Callable[[float], dict[str, float]],
        compiled: Sequence[nn.Module],
    ) -> Training:
        """The training of a network, at the step where it stopped; ``compiled`` are its parts worth compiling."""
        budget, bfloat16 = Budget(self.max_minutes, self.max_steps), self.precision == "bf16"
        training = Training(network, settings, budget, self.out, self.seed, report, self.save_minutes, bfloat16)
        if self.compile and can_compile(next(network.parameters()).device):
            for module in compiled:
                module.compile()
        return training

    def _train_first_stage(
        self, settings: AutoencoderSettings, model: VQModelInterface, pictures: np.ndarray, validation: np.ndarray
    ) -> None:
        """Initialise (once) and train the autoencoder."""
        model.to(memory_format=torch.channels_last).train().requires_grad_(True)
        if not (self.out / "state.pt").exists():
            self._initialise(settings, model, pictures)

        def report(width: float) -> dict[str, float]:
            psnr, decoded = round_trip_psnr(model, validation)
            write_sheet(self.out / f"{training.label('sheet', width)}.png", decoded[:16])
            write_weights(self.out / f"{training.label('weights', width)}.safetensors", model.state_dict())
            return {"psnr": psnr, "psnr_not_quantised": round_trip_psnr(model, validation, quantise=False)[0]}

        decoder_only = settings.trainable == "decoder"
        for module in (model.encoder, model.quant_conv, model.quantize):
            module.requires_grad_(not decoder_only)
        training = self._begin(model, settings, report, [model.encoder, model.decoder])
        if decoder_only:
            device = next(model.parameters()).device
            latents = encode_pictures(model.encode, pictures, self.out / "latents.f16", device)
            final = training.run(
                DecoderLoss(model, pictures, latents, float(settings.quantised_share), float(settings.consistency))
            )
        else:
            final = training.run(AutoencoderLoss(model, pictures))
        print("round-trip PSNR:", ", ".join(f"{name} {value:.2f} dB" for name, value in final.items()))

    def _initialise(self, settings: AutoencoderSettings, model: VQModelInterface, pictures: np.ndarray) -> None:
        """Give a new model its encoder and codebook; fit a trained one's codebook further where the settings ask."""
        if not self.start and settings.init == "linear":
            linear_encoder(model, pictures, settings.whitening)
        if not self.start or settings.codebook:
            rng, fit = np.random.RandomState(self.seed), settings.codebook or CodebookFit()
            codebook_from_data(model, pictures, rng, fit, further=self.start is not None)

    def _train_prior(
        self,
        settings: PriorSettings,
        model: LatentDiffusion,
        pictures: np.ndarray,
        teachers: Sequence[LatentDiffusion],
    ) -> None:
        """Encode the pictures (once) and train the UNet."""
        model.requires_grad_(False)
        unet = model.model.diffusion_model.train().requires_grad_(True).to(memory_format=torch.channels_last)
        latents = encode_pictures(model.encode_mode, pictures, self.out / "latents.f16", model.device)

        def report(width: float) -> dict[str, float]:
            generator = torch.Generator(model.device).manual_seed(self.seed)
            samples, _ = DDIMSampler(model).sample(20, 16, latents.shape[1:], verbose=False, generator=generator)
            images = torch.cat([model.decode_first_stage(z[None]).cpu() for z in samples])
            write_sheet(self.out / f"{training.label('sheet', width)}.png", images)
            parts = ("model.", "first_stage_model.", "scale_factor")
            weights = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(parts)}
            write_weights(self.out / f"{training.label('weights', width)}.safetensors", weights)
            return {}

        training = self._begin(unet, settings, report, [unet])
        training.run(DiffusionLoss(model, latents, settings.weight_cap, settings.timesteps, teachers))


def check(architecture: LatentDiffusion, settings: TrainingSettings, config: Path) -> None:
    """Check that this is a model whose stage can be trained, before anything is written.

    Raises:
        UserError: it is not.
    """
    first_stage = architecture.first_stage_model
    if isinstance(first_stage, IdentityFirstStage):
        raise UserError(f"{config} has no first stage, which training needs")
    if architecture.image_channels != 3:
        raise UserError(f"{config} is of grey pictures, and training is for colour pictures")
    if isinstance(settings, PriorSettings) and architecture.cond_stage_model is not None:
        raise UserError(f"{config} is of a conditioned model, and training is for unconditional ones")
    if isinstance(settings, AutoencoderSettings):
        if not isinstance(first_stage, VQModelInterface):
            raise UserError(f"{config}: only a VQModelInterface can be trained as first stage")
        settings.check_crops(first_stage.resolution, first_stage.downsampling)


def load_first_stage(model: nn.Module, path: Path) -> None:
    """Give an autoencoder the weights that a training of it has written.

    Raises:
        UserError: the file is not readable, not safe, or not of this autoencoder.
    """
    weights = {name: tensor.read() for name, tensor in read_checkpoint(path).items()}
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(f"{path}: {name} holds NaN, infinity or {tensor.dtype} numbers")
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise UserError(f"{path} is not the first stage that the configuration describes: {first:.200}") from error


def load_teacher(path: Path, config: Path, student: LatentDiffusion) -> LatentDiffusion:
    """Load a trained model that has the latents and the noise schedule of the one to be taught.

    Raises:
        UserError: the model cannot be loaded, or has others.
    """
    teacher = load_model_from_config(load_yaml(config), path, student.device)
    latents = [(model.channels, float(model.scale_factor), model.shift_factor) for model in (teacher, student)]
    schedules = [model.get_buffer("alphas_cumprod") for model in (teacher, student)]
    if latents[0] != latents[1] or not torch.equal(*schedules):
        raise UserError(f"{path} has other latents, or another noise schedule, than the model that it is to teach")
    if teacher.cond_stage_model is not None:
        raise UserError(f"{path} is a conditioned model, which cannot teach")
    return teacher.requires_grad_(False).to(memory_format=torch.channels_last)


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write averaged weights as a checkpoint, in plain memory layout."""
    plain = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    write_checkpoint(path, plain, {"weights": "moving average"})


def write_sheet(path: Path, images: Tensor) -> None:
    """Write images (N, 3, H, W) in [-1, 1] as one picture, four a row."""
    save_image(images.float().clamp(-1, 1), path, nrow=4, normalize=True, value_range=(-1, 1))
