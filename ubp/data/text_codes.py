"""Texts as the challenge writes them: 16 codes, each from a code book of its own, close texts with many in common.

A product quantiser (Jégou, Douze and Schmid, PAMI 2011) of vectors of 64 numbers and length 1. They are read

- from the letters: TF-IDF of their n-grams by a truncated SVD, close where texts share runs of letters, so that a
  plural, a package's size or a misspelling changes little;
- or by a language model, close where texts mean the like: the main directions of its vectors.

A subspace has every 16th of the 64: one of the 16 main directions, and
finer ones beside it, so that each position says something also of a few texts. A k-means of each subspace is its code
book. Few texts have smaller books: with 256 codes each of 300 texts would have codes that no other has.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from ubp.data.schema import CODE_BOOK, CODES
from ubp.io.errors import require_positive

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]

# A language model: its vectors of texts, float [texts, width].
Embed = Callable[[Sequence[str]], npt.NDArray[np.floating]]

LETTERS: Final = "letters"
_WIDTH: Final = 64  # of the vectors: four numbers for each code
_LETTERS: Final[dict[str, Any]] = {"analyzer": "char_wb", "ngram_range": (2, 4), "sublinear_tf": True}
_TEXTS: Final = 20_000  # that are read at a time


@dataclass(frozen=True)
class TextSettings:
    """How a quantiser is learned.

    Attributes:
        reader: of texts: ``letters``, or the name of a language model.
        sample: distinct texts that it is learned from, at most; the others are read by it afterwards.
        features: runs of letters that count, at most: the most frequent ones.
        texts_a_code: distinct texts for one code of a book, at least, so that a few texts share codes too.
    """

    reader: str = LETTERS
    sample: int = 100_000
    features: int = 65_536
    texts_a_code: int = 16

    def __post_init__(self) -> None:
        """Refuse settings that make no sense.

        Raises:
            UserError: a number is below 1.
        """
        require_positive(self, "text", "sample", "features", "texts_a_code")


@dataclass(frozen=True)
class TextCodes:
    """A fitted quantiser; any text has codes, whether it was in the fit or not.

    Attributes:
        reader: of texts.
        books: for each position the centres, float64 [codes, at most 4].
    """

    reader: "LetterReader | ModelReader"
    books: tuple[Floats, ...]

    @classmethod
    def fit(cls, texts: Sequence[str], settings: TextSettings, seed: int, embed: Embed | None = None) -> Self:
        """Learn from texts; the same texts, settings and seed give the same codes.

        Args:
            texts: in any order, repeated or not; empty ones say nothing and are left out.
            settings: see there.
            seed: of the sample, the SVD and the first centres.
            embed: the settings' language model; None where letters are read.
        """
        distinct = _sample(sorted({text for text in texts if text.strip()}), settings.sample, seed)
        if embed is None:
            letters = LetterReader.fit(distinct, settings.features, seed)
            return cls._of(letters, letters.vectors(distinct), settings.texts_a_code, seed)
        of_model = embed(distinct)
        model = ModelReader.fit(settings.reader, of_model, embed)
        return cls._of(model, model.reduced(of_model), settings.texts_a_code, seed)

    @classmethod
    def _of(cls, reader: "LetterReader | ModelReader", vectors: Floats, texts_a_code: int, seed: int) -> Self:
        count = min(CODE_BOOK, max(2, len(vectors) // texts_a_code))
        return cls(reader, tuple(_book(part, count, seed + place) for place, part in enumerate(_parts(vectors))))

    def of(self, texts: Sequence[str], advance: Callable[[int], None] = lambda _: None) -> Codes:
        """The codes of texts: uint8 [texts, 16].

        Args:
            texts: any.
            advance: told how many more are done.
        """
        codes = np.zeros((len(texts), CODES), np.uint8)
        for start in range(0, len(texts), _TEXTS):
            some = texts[start : start + _TEXTS]
            for place, part in enumerate(_parts(self.reader.vectors(some))):
                codes[start : start + len(some), place] = _nearest(self.books[place], part)
            advance(len(some))
        return codes

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What `from_arrays` makes the same quantiser of: plain numbers and texts."""
        books = {f"book_{place}": book for place, book in enumerate(self.books)}
        return {**self.reader.arrays(), **books}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], embedder: Callable[[str], Embed]) -> Self:
        """The quantiser that gave these arrays; further ones may be among them.

        Args:
            arrays: see `arrays`.
            embedder: a language model by its name; asked only where one was the reader.
        """
        books = tuple(arrays[f"book_{place}"] for place in range(CODES))
        if "model" in arrays:
            name = str(arrays["model"])
            return cls(ModelReader(name, arrays["mean"], arrays["directions"], embedder(name)), books)
        return cls(LetterReader(tuple(arrays["terms"].tolist()), arrays["weights"], arrays["directions"]), books)


