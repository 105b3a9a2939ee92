"""Rewards: scoring responses.

Start at `reward`: the weighted sum of components, and `SCORERS`, the table of rewards without a
neural network (`text`; `lexical`, with stems). `opening` opens the reward models named in a config:
`classifier` for sequence classifiers, `similarity` for sentence encoders, `distilled` for small
ones fitted here. `forms` builds the token ids that a classifier reads. Imports `models`, never
`tasks`: a task names its scorers by key.
"""
