#!/usr/bin/env bash
# The whole recipe on SmolLM2-135M and small talk, on what is here: TPU, GPU or CPU.
# Results go to runs/quickstart (WORKDIR=… for another place); run again, it shows what is done.
# Further arguments go to the program: bash launch/quickstart.sh --config.seed=1 --redo
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
workdir=${WORKDIR:-$root/runs/quickstart}
[[ $workdir == /* ]] || workdir=$PWD/$workdir
cd "$root"
source launch/install.sh requirements.txt
exec python -m alol_jax.main --config=configs/quickstart.py --workdir="$workdir" "$@"
