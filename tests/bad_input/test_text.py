import tensorflow as tf
from absl.testing import parameterized

from tests.bad_input.base import BadInput
from tests.text.files import new_folder, text_of
from tf_moe import text


class TextTest(BadInput):
    """The calls take the test, which has a text, its vocabulary and a directory."""

    def setUp(self):
        super().setUp()
        self.directory = new_folder(self)
        self.text = text_of(self.directory, ["the cat sat", "the dog"])
        self.vocabulary = text.build_vocabulary(self.text, None)

    def contiguous(self, batch_size=2, steps=2, **arguments):
        return text.contiguous_batches(self.text, self.vocabulary, batch_size, steps, **arguments)

    def sentences(self, batch_size=2, **arguments):
        return text.sentence_batches(self.text, self.vocabulary, batch_size, **arguments)

    def packed(self, batch_size=2, steps=4, **arguments):
        cache = text.cache_tokens(self.text, self.vocabulary, self.directory / "cache")
        return text.packed_batches(cache, batch_size, steps, **arguments)

    def pieces(self):
        return text.build_pieces(self.text, 300)

    def load(self, data):
        (self.directory / "tokens.txt").write_bytes(data)
        return text.Vocabulary.load(self.directory / "tokens.txt")

    @parameterized.named_parameters(
        ("files_number", lambda t: text.Text(3), ValueError, "list of paths.*Received: 3"),
        ("files_none", lambda t: text.Text(None), ValueError, "Received: None"),
        ("files_one_path", lambda t: text.Text("a.txt"), ValueError, "Received: 'a.txt'"),
        ("files_bytes", lambda t: text.Text(b"a.txt"), ValueError, "Received: b'a.txt'"),
        ("files_numbers", lambda t: text.Text([3]), ValueError, r"Received: \(3,\)"),
        ("files_missing", lambda t: text.Text([t.directory / "b.txt"]), FileNotFoundError, "b.txt"),
        ("files_directory", lambda t: text.Text([t.directory]), FileNotFoundError, "No such file: '/"),
        ("part", lambda t: text.Text(t.text.files, "dev"), ValueError, "one of .*part='dev'"),
        ("corpus_missing", lambda t: text.Corpus.from_directory("nowhere"), FileNotFoundError, "nowhere"),
        ("corpus_file", lambda t: text.Corpus.from_directory(t.text.files[0]), FileNotFoundError, "text.txt"),
        ("corpus_number", lambda t: text.Corpus.from_directory(3), TypeError, "not int"),
        ("kind", lambda t: text.Tokenizer("chars"), ValueError, "one of .*kind='chars'"),
        ("kind_none", lambda t: text.Tokenizer(None), ValueError, "kind=None"),
        ("size_fraction", lambda t: text.build_vocabulary(t.text, 5.5), ValueError, "size=5.5"),
        ("size_text", lambda t: text.build_vocabulary(t.text, "5"), ValueError, "None for all. Received: size='5'"),
        ("size_true", lambda t: text.build_vocabulary(t.text, True), ValueError, "size=True"),
        ("size_3", lambda t: text.build_vocabulary(t.text, 3), ValueError, "4 or more.*size=3"),
        ("size_beyond", lambda t: text.build_vocabulary(t.text, 99), ValueError, "only 4 distinct.*size=99"),
        ("words_for_text", lambda t: text.build_vocabulary("the text", 5), TypeError, "text='the text'. Pass"),
        (
            "corpus_for_text",
            lambda t: text.build_vocabulary(text.Corpus(t.text, t.text, t.text), 5),
            TypeError,
            r"text=Corpus\(.*such as corpus.train",
        ),
        ("vocabulary_words", lambda t: text.Vocabulary(["a"]), ValueError, r"first tokens must be.*\('a',\)"),
        ("vocabulary_numbers", lambda t: text.Vocabulary([*text.Vocabulary.specials, 3]), ValueError, r"\[3\]"),
        ("vocabulary_line", lambda t: text.Vocabulary([*text.Vocabulary.specials, "a\n"]), ValueError, r"\['a\\n'\]"),
        ("vocabulary_surrogate", lambda t: text.Vocabulary([*text.Vocabulary.specials, "\ud800"]), ValueError, "ud800"),
        (
            "vocabulary_length",
            lambda t: text.Vocabulary(text.Vocabulary.specials, num_tokens=-1),
            ValueError,
            "num_tokens=-1",
        ),
        ("decode_beyond", lambda t: t.vocabulary.decode([3, 99]), ValueError, r"below 7. Received: \[99\]"),
        ("decode_negative", lambda t: t.vocabulary.decode([-1]), ValueError, r"at least 0.*\[-1\]"),
        ("decode_fractions", lambda t: t.vocabulary.decode([1.5]), ValueError, r"float64 .*\[1.5\]"),
        ("decode_batch", lambda t: t.vocabulary.decode([[1, 2]]), ValueError, r"shape \(1, 2\)"),
        ("encode_a_line", lambda t: t.vocabulary.encode("a b"), ValueError, r"lines must be strings \[N\].*shape \(\)"),
        ("encode_numbers", lambda t: t.vocabulary.encode([1, 2]), TypeError, r"\[1, 2\].*string"),
        ("count_words", lambda t: t.vocabulary.count_tokens("the cat"), TypeError, "text='the cat'"),
        ("load_missing", lambda t: text.Vocabulary.load(t.directory / "no"), FileNotFoundError, "no'"),
        ("load_text", lambda t: t.load(b"the cat\n"), ValueError, "not a saved vocabulary.*'the cat'"),
        ("load_bytes", lambda t: t.load(b"\xff\xfe\n"), ValueError, r"not a saved vocabulary.*xff"),
        ("load_kind", lambda t: t.load(b'{"tokenizer": "chars"}\n'), ValueError, "tokens.txt' does.*kind='chars'"),
        ("load_specials", lambda t: t.load(b"{}\na\n"), ValueError, r"tokens.txt' does not hold.*first tokens.*'a'"),
        ("load_key", lambda t: t.load(b'{"colour": 1}\n<pad>\n'), ValueError, "not a saved vocabulary.*colour"),
        ("batch_text", lambda t: t.contiguous("2"), ValueError, "batch_size='2'"),
        ("batch_fraction", lambda t: t.contiguous(2.0), ValueError, r"batch_size=2\.0"),
        ("batch_true", lambda t: t.contiguous(True), ValueError, "batch_size=True"),
        ("batch_none", lambda t: t.contiguous(None), ValueError, "batch_size=None"),
        ("steps_zero", lambda t: t.contiguous(steps=0), ValueError, "steps=0"),
        ("buffer_fraction", lambda t: t.contiguous(shuffle_buffer=1.5), ValueError, "shuffle_buffer=1.5"),
        ("length_negative", lambda t: t.contiguous(num_tokens=-4), ValueError, "num_tokens=-4"),
        ("length_fraction", lambda t: t.contiguous(num_tokens=4.5), ValueError, "num_tokens=4.5"),
        ("seed_text", lambda t: t.contiguous(shuffle_buffer=3, seed="a"), ValueError, "seed='a'"),
        ("stream_of_words", lambda t: text.contiguous_batches("a", t.vocabulary, 2, 2), TypeError, "text='a'"),
        (
            "list_for_vocabulary",
            lambda t: text.contiguous_batches(t.text, ["a"], 2, 2),
            TypeError,
            r"vocabulary=\['a'\]. Pass what build_vocabulary",
        ),
        ("sentences_fraction", lambda t: t.sentences(2.5), ValueError, "batch_size=2.5"),
        ("sentences_none", lambda t: text.sentence_batches(None, t.vocabulary, 2), TypeError, "text=None"),
        ("boundaries_text", lambda t: t.sentences(boundaries="ab"), ValueError, r"boundaries\[0\]='a'"),
        ("boundaries_fraction", lambda t: t.sentences(boundaries=[4.5]), ValueError, r"boundaries\[0\]=4.5"),
        ("boundaries_falling", lambda t: t.sentences(boundaries=[8, 4]), ValueError, r"rising.*\[8, 4\]"),
        ("boundaries_number", lambda t: t.sentences(boundaries=4), TypeError, "'int'"),
        ("packed_zero", lambda t: t.packed(0), ValueError, "batch_size=0"),
        ("packed_steps", lambda t: t.packed(steps=2.5), ValueError, "steps=2.5"),
        ("packed_most", lambda t: t.packed(sentences_per_row=0), ValueError, "sentences_per_row=0"),
        ("packed_buffer", lambda t: t.packed(shuffle_buffer=-1), ValueError, "shuffle_buffer=-1"),
        ("packed_seed", lambda t: t.packed(seed="a"), ValueError, "seed='a'"),
        ("packed_process", lambda t: t.packed(process=(2, 2)), ValueError, r"number of processes.*process=\(2, 2\)"),
        ("packed_process_number", lambda t: t.packed(process=2), ValueError, "pair .*process=2"),
        ("packed_text", lambda t: text.packed_batches(t.text, 2, 4), TypeError, "cache=.*what cache_tokens returns"),
        ("cache_words", lambda t: text.cache_tokens("a", t.vocabulary, t.directory), TypeError, "text='a'"),
        ("cache_list", lambda t: text.cache_tokens(t.text, ["a"], t.directory), TypeError, r"vocabulary=\['a'\]"),
        ("pairs_words", lambda t: text.count_too_long("a b", t.pieces()), TypeError, "list of them.*texts='a b'"),
        ("pairs_number", lambda t: text.count_too_long(3, t.pieces()), TypeError, "ParallelText.*texts=3"),
        ("pairs_none", lambda t: text.count_too_long(None, t.pieces()), TypeError, "texts=None"),
        ("pieces_bytes", lambda t: text.Pieces("a"), ValueError, "bytes of a SentencePiece model. Received: 'a'"),
        ("pieces_size", lambda t: text.build_pieces(t.text, 259), ValueError, "260 or more.*bytes.*size=259"),
        ("pieces_coverage", lambda t: text.build_pieces(t.text, 300, coverage=0), ValueError, "coverage=0"),
        ("pieces_text", lambda t: text.build_pieces(["a.txt"], 300), TypeError, "text='a.txt'"),
        ("one_language", lambda t: text.build_pieces(t.text, 300, languages="fr"), ValueError, "languages='fr'"),
        ("language", lambda t: text.build_pieces(t.text, 300, languages=["f r"]), ValueError, r"\['f r'\]"),
        ("languages", lambda t: text.build_pieces(t.text, 300, languages=["a", "a"]), ValueError, "distinct"),
        ("pieces_decode", lambda t: t.pieces().decode([[1.5]]), ValueError, "integers .*float32 of shape"),
        ("pieces_decode_one", lambda t: t.pieces().decode([1]), ValueError, r"\[N, T\].*\(1,\)"),
        ("pieces_decode_99999", lambda t: t.pieces().decode([[99999]]), tf.errors.OutOfRangeError, ""),
        ("pieces_load", lambda t: text.Pieces.load(t.text.files[0]), ValueError, "text.txt' does not hold pieces"),
        ("length_of_a_row", lambda t: t.sentences(max_length=4.5), ValueError, "max_length=4.5"),
    )
    def test_calls(self, call, error, pattern):
        self.check(lambda: call(self), error, pattern)

    def test_decoding_nothing_is_no_error(self):
        self.assertEqual(self.vocabulary.decode([]), "")
