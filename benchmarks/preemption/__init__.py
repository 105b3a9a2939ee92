"""Kills a run at random moments: `__main__` is the program, `disturb` does it."""
