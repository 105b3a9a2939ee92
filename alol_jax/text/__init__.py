"""Text to token ids and back.

Start at `tokenizer`, the one tokenizer class, and `prompts`, which fills templates. `chat_template`
runs a model's own, `conversations` encodes what it wrote, `tokenizer_files` reads and writes
Hugging Face directories and GGUF files, `special_tokens` keeps text from being parsed as special
tokens, and `tokens` pads token ids to arrays. Imports only `types`.
"""
