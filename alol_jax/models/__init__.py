"""Language models, reward models and value heads, as pure functions of flat parameters.

Start at `language_model`, the model of a run, then `transformer` and `blocks`. `config` has the
choices of an architecture and `presets` the published ones; `attention` and `kernels` attend,
`adapters` has LoRA, `nf4` the 4-bit base, `heads` the value head, `classifiers` reward models.
`families` describes the checkpoints of each family, `files` reads and writes them. Imports `text`,
`devices` and `objectives` at most.
"""
