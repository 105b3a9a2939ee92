# shellcheck shell=bash
# What the scripts for clouds and clusters share. Usage: source launch/commands.sh

fail() { # one line, exit code 2
  echo "error: $*" >&2
  exit 2
}

quoted() { # the words as a line for a shell
  local line
  printf -v line '%q ' "$@"
  echo "${line% }"
}

dry_run=false
call() { # runs a command, or prints it with --dry-run
  if $dry_run; then quoted "$@"; else "$@"; fi
}

program() { # the command line of a run on its machine, in the project's folder
  echo "source launch/xla_flags.sh && exec python -m alol_jax.main $(quoted "$@")"
}
