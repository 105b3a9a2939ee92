"""A stand-in for WordNet, which nltk would have to download."""

import types

from nltk.corpus import wordnet


def stand_in(monkeypatch, *synonyms):
    """Let nltk find a WordNet of these groups of synonyms."""

    def synsets(word):
        groups = [group for group in synonyms if word in group]
        named = [[types.SimpleNamespace(name=lambda n=n: n) for n in group] for group in groups]
        return [types.SimpleNamespace(lemmas=lambda lemmas=lemmas: lemmas) for lemmas in named]

    monkeypatch.setitem(wordnet.__dict__, "synsets", synsets)
    monkeypatch.setitem(wordnet.__dict__, "ensure_loaded", lambda: None)


def missing(monkeypatch):
    """Let nltk find no WordNet, as where it was never downloaded."""

    def ensure_loaded():
        raise LookupError("Resource wordnet not found.\n  Please use the NLTK Downloader")

    monkeypatch.setitem(wordnet.__dict__, "ensure_loaded", ensure_loaded)
