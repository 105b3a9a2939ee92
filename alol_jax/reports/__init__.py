"""What a person reads after a run.

Start at `results`: the figures that page, terminal, JSON and CSV share. `statistics` has the
bootstrap, `sections` and `sections_fit` the parts of the page, `page` the HTML, `figures` the
plots, `model_card` the card of an export, `finished_runs` finds runs on disk. Several runs side by
side are in `compare`.
"""
