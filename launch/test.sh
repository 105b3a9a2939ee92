#!/usr/bin/env bash
# What a contributor runs before each commit: format, lint, tests with coverage.
#   bash launch/test.sh              the default run
#   bash launch/test.sh --all        slow tests too
#   bash launch/test.sh tests/training/test_fit.py -k resumed      any pytest arguments; no coverage floor
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh requirements-dev.txt
ruff format --check .
ruff check .
export JAX_PLATFORMS=cpu
# Compiling is most of what the tests cost: what one run compiled, the next one reads.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/jax}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
case "${1:-}" in
"") exec python -m pytest -n 2 -m "not slow and not tpu" --cov=alol_jax --cov-report=term --cov-fail-under=85 ;;
--all) shift && exec python -m pytest -n 2 "$@" ;;
*) exec python -m pytest "$@" ;;
esac
