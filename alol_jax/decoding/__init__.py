"""Decoding: from prompts to responses.

Start at `answers`: a policy answers prompts, and the answers are scored. `decode` is the loop with
a key-value cache, `sampling` chooses tokens, and `beam` is beam search. The loop gets the model as
an argument, so only `answers` knows which model it runs.
"""
