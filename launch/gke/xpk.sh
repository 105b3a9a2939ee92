#!/usr/bin/env bash
# A run on TPUs of a GKE cluster, through XPK (pip install xpk), which starts one process per host.
#
#   bash launch/gke/xpk.sh image --image=REGISTRY/PROJECT/REPOSITORY/alol_jax:1     builds and pushes
#   bash launch/gke/xpk.sh run NAME --image=… --cluster=CLUSTER --zone=ZONE --project=PROJECT --type=v6e-256 \
#       --config=configs/hha.py --workdir=gs://BUCKET/hha
#   bash launch/gke/xpk.sh delete NAME --cluster=CLUSTER --zone=ZONE --project=PROJECT
#
# run: --slices=N; other arguments go to the program. A preempted run is started again, ten times at most.
# --dry-run prints the commands. A cluster: xpk cluster create --spot --tpu-type=… (XPK's documentation).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source launch/commands.sh

image() {
  [ -n "$image" ] || fail "image needs --image="
  call bash -c "git archive HEAD | docker build --tag $(quoted "$image") --file launch/gke/Dockerfile -"
  call docker push "$image"
}

workload() { # a command of XPK on the workload
  [ -n "$name" ] || fail "$command needs a NAME"
  [[ -n $cluster && -n $zone && -n $project ]] || fail "$command needs --cluster=, --zone= and --project="
  call xpk workload "$@" --workload="$name" --cluster="$cluster" --zone="$zone" --project="$project"
}

run() {
  [[ -n $image && -n $type ]] || fail "run needs --image= and --type=, like --type=v6e-256"
  [ ${#words[@]} -gt 0 ] || fail "run needs the program's arguments, like --config=configs/hha.py --workdir=gs://…"
  workload create --tpu-type="$type" --num-slices="$slices" --docker-image="$image" --max-restarts=10 \
    --termination-grace-period-seconds=30 --command="$(program "${words[@]}")"
}

delete() { workload delete; }

case "${1:-}" in
image | run | delete) command=$1 ;;
*) fail "the first argument is image, run or delete, not '${1:-}'" ;;
esac
shift
name=""
if [[ -n ${1:-} && $1 != -* ]]; then
  name=$1
  shift
fi
image="" cluster="" zone="" project="" type="" slices=1 words=()
for word in "$@"; do
  case $word in
  --dry-run) dry_run=true ;;
  --image=*) image=${word#*=} ;;
  --cluster=*) cluster=${word#*=} ;;
  --zone=*) zone=${word#*=} ;;
  --project=*) project=${word#*=} ;;
  --type=*) type=${word#*=} ;;
  --slices=*) slices=${word#*=} ;;
  *) words+=("$word") ;;
  esac
done
if [[ $command != run && ${#words[@]} -gt 0 ]]; then
  fail "$command: unknown argument ${words[0]}"
fi
"$command"
