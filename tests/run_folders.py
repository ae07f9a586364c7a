"""Folders of runs that were never run: their records, and results of invented figures."""

from ldm_inverse.runs.manifest import FORMAT


def record(**changes):
    versions = {
        "format": FORMAT,
        "settings": {"steps": 3},
        "run": {"seed": 0},
        "checkpoint": {"sha256": "0"},
        "device": "cpu",
    }
    return {**versions, "versions": {"torch": "2"}, "threads": 1, **changes}


def finish(run, image, psnr=30.0, ratio=1.5):
    outcome = {"psnr": psnr, "ssim": 0.9, "baseline_psnr": 28.0, "baseline_ssim": 0.8, "residual_per_noise": ratio}
    run.add_metrics(image, 0, outcome, (6, 0, 52, 46, 2, 1), 1.0)


def begin(run, record, **options):
    with run.at_work(record, **options) as in_force:
        return in_force
