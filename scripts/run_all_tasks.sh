#!/usr/bin/env bash
# Runs every task with each preset, sampler and seed that is named, with any model; ends in one table and one plot.
#
#   bash scripts/run_all_tasks.sh [--tasks "NAME ..."] [--task_dir DIR] [--presets "NAME ..."] [--samplers "NAME ..."]
#                                 [--seeds "N ..."] [--save_dir DIR] [--dry_run] [words for sample_condition.py]
#
#   --tasks       names in --task_dir, or files (default: every task there)
#   --task_dir    (default: configs/tasks; configs/tasks/demo is for the demo model)
#   --presets     names of presets, or files (default: reference)
#   --samplers    such as "resample dps" (default: the task's)
#   --seeds       (default: 0)
#   --save_dir    results go to SAVE_DIR/TASK/PRESET/.../seed_N (default: results/all_tasks)
#   --dry_run     list what would be run, and its cost in network passes
#
# All other words go to sample_condition.py: --ldm_config, --diffusion_config, --data, --limit, key=value, and for
# job arrays --shard I/N. Finished runs are not repeated: after an interruption, give the same command again.
#
#   bash scripts/run_all_tasks.sh --task_dir configs/tasks/demo --presets "demo paper" --seeds "0 1" --limit 4 \
#       --ldm_config configs/latent-diffusion/demo-ldm-vq-4.yaml --diffusion_config models/demo/model.safetensors \
#       --data data/demo
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"
[ -x "$python" ] || python=python3

own=(--save_dir results/all_tasks)
command=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help)
            sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        --tasks | --task_dir | --presets | --samplers | --seeds | --save_dir)
            if [ $# -lt 2 ] || [ -z "$2" ]; then
                printf 'error: %s: expected a value (--help lists the arguments)\n' "$1" >&2
                exit 2
            fi
            read -ra values <<< "$2"
            case "$1" in
                --samplers)
                    list=$(IFS=,; printf '%s' "${values[*]}")
                    own+=("conditioning.main_sampler=$list")
                    ;;
                --task_dir | --save_dir) own+=("$1" "$2") ;;
                *) own+=("$1" "${values[@]}") ;;
            esac
            shift 2
            ;;
        --dry_run)
            own+=("$1")
            shift
            ;;
        --)
            shift
            ;;
        *)
            command+=("$1")
            shift
            ;;
    esac
done

exec "$python" "$root/scripts/sweep.py" "${own[@]}" -- ${command[@]+"${command[@]}"}
