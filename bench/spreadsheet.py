"""Texts in CSV files, which spreadsheets take for formulas when they begin in a certain way (OWASP: CSV injection).

The rule of every CSV file that deidbench writes: a cell that holds a *text* beginning with = + - @ (blanks before it, and the wide forms
of these signs, count too), a tab or a line end gets an apostrophe before it.  Numbers are untouched, and so is everything in JSON and
Parquet, which hold texts to the letter.  Files that deidbench reads again (:func:`exact`) take the apostrophe off.
"""

from __future__ import annotations

_SIGNS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def guard(text: str) -> str:
    """``text`` as no spreadsheet acts on it."""
    return f"'{text}" if text.lstrip(" \u00a0")[:1] in _SIGNS or text[:1] in ("\t", "\r", "\n") else text


def guard_exactly(text: str) -> str:
    """As :func:`guard`, so that :func:`exact` gives the text back whatever it is: one that begins with an apostrophe gets another."""
    return f"'{text}" if text.startswith("'") else guard(text)


def exact(cell: str) -> str:
    """The text behind a cell that :func:`guard_exactly` wrote; a cell of an older file comes back as it is."""
    rest = cell[1:]
    return rest if cell.startswith("'") and (rest.startswith("'") or guard(rest) != rest) else cell
