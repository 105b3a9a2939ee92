#!/usr/bin/env bash
# A run on Cloud TPU: one VM, a pod of many hosts, or several slices. Needs gcloud, logged in.
#
#   bash launch/tpu_vm.sh create  NAME --zone=ZONE --type=v6e-8        waits until it is there
#   bash launch/tpu_vm.sh install NAME --zone=ZONE                     what is committed, on all hosts
#   bash launch/tpu_vm.sh run     NAME --zone=ZONE --config=configs/hha.py --workdir=gs://BUCKET/hha
#   bash launch/tpu_vm.sh log     NAME --zone=ZONE                     of the first host; Ctrl-C leaves the run alone
#   bash launch/tpu_vm.sh stop    NAME --zone=ZONE                     saves; `run` goes on
#   bash launch/tpu_vm.sh fetch   NAME --zone=ZONE FROM TO             FROM: gs://…, or a path on the first host
#   bash launch/tpu_vm.sh delete  NAME --zone=ZONE
#
# create: --on-demand (default: spot), --slices=N, --image=RUNTIME_VERSION, --valid-until-duration=6h.
# All: --project=PROJECT, --dry-run (prints the commands). `run` passes other arguments to the program.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/commands.sh

folder=alol_jax # in the home folder of each host

image_of() { # an accelerator type's image: https://cloud.google.com/tpu/docs/runtimes
  # All are Ubuntu 22.04 with Python 3.10: launch/install.sh brings a newer one.
  case $1 in
  v4-*) echo tpu-ubuntu2204-base ;;
  v5litepod-*) echo v2-alpha-tpuv5-lite ;;
  v5p-*) echo v2-alpha-tpuv5 ;;
  v6e-*) echo v2-alpha-tpuv6e ;;
  *) fail "--type=$1: no image is known for it; name one with --image=" ;;
  esac
}

queue() { # a command on the queued resource
  local command=$1
  shift
  call gcloud compute tpus queued-resources "$command" "$@" --zone="$zone" ${project:+--project="$project"}
}

everywhere() { queue ssh "$name" --node=all --worker=all --command="$1"; }
first_host() { queue ssh "$name" --node=0 --worker=0 --command="$1"; }

create() {
  [ -n "$type" ] || fail "create needs --type=, like --type=v6e-8"
  [ -n "$image" ] || image=$(image_of "$type")
  local nodes=(--node-id="$name")
  [ "$slices" = 1 ] || nodes=(--node-count="$slices" --node-prefix="$name")
  queue create "$name" --accelerator-type="$type" --runtime-version="$image" "${nodes[@]}" \
    ${spot:+--spot} ${valid:+--valid-until-duration="$valid"}
  local state=""
  until [ "$state" = ACTIVE ]; do
    state=$(queue describe "$name" --format="value(state.state)")
    echo "$state"
    if $dry_run; then break; fi
    case $state in
    FAILED | SUSPENDED) fail "$name is $state: see gcloud compute tpus queued-resources describe" ;;
    ACTIVE) ;;
    *) sleep 30 ;;
    esac
  done
}

install() { # the committed files, so that every host has the same
  archive=$(mktemp -t alol_jax.XXXXXX)
  trap 'rm -f "$archive"' EXIT
  call git archive --format=tar.gz --output="$archive" HEAD
  queue scp "$archive" "$name:$folder.tar.gz" --node=all --worker=all
  everywhere "mkdir -p $folder && tar -xzf $folder.tar.gz -C $folder && cd $folder && source launch/install.sh requirements.txt"
}

run() { # in the background of every host: it does not end with the connection
  [ ${#words[@]} -gt 0 ] || fail "run needs the program's arguments, like --config=configs/hha.py --workdir=gs://…"
  local line
  line="cd $folder && source .venv/bin/activate && $(program "${words[@]}")"
  everywhere "if [ -f run.pid ] && kill -0 \$(cat run.pid) 2>/dev/null; then echo 'error: a run is going on here' >&2; exit 2; fi; nohup bash -c $(quoted "$line") >run.log 2>&1 </dev/null & echo \$! >run.pid"
  log
}

log() { first_host "tail -n +1 --follow=name --pid=\$(cat run.pid) run.log"; }

stop() { everywhere "kill -TERM \$(cat run.pid)"; }

fetch() {
  [ ${#words[@]} = 2 ] || fail "fetch needs FROM and TO"
  if [[ ${words[0]} == gs://* ]]; then
    call gcloud storage cp --recursive "${words[@]}"
  else
    queue scp "$name:$folder/${words[0]}" "${words[1]}" --recurse --node=0 --worker=0
  fi
}

delete() { queue delete "$name" --force --quiet; }

case "${1:-}" in
create | install | run | log | stop | fetch | delete) command=$1 ;;
*) fail "the first argument is create, install, run, log, stop, fetch or delete, not '${1:-}'" ;;
esac
[[ -n ${2:-} && $2 != -* ]] || fail "$command needs a NAME"
name=$2
shift 2
zone="" project="" type="" slices=1 spot=yes image="" valid="" words=()
for word in "$@"; do
  case $word in
  --dry-run) dry_run=true ;;
  --zone=*) zone=${word#*=} ;;
  --project=*) project=${word#*=} ;;
  --type=*) type=${word#*=} ;;
  --slices=*) slices=${word#*=} ;;
  --image=*) image=${word#*=} ;;
  --valid-until-duration=*) valid=${word#*=} ;;
  --on-demand) spot="" ;;
  *) words+=("$word") ;;
  esac
done
[ -n "$zone" ] || fail "--zone= is missing, like --zone=us-east5-b"
if [[ $command != run && $command != fetch && ${#words[@]} -gt 0 ]]; then
  fail "$command: unknown argument ${words[0]}"
fi
"$command"
