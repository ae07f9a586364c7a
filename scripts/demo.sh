#!/usr/bin/env bash
# Sets up, restores sample faces from six kinds of damage with the model that ships in models/demo, prints one table
# and draws one picture: results/demo/overview.png. Takes minutes on two processor cores.
#
#   bash scripts/demo.sh [FACES]       how many of the faces in data/demo, 1 to 16 (default 4)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

faces="${1:-4}"
tasks="super_resolution gaussian_deblur motion_deblur nonlinear_deblur inpainting box_inpainting"

bash scripts/setup.sh

runs=()
for task in $tasks; do
    echo "== ${task//_/ }"
    .venv/bin/python sample_condition.py \
        --ldm_config configs/latent-diffusion/demo-ldm-vq-4.yaml \
        --diffusion_config models/demo/model.safetensors \
        --task_config "configs/tasks/demo/$task.yaml" \
        --preset demo --data data/demo --limit "$faces" --save_dir "results/demo/$task" --overwrite \
        > /dev/null  # each run's own table: one table of all follows
    runs+=("results/demo/$task")
done

echo
.venv/bin/python scripts/overview.py "${runs[@]}" --save results/demo/overview.png
