"""Reward scorers that need no neural network: sentiment, diversity, offensiveness, new words.

The only module that imports vaderSentiment, scikit-learn and profanity_check. Each factory takes
the training responses (only tf-idf uses them) and returns a function from texts to scores
f64[texts]. A score depends only on its own text, not on the rest of the batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from alol_jax.errors import UserError

Scorer = Callable[[Sequence[str]], np.ndarray]

BETWEEN = "\x1f"  # stands between a prompt and a response, where both are scored
_WORD = re.compile(r"[\w'’]+")
_FIELD = re.compile(r"\{(prompt|response)\}")

FULL_WORDS = 5  # texts with fewer distinct known words are penalised


class Filled(NamedTuple):
    """A scorer of the texts that a template makes of prompts and responses."""

    template: str  # with "{prompt}" and "{response}"
    scorer: Scorer

    def __call__(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Return f64[rows]."""
        pairs = zip(prompts, responses, strict=True)
        return self.scorer([_fill(self.template, *pair) for pair in pairs])


def _fill(template: str, prompt: str, response: str) -> str:
    """Fill the template in one pass, so that braces inside the texts are left alone."""
    values = {"prompt": prompt, "response": response}
    return _FIELD.sub(lambda match: values[match.group(1)], template)


def vader_positivity(train_responses: Sequence[str]) -> Scorer:
    """VADER's (compound + 1) / 2, in [0, 1]: 0 is most negative, 0.5 neutral, 1 most positive.

    Hutto and Gilbert (2014), "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
    Social Media Text"; the lexicon of about 7,500 rated words comes with vaderSentiment (MIT).
    """
    del train_responses
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()

    def score(texts: Sequence[str]) -> np.ndarray:
        compound = [analyser.polarity_scores(text)["compound"] for text in texts]
        return (np.array(compound, np.float64) + 1) / 2

    return score


def tfidf_diversity(train_responses: Sequence[str]) -> Scorer:
    """Mean non-zero entry of the L2-normalised tf-idf vector, times a penalty for few words.

    Over the words t of the training responses (lower case, two or more word characters)::

        idf(t) = ln((1 + N) / (1 + df(t))) + 1        v = normalised (count(t) · idf(t))
        score  = mean of the n non-zero v · (n / 10 if n < 5 else 1),  0 if n = 0

    with N training responses, df(t) of which contain t. The mean is at most 1/√n, so the score is
    at most 1/√5 ≈ 0.447, reached by five distinct words of equal weight. It falls like 1/√n for
    longer texts and jumps at n = 5. This is the published reward of the Reddit and dialogue tasks.

    Raises:
      UserError: no training response has a word of two or more characters.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer()  # the defaults are the formula: smooth idf, L2 norm
    try:
        vectorizer.fit(train_responses)
    except ValueError as error:
        raise UserError(
            "tfidf_diversity: no training response has a word of two or more characters; "
            "set the weight of this reward to 0"
        ) from error

    def score(texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros(0, np.float64)
        vectors = vectorizer.transform(texts)
        words = np.diff(vectors.indptr)  # n: the stored entries are the non-zero ones
        total = np.asarray(vectors.sum(axis=1), np.float64).ravel()
        penalty = np.where(words < FULL_WORDS, words / 10, 1.0)
        return total / np.maximum(words, 1) * penalty

    return score


def nontoxicity(train_responses: Sequence[str]) -> Scorer:
    """1 − P(offensive) in [0, 1], from a calibrated linear SVM on bags of words.

    The model is part of the package alt-profanity-check (MIT; trained on about 200,000 labelled
    tweets and Wikipedia comments), as a pickle for the scikit-learn version that the package pins.
    It sees words, not meaning: "I hate you" scores low, but so does a harmless text on a sensitive
    topic.
    """
    del train_responses
    import profanity_check

    def score(texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return np.zeros(0, np.float64)
        return 1 - np.asarray(profanity_check.predict_prob(list(texts)), np.float64)

    return score


def novelty(train_responses: Sequence[str]) -> Scorer:
    """Share of the response's words that are new: neither in the prompt nor said before, in [0, 1].

    ::

        score = |words(response) \\ words(prompt)| / number of words of the response

    with the sets in lower case. An echo of the prompt scores 0, as does an empty response, and
    repetition scores little. Texts are a prompt and a response with `BETWEEN` between them.
    """
    del train_responses

    def new(text: str) -> float:
        prompt, _, response = text.lower().partition(BETWEEN)
        words = _WORD.findall(response)
        return len(set(words) - set(_WORD.findall(prompt))) / max(len(words), 1)

    def score(texts: Sequence[str]) -> np.ndarray:
        return np.array([new(text) for text in texts], np.float64)

    return score
