#!/usr/bin/env bash
# Runs the whole recipe with SmolLM2-135M on small talk, on the available hardware: TPU, GPU or CPU.
# Results go to runs/quickstart (or to WORKDIR=…). Run again, it repeats nothing and shows the results.
# Further arguments are passed on: bash launch/quickstart.sh --config.seed=1 --redo
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
workdir=${WORKDIR:-$root/runs/quickstart}
[[ $workdir == /* ]] || workdir=$PWD/$workdir
cd "$root"
source launch/install.sh requirements.txt
source launch/xla_flags.sh
exec python -m alol_jax.main --config=configs/quickstart.py --workdir="$workdir" "$@"
