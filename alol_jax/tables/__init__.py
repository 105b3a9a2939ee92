"""Rows by the million: tables of columns, and the Arrow files they are mapped from.

Start with ``table.py``: ``Table`` is what every stage passes on. ``columns.py`` has the columns of
texts and of lists, ``files.py`` writes and maps a table.
"""
