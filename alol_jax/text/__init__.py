"""Between text and token ids.

Start at `tokenizer`: what a tokenizer promises, whatever file it came from. `tokenizer_files`
reads tokenizers from Hugging Face directories and GGUF files, `tokens` pads ids to arrays.
"""
