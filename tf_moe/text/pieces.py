"""Word pieces: a vocabulary that can write any text, shared by all languages."""

import io
import random
import re
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import tensorflow as tf
import tensorflow_text as tf_text

from tf_moe import checks
from tf_moe.text.parallel_text import ParallelText
from tf_moe.text.text import Text, check_text
from tf_moe.text.tokenizer import SPACE, as_lines
from tf_moe.text.vocabulary import Vocabulary

_LANGUAGE = re.compile(r"[A-Za-z0-9_-]+")
_SAMPLE = 1_000_000  # lines that pieces are learned from at most: more need memory and change little


class Pieces:
    """Word pieces and their ids: lines to ids and back, in graphs and in what is exported too.

    Ids: 0 is padding, 1 unknown, 2 the end of a sentence `</s>`, all three as in `Vocabulary`; then one token for
    each language that may be translated into, `<2fr>`; then 256 bytes, which write what no piece can write; then the
    pieces. No text makes one of the ids before the bytes, not even one that holds `</s>` or `<2fr>`: those are
    characters like others.

    Text is normalised first: Unicode's form C (`e` and an accent are one character), white space of any kind one space
    between words and none at the ends; SentencePiece's own sign for a space, U+2581, is white space too. Nothing else
    is changed, and `decode(encode(line))` is the normalised line.

    Args:
        model: A SentencePiece model as bytes, with the ids as above: what `build_pieces` makes and `save` writes.

    Attributes:
        languages: The languages that have a token, in the order of their ids.

    Raises:
        ValueError: `model` is no such model.

    Example:
        >>> texts = [tf_moe.text.Text(["pairs/train.en"]), tf_moe.text.Text(["pairs/train.fr"])]
        >>> pieces = tf_moe.text.build_pieces(texts, 300, languages=["fr"])
        >>> ids = pieces.encode(["A cat sat."], "fr")
        >>> pieces.decode(ids)
        <tf.Tensor: shape=(1,), dtype=string, numpy=array([b'A cat sat.'], dtype=object)>
    """

    PAD, UNK, END = Vocabulary.PAD, Vocabulary.UNK, Vocabulary.END
    specials = Vocabulary.specials

    def __init__(self, model: bytes):
        self.model = model
        # Traced once, for any number of lines: each trace holds the whole model.
        lines, ids = tf.TensorSpec([None], tf.string), tf.RaggedTensorSpec([None, None], tf.int32)
        self._tokenize = tf.function(lambda lines: self._tokenizer().tokenize(lines), [lines])
        self._detokenize = tf.function(lambda ids: self._tokenizer().detokenize(ids), [ids])
        try:
            with tf.init_scope():  # a value, also where pieces are loaded in a function
                names = tf.function(self._names)().numpy()
        except (TypeError, tf.errors.OpError) as error:
            raise ValueError(f"model must be the bytes of a SentencePiece model. Received: {_shown(model)}.") from error
        self.tokens = tuple(name.decode("utf-8") for name in names)
        if self.tokens[: len(self.specials)] != self.specials or "<0x00>" not in self.tokens:
            raise ValueError(
                f"The first pieces must be {self.specials}, and bytes be among them: make them with build_pieces. "
                f"Received: {self.tokens[:5]}"
            )
        languages = self.tokens[len(self.specials) : self.tokens.index("<0x00>")]
        self.languages = tuple(token.removeprefix("<2").removesuffix(">") for token in languages)

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(
        self, lines: tf.Tensor | Sequence[str], target_language: str | tf.Tensor | None = None
    ) -> tf.RaggedTensor:
        """Ids [N, None], int32, of lines [N]: of each line its pieces and `</s>`.

        Args:
            lines: Strings [N].
            target_language: For lines that are to be translated by a model of several languages: the language, one
                for all or [N], whose token comes first. Default None: no such token.

        Raises:
            ValueError: lines are not [N], or languages not as many; a language that has no token, for which it is
                tf.errors.InvalidArgumentError where it is a tensor.
        """
        lines = as_lines(lines)
        ids = self._tokenize(normalize(lines))
        parts = [ids, tf.fill([ids.nrows(), 1], self.END)]
        if target_language is not None:
            first = self._language_ids(target_language)
            if first.shape.rank:
                checks.same_batch(lines=lines, target_language=first)
            first = tf.broadcast_to(first, [ids.nrows()])
            parts.insert(0, tf.expand_dims(first, 1))
        return tf.concat(parts, axis=1)

    def decode(self, ids: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """The lines [N], strings, of ids [N, T], dense or ragged: what stands before the first `</s>` of each.

        Raises:
            ValueError: ids are not integers; tf.errors.OutOfRangeError where they are beyond the number of pieces.
        """
        if isinstance(ids, tf.RaggedTensor):
            ids = ids.to_tensor()  # padding is written as nothing
        ids = tf.convert_to_tensor(ids)
        if not (ids.dtype.is_integer and ids.shape.rank == 2):
            raise ValueError(f"ids must be integers [N, T]. Received: {ids.dtype.name} of shape {ids.shape}")
        ids = tf.cast(ids, tf.int32)
        ends = tf.cumsum(tf.cast(ids == self.END, tf.int32), axis=1)
        return self._detokenize(tf.ragged.boolean_mask(ids, ends == 0))

    def _tokenizer(self) -> tf_text.SentencepieceTokenizer:
        # A new one in each graph, which then holds the model as a constant: what is exported has nothing to track. One
        # outside of graphs is gone as soon as TensorFlow 2.21 clears its kernels, as tf.random.set_seed does.
        return tf_text.SentencepieceTokenizer(self.model)

    def _names(self) -> tf.Tensor:
        tokenizer = self._tokenizer()
        return tokenizer.id_to_string(tf.range(tokenizer.vocab_size()))

    def _language_ids(self, language: str | tf.Tensor) -> tf.Tensor:
        if isinstance(language, str) and language not in self.languages:
            raise ValueError(f"{self._known()}. Received: target_language={language!r}")
        matches = tf.equal(tf.expand_dims(language, -1), tf.constant(self.languages, tf.string))
        known = tf.debugging.Assert(tf.reduce_all(tf.reduce_any(matches, axis=-1)), [self._known(), language])
        with tf.control_dependencies([] if known is None else [known]):
            return len(self.specials) + tf.argmax(tf.cast(matches, tf.int32), axis=-1, output_type=tf.int32)

    def _known(self) -> str:
        return f"target_language must be one of: {', '.join(self.languages) or None}"

    def save(self, path: str | PathLike) -> None:
        """Writes a SentencePiece model, which its own tools read too."""
        Path(path).write_bytes(self.model)

    @classmethod
    def load(cls, path: str | PathLike) -> "Pieces":
        """Reads what `save` wrote; raises ValueError, which names the file, where it is something else."""
        try:
            return cls(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{str(path)!r} does not hold pieces: {error}") from error


def build_pieces(
    texts: Text | ParallelText | Sequence[Text | ParallelText],
    size: int,
    *,
    languages: Sequence[str] = (),
    coverage: float = 1.0,
    longest: int = 16,
) -> Pieces:
    """Pieces learned from texts of all languages that are to share them, by SentencePiece's unigram model.

    The same texts give the same pieces. Takes the package `sentencepiece`, which applying pieces does not.

    Args:
        texts: One training part or several, read once, as streams; from more than a million lines a million are drawn.
            Lines of more than 4192 bytes are left out. Of a ParallelText both sides, without the pairs of its other
            parts.
        size: Number of ids at most, specials, languages and 256 bytes included. Small texts have fewer pieces.
        languages: Languages to be translated into, such as `"fr"`: each gets a token. Default none: a model of one
            direction needs none.
        coverage: Share of the texts' characters that must have pieces; the rarest, which make up the rest, are written
            in bytes. Default 1. Pass 0.9995 for texts with thousands of Chinese characters, or where the rubbish of web
            pages would take up the room.
        longest: Characters of a piece at most. Default 16; fewer where words are put together from short parts that
            a piece should not join.

    Raises:
        ValueError: `size` is no integer, or too small for the characters of the texts; `coverage` is not over 0 and at
            most 1; `longest` is no positive integer; `languages` are not distinct names of letters, digits, `-` and
            `_`; the texts are empty.
        TypeError: One of `texts` is no Text and no ParallelText.
        ImportError: `sentencepiece` is not installed.

    Example:
        >>> pieces = tf_moe.text.build_pieces([tf_moe.text.Text(["pairs/train.fr"])], size=280)
        >>> int(pieces.encode(["un chat"])[0, -1])  # the end
        2
    """
    texts = [texts] if isinstance(texts, (Text, ParallelText)) else list(texts)
    for text in texts:
        if not isinstance(text, ParallelText):
            check_text(text)
    languages = _check_languages(languages)
    least = len(Pieces.specials) + len(languages) + 256 + 1
    size = checks.integer("size", size, least, hint=": specials, languages, 256 bytes and a piece")
    coverage = checks.number("coverage", coverage, "a number over 0 and at most 1", lambda x: 0 < x <= 1)
    longest = checks.integer("longest", longest)
    sentencepiece = _import_sentencepiece()
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_sample(_normalized_lines(texts), _SAMPLE)),
            model_writer=model,
            vocab_size=size,
            hard_vocab_limit=False,
            model_type="unigram",
            character_coverage=coverage,
            byte_fallback=True,
            max_sentencepiece_length=longest,
            normalization_rule_name="identity",  # it is done before, by what runs in the graph
            pad_id=Pieces.PAD,
            unk_id=Pieces.UNK,
            eos_id=Pieces.END,
            bos_id=-1,
            control_symbols=[f"<2{language}>" for language in languages],
            num_threads=4,  # in how many parts it adds up: another number, on any machine, may give other pieces
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            "No pieces can be learned from these texts: they are empty, or have too many characters for the size; then "
            f"pass a larger one, or a lower coverage. Received: size={size}, coverage={coverage}. Because: {error}"
        ) from error
    return Pieces(model.getvalue())


