"""Several finished runs side by side.

Start at `table`: the rows, the mean over seeds and the paired differences, from which all the rest
is made. `rows` names the runs, `words` is the verdict, `curves` and `figures` draw, `page` is the
HTML and `files` the CSV, JSON and LaTeX.
"""
