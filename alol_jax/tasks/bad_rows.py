"""What becomes of rows that cannot be read: the first ends the program, or they are left out."""

from __future__ import annotations

import collections

from alol_jax.errors import UserError

MODES = ("stop", "drop")
PLACES = 3  # named for each reason


class BadRows:
    """Called with a place and an error for each bad row of one split.

    Attributes:
      count: the bad rows so far.
    """

    def __init__(self, mode: str, share: float) -> None:
        """Stop at the first bad row, or drop at most this share of all rows.

        Raises:
          UserError: the mode is unknown, or the share is outside [0, 1].
        """
        if mode not in MODES:
            raise UserError.unknown(f"task.bad_rows={mode!r} is unknown", mode, MODES)
        if not 0 <= share <= 1:
            raise UserError(f"task.bad_share={share} must be a share from 0 to 1")
        self.count = 0
        self._drop, self._share = mode == "drop", share
        self._places: dict[str, list[str]] = collections.defaultdict(list)
        self._counts: collections.Counter[str] = collections.Counter()

    def __call__(self, where: str, error: UserError) -> None:
        """Count the row under the reason that the error gives, or raise it.

        Raises:
          UserError: rows are not to be dropped.
        """
        if not self._drop:
            raise error
        reason = str(error).removeprefix(where).lstrip(" ,:")
        self.count += 1
        self._counts[reason] += 1
        if len(self._places[reason]) < PLACES:
            self._places[reason].append(where)

    def check(self, key: str, kept: int) -> None:
        """Check that not too many rows were dropped.

        Args:
          key: of ``config.task``, whose files were read.
          kept: the rows that stay.

        Raises:
          UserError: none stays, or more than the share was dropped.
        """
        total = kept + self.count
        if self.count and (not kept or self.count > self._share * total):
            said = f"more than task.bad_share={self._share:g} allows" if kept else "none stays"
            raise UserError(
                f"task.{key}: {self.count} of {total} rows cannot be read, {said}: "
                f"{'; '.join(self._reasons())}"
            )

    def notes(self) -> list[str]:
        """One sentence for each reason."""
        return [f"Dropped rows: {reason}." for reason in self._reasons()]

    def _reasons(self) -> list[str]:
        return [
            f"{reason} ({count}: {'; '.join(self._places[reason])}"
            f"{'; …' if count > PLACES else ''})"
            for reason, count in self._counts.most_common()
        ]
