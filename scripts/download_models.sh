#!/usr/bin/env bash
# Fetches the published checkpoints into models/.
#
#   bash scripts/download_models.sh NAME...
#
#   ffhq, celeba            faces                 -> models/ldm/model.ckpt, models/ldm/celeba/model.ckpt
#   cin                     ImageNet, by class    -> models/ldm/cin/model.ckpt
#   lsun_churches           churches              -> models/ldm/lsun_churches/model.ckpt
#   vq-f4, vq-f8, kl-f8     first stages          -> models/first_stage_models/NAME/model.ckpt
#
# The models hold their first stages: those alone are for other files that do not. Interrupted, it goes on where it
# stopped when it is run again. What arrives is checked as a whole before it is unpacked.
#
#   BASE_URL=https://mirror.example/ldm bash scripts/download_models.sh ffhq      another place that has NAME.zip
#   MODELS_DIR=/data/models bash scripts/download_models.sh ffhq                  another folder than models/
#   STALL_SECONDS=300 bash scripts/download_models.sh ffhq                        patience with a silent server (60)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base_url="${BASE_URL:-https://ommer-lab.com/files/latent-diffusion}"
base_url="${base_url%/}"
models="${MODELS_DIR:-models}"
parts="$models/.downloads"  # unfinished downloads; nothing looks for a model here
python="${PYTHON:-python3}"
[ ! -x .venv/bin/python ] || python=.venv/bin/python

usage() { sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p;}' scripts/download_models.sh; }
say() { printf 'download_models.sh: %s\n' "$*" >&2; }

elsewhere="The links have been down at times; another place that has the archive: BASE_URL=https://... (see --help)"

folder_of() {
    case "$1" in
        ffhq) echo "$models/ldm" ;;
        celeba | cin | lsun_churches) echo "$models/ldm/$1" ;;
        vq-f4 | vq-f8 | kl-f8) echo "$models/first_stage_models/$1" ;;
        *) return 1 ;;
    esac
}

size_of() { if [ -e "$1" ]; then wc -c <"$1"; else echo 0; fi; }

# One request, going on behind what is there. Prints "<HTTP status> <content type>"; returns curl's exit status.
request() {
    local allowed="=https"
    case "$base_url" in http://*) allowed="=http,https" ;; esac
    curl --fail --location --proto "$allowed" --continue-at - --connect-timeout 30 \
        --speed-limit 1 --speed-time "${STALL_SECONDS:-60}" "${progress[@]}" \
        --write-out '%{http_code} %{content_type}' --output "$2" "$1"
}

# After a server could not continue the part $2, of $3 bytes.
start_again() {
    if [ "$3" -eq 0 ]; then
        say "$1: the server sends nothing. $elsewhere"
        return 1
    fi
    say "the download cannot go on where it stopped: starting again"
    rm -f "$2"
}

# Downloads $1 to $2, over as many requests as it takes while each brings something.
download() {
    local url="$1" part="$2" before answer status
    while true; do
        before=$(size_of "$part")
        status=0
        answer=$(request "$url" "$part") || status=$?
        case "$status $answer" in
            *" 416 "*)  # Nothing lies behind what is there: it is all there, or it is something else.
                if unpack --check "$part" 2>/dev/null; then return 0; fi
                start_again "$url" "$part" "$before" || return 1
                ;;
            "0 "*text/html* | "33 "*text/html*)
                [ "$before" -gt 0 ] || rm -f "$part"
                say "$url is a web page, not an archive. $elsewhere"
                return 1
                ;;
            "0 "*) return 0 ;;
            "33 "*) start_again "$url" "$part" "$before" || return 1 ;;
            "18 "* | "28 "* | "52 "* | "56 "* | "92 "*)
                if [ "$(size_of "$part")" -le "$before" ]; then
                    say "the connection broke off (curl status $status); the same command goes on later. $elsewhere"
                    return 1
                fi
                say "the connection broke off; going on"
                ;;
            "22 "*) say "$url: the server answers ${answer%% *}. $elsewhere"; return 1 ;;
            "23 "*) say "cannot write $part: is the disk full?"; return 1 ;;
            *) say "cannot reach $url (curl status $status). $elsewhere"; return 1 ;;
        esac
    done
}

unpack() { "$python" scripts/unpack_checkpoint.py "$@"; }

fetch() {
    local name="$1" folder part
    folder=$(folder_of "$name")
    part="$parts/$name.zip.part"
    if [ -e "$folder/model.ckpt" ]; then
        say "$name is there already: $folder/model.ckpt"
        return 0
    fi
    mkdir -p "$parts"
    say "$name: $base_url/$name.zip"
    download "$base_url/$name.zip" "$part" || return 1
    mkdir -p "$folder"
    local status=0
    unpack "$part" "$folder/model.ckpt" || status=$?
    if [ "$status" -eq 3 ]; then  # not the archive's fault
        say "$name: the download is kept in $part; run the same command when there is room"
        return 1
    elif [ "$status" -ne 0 ]; then
        rm -f "$part"
        say "$name: what arrived was thrown away; run the same command to fetch it anew. $elsewhere"
        return 1
    fi
    rm -f "$part"
    rmdir "$parts" 2>/dev/null || true
    say "$name: $folder/model.ckpt"
}

progress=(--silent --show-error)
[ ! -t 2 ] || progress=(--progress-bar)

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    "") usage >&2; exit 2 ;;
esac
for name in "$@"; do
    folder_of "$name" >/dev/null || {
        say "unknown name '$name': one of ffhq celeba cin lsun_churches vq-f4 vq-f8 kl-f8"
        exit 2
    }
done
command -v curl >/dev/null || { say "this needs curl"; exit 2; }

failed=0
for name in "$@"; do
    fetch "$name" || failed=1
done
exit "$failed"
