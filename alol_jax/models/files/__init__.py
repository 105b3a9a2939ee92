"""Reading and writing model files of other libraries: Hugging Face, PEFT and GGUF.

Start at `convert`, which turns a directory, hub name or GGUF file into parameters. The tensors of
each model family are described in `models.families`. `hf_*` read and write Hugging Face
directories, `torch_*` read files of torch.save, `peft_*` LoRA adapters; `merge` merges an adapter
into its base. Unknown fields or weights are errors. Imports `models.families` and the models, no
reward and no run.
"""
