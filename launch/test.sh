#!/usr/bin/env bash
# Run this before each commit: format, lint, tests with coverage.
#   bash launch/test.sh              the default run
#   bash launch/test.sh --all        include slow tests
#   bash launch/test.sh tests/training/test_fit.py -k resumed      any pytest arguments; no coverage floor
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh requirements-dev.txt
ruff format --check .
ruff check .
export JAX_PLATFORMS=cpu
# Compilation takes most of the tests' time, so later runs reuse what earlier ones compiled.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
case "${1:-}" in
"") exec python -m pytest -n 2 -m "not slow and not tpu" --cov=alol_jax --cov-report=term --cov-fail-under=85 ;;
--all) shift && exec python -m pytest -n 2 "$@" ;;
*) exec python -m pytest "$@" ;;
esac
