"""Bringing what a config names: data files, hub data sets, models, adapters, reward models.

Start at `__main__`, the program. `places` is the table of published places, `wanted` lists what a
config names, `bring` gets a place here: `web` downloads (the door of requests), `unpack` unpacks.
Hub models go through `hub` and the readers of a run, hub data sets through `tasks.sources`.
"""
