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
# Two workers, each with whole modules: what a module makes once is not made twice.
two=(-n 2 --dist loadscope --no-loadscope-reorder)
case "${1:-}" in
"") exec python -m pytest "${two[@]}" -m "not slow and not tpu and not network" --cov=alol_jax --cov-report=term --cov-fail-under=85 ;;
--all) shift && exec python -m pytest "${two[@]}" "$@" ;;
*) exec python -m pytest "$@" ;;
esac
