#!/usr/bin/env bash
# Kills a small run at random moments, starts it again until it ends, and compares all its results
# with those of an undisturbed run. Writes runs/preemption/certificate.json; --workdir=… puts it elsewhere.
#   bash launch/preempt_test.sh --kills=25 --seed=0
#   bash launch/preempt_test.sh --kills=25 -- --config.objective.name=ppo      arguments of the run
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/install.sh requirements.txt
exec python -m benchmarks.preemption "$@"
