"""Comparisons of several finished runs.

Start at `table`: the rows, the means over seeds and the paired differences, from which all else is
made. `rows` groups and names the runs, `words` writes the verdict, `curves` and `figures` plot,
`page` makes the HTML and `files` the CSV, JSON and LaTeX. Only programs import it.
"""
