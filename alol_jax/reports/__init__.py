"""Reports about finished runs.

Start at `results`: the numbers shared by page, terminal, JSON and CSV. `statistics` has the
bootstrap; `sections` and `sections_fit` the parts of the page; `page` the HTML; `figures` the
plots; `model_card` the card of an export. `finished_runs` reads runs from disk, and `compare`
shows several of them side by side. Only `stages` and programs import this room.
"""