def normalize(lines: tf.Tensor | Sequence[str]) -> tf.Tensor:
    """Strings in Unicode's form C, with one space between words and none at the ends."""
    lines = tf.strings.regex_replace(lines, f"({SPACE}|\u2581)+", " ")
    return tf_text.normalize_utf8(tf.strings.strip(lines), "NFC")


def _normalized_lines(texts: Sequence[Text | ParallelText]) -> Iterator[str]:
    for text in texts:
        for block in text.blocks():
            for lines in block if isinstance(text, ParallelText) else [block]:  # both sides
                for line in normalize(tf.constant(lines)).numpy():
                    yield line.decode("utf-8")


def _sample(lines: Iterator[str], count: int) -> list[str]:
    """So many lines, each as likely as any other, and the same each time: SentencePiece's own sample has no seed."""
    kept, rng = [], random.Random(0)
    for number, line in enumerate(lines):
        if number < count:
            kept.append(line)
        elif (place := rng.randrange(number + 1)) < count:
            kept[place] = line
    return kept


def _check_languages(languages: Sequence[str]) -> tuple[str, ...]:
    names = languages if isinstance(languages, str) else tuple(languages)
    is_name = not isinstance(names, str) and all(isinstance(n, str) and _LANGUAGE.fullmatch(n) for n in names)
    if not is_name or len({*names}) < len(names):
        raise ValueError(
            "languages must be distinct names of letters, digits, - and _, such as ['fr', 'pt_BR']. "
            f"Received: languages={languages!r}"
        )
    return names


def _import_sentencepiece():
    try:
        import sentencepiece  # here: applying pieces does not need it
    except ImportError as error:
        raise ImportError(
            "Learning pieces takes the package sentencepiece: pip install 'tf_moe[translation]'. Applying does not."
        ) from error
    return sentencepiece


def _shown(model) -> str:
    return f"{model[:20]!r}..." if isinstance(model, bytes) and len(model) > 20 else repr(model)
