"""Rewards: scoring responses.

Start at `reward`: the weighted sum of components, and `SCORERS`, the table of rewards without a
neural network (`text`; `lexical`, with stems). `opening` opens the reward models named in a config:
`classifier` for sequence classifiers (`forms` has what they read), `cosine` for sentence encoders
(`gold` has the responses to compare with), `distilled` for small ones fitted here. Imports
`models`, never `tasks`: a task names its scorers by key.
"""
