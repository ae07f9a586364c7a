#!/usr/bin/env bash
# Fetches the published checkpoints into models/.
#
#   bash scripts/download_models.sh NAME...
#   bash scripts/download_models.sh hf ID...
#
#   ffhq, celeba            faces                 -> models/ldm/model.ckpt, models/ldm/celeba/model.ckpt
#   cin                     ImageNet, by class    -> models/ldm/cin/model.ckpt
#   lsun_churches           churches              -> models/ldm/lsun_churches/model.ckpt
#   vq-f4, vq-f8, kl-f8     first stages          -> models/first_stage_models/NAME/model.ckpt
#
#   hf CompVis/ldm-celebahq-256           a model of the Hugging Face hub: the needed files, with its licence
#                                         -> models/hub/CompVis/ldm-celebahq-256, which --model takes by its id
#   hf someone/models:one.safetensors     one checkpoint of several, beside those that are there
#                                         -> models/hub/someone/models/one.safetensors, which --model takes
#   hf openai/clip-vit-large-patch14      the tokenizer that Stable Diffusion 1's single files need
#
# The models contain their first stages; fetch first stages only for other files that lack them. After an interruption,
# run it again: it continues where it stopped. Each download is checked as a whole before it is unpacked.
#
#   BASE_URL=https://mirror.example/ldm bash scripts/download_models.sh ffhq      another place that has NAME.zip
#   HF_ENDPOINT=https://mirror.example HF_TOKEN=... bash scripts/download_models.sh hf ID     another hub, and who asks
#   MODELS_DIR=/data/models bash scripts/download_models.sh ffhq                  another folder than models/
#   STALL_SECONDS=300 bash scripts/download_models.sh ffhq                        patience with a silent server (60)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