def codes_text(codes: Codes) -> pl.Series:
    """Codes as the challenge writes them, ``[11  2 201 ...]``: uint8 [texts, 16] to String [texts]."""
    words = pl.Series([f"{code:3d}" for code in range(CODE_BOOK)])
    columns = [words.gather(codes[:, place]) for place in range(CODES)]
    spaced = pl.select(pl.concat_str(columns, separator=" ")).to_series()
    return pl.select(pl.concat_str(pl.lit("["), spaced, pl.lit("]"))).to_series()


def _sample(texts: list[str], at_most: int, seed: int) -> list[str]:
    if len(texts) <= at_most:
        return texts
    drawn = np.random.default_rng(seed).choice(len(texts), at_most, replace=False)
    return [texts[place] for place in np.sort(drawn)]


def _of_length_1(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-9)
    return unit


@dataclass(frozen=True)
class ModelReader:
    """Makes vectors of texts by a language model.

    Attributes:
        model: its name.
        mean: float64 [width], of the vectors of the fit.
        directions: float64 [width, at most 64]: the main ones of these vectors about their mean.
        embed: the model.
    """

    model: str
    mean: Floats
    directions: Floats
    embed: Embed

    @classmethod
    def fit(cls, model: str, vectors: npt.NDArray[np.floating], embed: Embed) -> Self:
        """From the model's vectors of texts, float [texts, width]."""
        wide = np.asarray(vectors, np.float64)
        mean = wide.mean(axis=0) if len(wide) else np.zeros(wide.shape[1])
        _, directions = np.linalg.eigh((wide - mean).T @ (wide - mean))  # the smallest first
        return cls(model, mean, np.ascontiguousarray(directions[:, ::-1][:, :_WIDTH]), embed)

    def vectors(self, texts: Sequence[str]) -> Floats:
        """Float64 [texts, at most 64], of length 1."""
        return self.reduced(self.embed(texts))

    def reduced(self, vectors: npt.NDArray[np.floating]) -> Floats:
        """The same from what the model gave."""
        return _of_length_1((np.asarray(vectors, np.float64) - self.mean) @ self.directions)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What it is kept as."""
        return {"model": np.array(self.model), "mean": self.mean, "directions": self.directions}


@dataclass(frozen=True)
class LetterReader:
    """Makes vectors of texts by their letters.

    Attributes:
        terms: the runs of letters that count.
        weights: float64 [terms], the rarer the higher.
        directions: float64 [terms, at most 64].
    """

    terms: tuple[str, ...]
    weights: Floats
    directions: Floats

    @classmethod
    def fit(cls, texts: list[str], features: int, seed: int) -> Self:
        """Learn from texts, each once."""
        if not texts:
            return cls((), np.zeros(0), np.zeros((0, 0)))
        # Imported where texts get their codes: a second and a half, which a log without texts does not need.
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd
        from threadpoolctl import threadpool_limits

        letters = TfidfVectorizer(**_LETTERS, max_features=features)
        sparse = letters.fit_transform(texts)
        with threadpool_limits(limits=1):  # one order of sums, so that the same log gives the same codes
            directions = randomized_svd(sparse, min(_WIDTH, *sparse.shape), n_iter=5, random_state=seed)[2].T
        return cls(tuple(letters.get_feature_names_out().tolist()), letters.idf_, directions)

    def vectors(self, texts: Sequence[str]) -> Floats:
        """Float64 [texts, at most 64], of length 1; zeros for a text of unknown letters."""
        if not self.terms:
            return np.zeros((len(texts), 0))
        found: Floats = self._letters.transform(texts) @ self.directions
        return _of_length_1(found)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What it is kept as."""
        terms = np.array(self.terms, dtype=np.str_)
        return {"terms": terms, "weights": self.weights, "directions": self.directions}

    @cached_property
    def _letters(self) -> Any:  # noqa: ANN401 (scikit-learn has no types)
        from sklearn.feature_extraction.text import TfidfVectorizer

        letters = TfidfVectorizer(**_LETTERS, vocabulary=self.terms)
        letters.idf_ = self.weights
        return letters


def _parts(vectors: Floats) -> Iterator[Floats]:
    """The subspaces of vectors, each float64 [texts, at most 4]."""
    for place in range(CODES):
        yield np.ascontiguousarray(vectors[:, place::CODES])


def _book(part: Floats, count: int, seed: int) -> Floats:
    """Centres of a subspace by mini-batch k-means (Sculley, WWW 2010): float64 [at most ``count``, as wide]."""
    distinct = np.unique(part.round(9), axis=0)
    if len(distinct) <= 1 or not part.shape[1]:
        return np.zeros((1, part.shape[1]))
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):  # one order of sums, so that the same log gives the same codes
        means: Any = MiniBatchKMeans(min(count, len(distinct)), random_state=seed, n_init=1, batch_size=4096)
        means.fit(distinct)
    return np.ascontiguousarray(means.cluster_centers_, dtype=np.float64)


def _nearest(book: Floats, part: Floats) -> npt.NDArray[np.int64]:
    """The nearest centre of each row, of equally near ones the first: int64 [texts]."""
    found: npt.NDArray[np.int64] = (part @ book.T - np.square(book).sum(axis=1) / 2).argmax(axis=1)
    return found
