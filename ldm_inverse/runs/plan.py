"""The plan of a run, which `--dry_run` prints."""

import yaml

from ldm.models.diffusion.summary import summary
from ldm_inverse.runs.job import Job


def plan(job: Job) -> str:
    """Return settings, model, inputs and cost as text."""
    pictures = [picture for picture in job.pictures.pictures if picture.name not in job.bad]
    samples = job.request.n_samples_per_class
    count = len(pictures) * samples
    lines = [yaml.safe_dump(job.request.settings.recorded(), sort_keys=False)]
    lines += [f"model {str(job.request.diffusion_config)!r}:", *(f"  {line}" for line in summary(job.architecture)), ""]
    lines += [f"{len(pictures)} pictures:", *(f"  {name}  ({str(source)!r})" for name, source in pictures)]
    lines += [f"left out: {reason}" for reason in job.bad.values()]
    lines += ["", "passes, at most (optimisations may stop early):"]
    for what, number in job.solver.cost(job.task.operator.unknown_border).table().items():
        lines.append(f"  {what:32s} {number:>8,} for a restoration, {number * count:>12,} for all {count}")
    return "\n".join(lines)
