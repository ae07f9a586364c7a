#!/usr/bin/env bash
# Creates .venv in the project's folder and installs requirements.txt into it.
# Does nothing if that is done already for the present requirements.
#
#   bash scripts/setup.sh
#   PYTHON=python3.12 bash scripts/setup.sh                  another Python (3.10 or newer) than python3
#   TORCH_INDEX_URL=URL bash scripts/setup.sh              torch and torchvision from there: PyTorch's CPU index has
#                                                            the small build without GPU support
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python="${PYTHON:-python3}"
venv_python=.venv/bin/python
stamp=.venv/installed-requirements.txt  # a copy of what was installed, written last
unfinished=.venv/install-unfinished     # there while pip works: stays when it is killed

fail() {
    printf 'setup.sh: %s\n' "$1" >&2
    exit 1
}

venv_works() {
    "$venv_python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' && "$venv_python" -m pip --version
}

create_venv() {
    local version major minor
    local remedy="Name one: PYTHON=python3.12 bash scripts/setup.sh"
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) ||
        fail "cannot run '$python'; this project needs Python 3.10 or newer. $remedy"
    major=${version%%.*} minor=${version#*.}
    if [ "$major" -lt 3 ] || { [ "$major" -eq 3 ] && [ "$minor" -lt 10 ]; }; then
        fail "'$python' is Python $version; this project needs Python 3.10 or newer. $remedy"
    fi
    echo "setup.sh: creating .venv with Python $version"
    "$python" -m venv --clear .venv || fail "'$python' cannot create a virtual environment (see above)"
}

install() {
    # pip that gives up by itself (no network, say) leaves whole packages, and the next run can build on them.
    "$venv_python" -m pip install "$@" || {
        rm -f "$unfinished"
        fail "the installation failed (see above). Mend that and run this again; nothing needs to be cleaned up"
    }
}

if cmp -s requirements.txt "$stamp" && "$venv_python" -c ''; then
    exit 0
fi

# pip, when interrupted, ends like a pip that gave up; these traps make bash leave before it can be taken for that.
trap 'exit 130' INT
trap 'exit 143' TERM

# pip takes a package that was cut off half-way for a whole one, so an install that was killed begins from nothing.
if [ -e "$unfinished" ] || ! venv_works >/dev/null 2>&1; then
    create_venv
fi
rm -f "$stamp"
touch "$unfinished"
echo "setup.sh: installing requirements.txt into .venv (about 1 GB the first time, several with GPU support)"
if [ -n "${TORCH_INDEX_URL:-}" ]; then
    install --index-url "$TORCH_INDEX_URL" --constraint requirements.txt torch torchvision
fi
install --requirement requirements.txt
cp requirements.txt "$stamp"
rm -f "$unfinished"
echo "setup.sh: done"
