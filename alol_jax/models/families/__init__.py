"""The model families: what Hugging Face and GGUF files of each one hold.

Start at `registry`, the table of families; `family` says what a family is. Each family is one file:
its config.json, its tensor names and its classes. `layouts` has the ways in which a tensor is
stored, `fields` reads config.json with types, `gguf_form` says what llama.cpp makes of a family.
The computation is `models.transformer`, the same for all. Imports nothing of `models.files`, which
imports it.
"""
