"""Language models, reward models and value heads, as pure functions of flat parameters.

Start at `language_model`, the model of a run, then `transformer` and `blocks`. `config` has the
architecture choices and the presets, `attention` the kernels, `adapters` LoRA, `nf4` the 4-bit
base, `heads` the value head, `classifiers` the reward models. `families` describes the checkpoints
of each family, `files` reads and writes them. Imports `text`, `devices` and `objectives` at most.
"""
