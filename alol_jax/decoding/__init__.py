"""From prompts to responses.

Start at `answers`: a policy answers prompts, and the answers are scored. `decode` is the loop with
its key-value cache, `sampling` picks tokens, `beam` is beam search. The loop takes the model as a
function, so nothing but `answers` knows which model it runs.
"""
