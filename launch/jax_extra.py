"""Print which extra of jax this machine needs, and why.

python -m launch.jax_extra
"""

import os
import sys

from alol_jax.devices.hardware import ROOT, jax_extra, nvidia_driver
from alol_jax.errors import UserError


def main() -> int:
    """Print ``EXTRA: why``, and return the exit code; 2 if jax cannot use the GPU."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        sys.stdout.write("jax: JAX_PLATFORMS=cpu\n")
        return 0
    try:
        extra, why = jax_extra(ROOT, nvidia_driver())
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{extra}: {why}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
