"""Text to token ids and back.

Start at `tokenizer`, the one tokenizer class. `tokenizer_files` loads tokenizers from Hugging Face
directories and GGUF files, `special_tokens` keeps text from being parsed as special tokens, and
`tokens` pads token ids to arrays.
"""
