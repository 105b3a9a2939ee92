# shellcheck shell=bash
# Exports LIBTPU_INIT_ARGS with the compiler's flags for this machine's TPU, before what is already in
# it. Does nothing without a TPU, or where launch/xla_flags/ has no file for its generation.
# Usage: source launch/xla_flags.sh

accelerator_type() { # like v6e-8; nothing without a TPU
  if [ -n "${TPU_ACCELERATOR_TYPE:-}" ]; then
    echo "$TPU_ACCELERATOR_TYPE"
  else # a TPU VM's metadata
    curl --silent --fail --max-time 1 --header "Metadata-Flavor: Google" \
      "http://metadata.google.internal/computeMetadata/v1/instance/attributes/accelerator-type" 2>/dev/null || true
  fi
}

tpu_generation() { # of an accelerator type: v4, v5e, v5p, v6e, …
  case "$1" in
  v5lite* | v5e-*) echo v5e ;;
  v[0-9]*-*) echo "${1%%-*}" ;;
  esac
}

flags_file="$(dirname "${BASH_SOURCE[0]}")/xla_flags/$(tpu_generation "$(accelerator_type)").txt"
if [ -f "$flags_file" ]; then
  LIBTPU_INIT_ARGS="$(cat "$flags_file")${LIBTPU_INIT_ARGS:+ $LIBTPU_INIT_ARGS}"
  export LIBTPU_INIT_ARGS
fi
