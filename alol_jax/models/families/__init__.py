"""The model families: what Hugging Face and GGUF files of each one hold.

Start at `registry`, the table of families; `family` says what a family is. Each family is one file:
its config.json, its tensor names and its classes. `layouts` has the ways in which a tensor is
stored. The computation itself is `models.transformer`, the same for all.
"""
