#!/bin/sh
# Creates .venv and installs everything into it, under one constraints file. Run by `make setup`.
# Done again only when pyproject.toml, constraints.txt, this file or the place of the project changed.
set -eu
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
stamp=.venv/installed-from

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

fingerprint() {
    { pwd -P; cat pyproject.toml constraints.txt deployment/local/setup.sh; } | .venv/bin/python -c \
        'import hashlib, sys; print(sys.version, hashlib.sha256(sys.stdin.buffer.read()).hexdigest())' 2>/dev/null
}

if [ -f "$stamp" ] && [ "$(fingerprint)" = "$(cat "$stamp")" ]; then
    exit 0
fi

command -v "$python" >/dev/null || fail "$python was not found. Install Python 3.11, 3.12 or 3.13, or name one: make setup PYTHON=..."
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || fail \
    "$python is $("$python" -V 2>&1), but Python 3.11, 3.12 or 3.13 is needed (MLflow, Feast and torch have no newer wheels)." \
    "Name another one: make setup PYTHON=python3.12"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail \
    "$python cannot create virtual environments. On Debian and Ubuntu: apt-get install python3-venv"

moved() {  # the scripts of a virtual environment hold its path
    made=$(sed -n 's/^command = .* //p' .venv/pyvenv.cfg)
    [ -n "$made" ] && [ "$made" != "$(pwd -P)/.venv" ]
}

rm -f "$stamp"
if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || moved; then
    echo "Creating .venv with $("$python" -V)"
    "$python" -m venv --clear .venv
fi
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'

echo "Installing into .venv (about 3.8 GB; a minute or two)"
# uv does not read pip's PIP_FIND_LINKS; a wheel found there (a CPU build of torch) wins over the index.
UV_FIND_LINKS=$(printf %s "${PIP_FIND_LINKS:-}" | tr ' ' ',')
export UV_FIND_LINKS
# Compiled once here, not by every process that cannot or may not write into .venv.
.venv/bin/uv pip install --quiet --compile-bytecode --python .venv/bin/python -c constraints.txt -e '.[all,dev]'

case $(uname) in
Linux)
    .venv/bin/python -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null || fail \
        "LightGBM needs OpenMP's runtime, libgomp.so.1. On Debian and Ubuntu: apt-get install libgomp1. Then run this again."
    ;;
Darwin)
    .venv/bin/python -c 'import lightgbm, xgboost' 2>/dev/null || fail \
        "XGBoost and LightGBM need OpenMP's runtime. Run: brew install libomp. Then run this again."
    ;;
esac

fingerprint >"$stamp"
echo "Installed. Next: make demo, make up, make test"
