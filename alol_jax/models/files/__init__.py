"""Model files of other libraries, in and out: Hugging Face, PEFT and GGUF.

Start at `convert`: a directory, hub name or GGUF file becomes parameters. `weight_names` has one
table per model family; `hf_*` read and write Hugging Face directories, `peft_*` LoRA adapters,
`merge` makes one model of a base and its adapter. A field or weight that is unknown is an error.
"""
