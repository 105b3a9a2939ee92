"""Text to token ids and back.

Start at `tokenizer`, the one tokenizer class. `tokenizer_files` loads tokenizers from Hugging Face
directories and GGUF files; `tokens` pads token ids to arrays.
"""
