"""Scorers: what a response is worth.

Start at `reward`: the weighted sum of components, and `SCORERS`, the table of rewards that read
words alone (`text`). `opening` opens the reward models that a config names: `classifier` for
sequence classifiers, `distilled` for small ones fitted here; `forms` is what they read.
"""