base_url="${BASE_URL:-https://ommer-lab.com/files/latent-diffusion}"
base_url="${base_url%/}"
hub="${HF_ENDPOINT:-https://huggingface.co}"
hub="${hub%/}"
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
    local allowed="=https" header=""
    case "$1" in http://*) allowed="=http,https" ;; esac
    case "$1" in "$hub"/*) header="${HF_TOKEN:+Authorization: Bearer $HF_TOKEN}" ;; esac
    curl --fail --location --proto "$allowed" --continue-at - --connect-timeout 30 --header @- <<<"$header" \
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

# Downloads $1 to $2, over as many requests as it takes while each brings something. The words behind are a command that
# tells whether a file is whole.
download() {
    local url="$1" part="$2" before answer status
    shift 2
    while true; do
        before=$(size_of "$part")
        status=0
        answer=$(request "$url" "$part") || status=$?
        case "$status $answer" in
            *" 416 "*)  # Nothing lies behind what is there: it is all there, or it is something else.
                if "$@" 2>/dev/null; then return 0; fi
                start_again "$url" "$part" "$before" || return 1
                ;;
            "0 "*text/html* | "33 "*text/html*)
                [ "$before" -gt 0 ] || rm -f "$part"
                say "$url is a web page, not the file. $elsewhere"
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
    download "$base_url/$name.zip" "$part" unpack --check "$part" || return 1
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

hub_model() { "$python" scripts/hub_model.py "$@"; }

# Whether what is wanted of a model is in its folder $1: the file $2, or all that is needed of it (""). What a folder
# with a checkpoint alone may lack, only the hub knows.
is_there() {
    local name
    [ -z "$2" ] || { [ -e "$1/$2" ]; return; }
    for name in model_index.json tokenizer.json vocab.json; do
        [ ! -e "$1/$name" ] || return 0
    done
    return 1
}

# Moves the files that are named on stdin from one folder to another, last the one by which the model is found.
move_files() {
    local from="$1" to="$2" last="$3" name
    while read -r name; do
        mkdir -p "$(dirname "$to/$name")"
        [ "$name" = "$last" ] || mv "$from/$name" "$to/$name" || return 1
    done
    [ ! -e "$from/$last" ] || mv "$from/$last" "$to/$last" || return 1
    find "$from" -type d -empty -delete  # and leave what an interrupted download of another file has left
}

# A model of the hub, by its id, with a colon and a file of it or without.
fetch_hub() {
    local id="${1%%:*}" wanted="" file=() check=() folder part index listed names name place
    case "$1" in *:*) wanted="${1#*:}"; file=(--file "$wanted") ;; esac
    folder="$models/hub/$id"
    place="$folder${wanted:+/$wanted}"
    part="$parts/hub/$id"
    index="$part.json"
    if is_there "$folder" "$wanted"; then
        say "$1 is there already: $place"
        return 0
    fi
    mkdir -p "$part"
    rm -f "$index"
    download "$hub/api/models/$id?blobs=true" "$index" false || return 1
    listed=$(hub_model list "$index" "${file[@]}") || { say "$id cannot be taken"; return 1; }
    names=$(sed 1,2d <<<"$listed")
    if [ -d "$folder" ] && hub_model check "$index" "${file[@]}" --folder "$folder" 2>/dev/null; then
        say "$1 is there already: $place"
        find "$part" -type d -empty -delete
        rm -f "$index"
        rmdir -p "$(dirname "$part")" 2>/dev/null || true
        return 0
    fi
    say "$id: licence $(sed -n 2p <<<"$listed"); $(wc -l <<<"$names") files"
    if "$python" -c 'import huggingface_hub' 2>/dev/null; then
        hub_model fetch "$index" "${file[@]}" --model "$id" --folder "$part" --endpoint "$hub" ||
            { say "$id: huggingface_hub could not fetch it; the same command goes on"; return 1; }
        rm -rf "$part/.cache"
    else
        while read -r name; do
            check=(hub_model check "$index" "${file[@]}" --folder "$part" --only "$name")
            if "${check[@]}" 2>/dev/null; then continue; fi
            mkdir -p "$(dirname "$part/$name")"
            download "$hub/$id/resolve/$(sed -n 1p <<<"$listed")/$name" "$part/$name" "${check[@]}" || return 1
            if ! "${check[@]}"; then
                rm -f "$part/$name"
                say "$name was thrown away; run the same command to fetch it anew"
                return 1
            fi
        done <<<"$names"
    fi
    hub_model check "$index" "${file[@]}" --folder "$part" || { rm -rf "$part"; return 1; }
    move_files "$part" "$folder" "${wanted:-model_index.json}" <<<"$names" || return 1
    rm -f "$index"
    rmdir -p "$(dirname "$part")" 2>/dev/null || true
    if [ -n "$wanted" ]; then
        say "$1: $place (--model $place)"
    elif grep -qE '^model_index\.json$|\.(safetensors|ckpt|pt|pth)$|\.index\..*json$' <<<"$names"; then
        say "$id: $folder (--model $id)"
    else
        say "$id: $folder"
    fi
}

progress=(--silent --show-error)
[ ! -t 2 ] || progress=(--progress-bar)

case "${1:-}" in
    -h | --help) usage; exit 0 ;;
    "") usage >&2; exit 2 ;;
esac
[ "$1" != hf ] || [ $# -gt 1 ] || { say "hf needs the id of a model, such as CompVis/ldm-celebahq-256"; exit 2; }
fetcher=fetch
if [ "$1" = hf ]; then
    shift
    fetcher=fetch_hub
    elsewhere="A model that is not for everybody needs HF_TOKEN; another hub: HF_ENDPOINT=https://... (see --help)"
fi
for name in "$@"; do
    if [ "$fetcher" = fetch_hub ]; then
        [[ "$name" =~ ^[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*(:[A-Za-z0-9._/-]+)?$ ]] || {
            say "'$name' is no id of a model, such as CompVis/ldm-celebahq-256"
            exit 2
        }
    else
        folder_of "$name" >/dev/null || {
            say "unknown name '$name': one of ffhq celeba cin lsun_churches vq-f4 vq-f8 kl-f8, or hf and the id of a model"
            exit 2
        }
    fi
done
command -v curl >/dev/null || { say "this needs curl"; exit 2; }

failed=0
for name in "$@"; do
    "$fetcher" "$name" || failed=1
done
exit "$failed"
