from tests.base import TestCase
from tests.text.files import new_folder, write
from tf_moe.text import ParallelCorpus


class ParallelCorpusTest(TestCase):
    def folder(self, *names):
        folder = new_folder(self)
        for name in names:
            write(folder / name, [f"{name} {n}" for n in range(200)])
        return folder

    def corpus(self, *names, **arguments):
        return ParallelCorpus.from_directory(self.folder(*names), **arguments)

    def first(self, corpus, part, source="en", target="fr"):
        return [next(text.pairs()) for text in corpus.parallel(part, source, target)]

    def test_parts_and_languages_by_name(self):
        names = [
            f"{part}.{language}" for part in ("train", "val", "test_2016_flickr") for language in ("en", "fr", "cs")
        ]
        corpus = self.corpus(*[f"{name}.gz" for name in names[:6]], *names[6:], "README.md", "train.txt", ".hidden.en")
        self.assertEqual(corpus.languages, ("cs", "en", "fr"))
        self.assertEqual(self.first(corpus, "train"), [("train.en.gz 0", "train.fr.gz 0")])
        self.assertEqual(self.first(corpus, "validation", "cs", "en"), [("val.cs.gz 0", "val.en.gz 0")])
        self.assertEqual(self.first(corpus, "test"), [("test_2016_flickr.en 0", "test_2016_flickr.fr 0")])
        every = [("cs", "en"), ("cs", "fr"), ("en", "cs"), ("en", "fr"), ("fr", "cs"), ("fr", "en")]
        self.assertEqual(corpus.directions(), every)
        self.assertEqual(corpus.directions("en"), [pair for pair in every if "en" in pair])
        (text,) = corpus.parallel("train", "en", "cs")
        self.assertEqual((text.source_language, text.target_language, text.part), ("en", "cs", None))

    def test_files_for_each_pair_of_languages(self):
        names = ["train.en-fr.en", "train.en-fr.fr", "train.en-pt_BR.en.xz", "train.en-pt_BR.pt_BR.xz"]
        others = [name.replace("train", part) for name in names for part in ("dev", "test")]
        corpus = self.corpus(*names, *others, "sub/train.more.en", "sub/train.more.fr")
        self.assertEqual(corpus.directions(), [("en", "fr"), ("en", "pt_BR"), ("fr", "en"), ("pt_BR", "en")])
        self.assertEqual(corpus.languages, ("en", "fr", "pt_BR"))
        self.assertEqual(
            self.first(corpus, "train"),
            [("sub/train.more.en 0", "sub/train.more.fr 0"), ("train.en-fr.en 0", "train.en-fr.fr 0")],
        )
        self.assertEqual(self.first(corpus, "test", "en", "pt_BR")[0][0], "test.en-pt_BR.en.xz 0")
        with self.assertRaisesRegex(ValueError, "No train files have both 'fr' and 'pt_BR'"):
            corpus.parallel("train", "fr", "pt_BR")

    def test_two_files_alone_are_split_by_lines(self):
        corpus = self.corpus("news.en", "news.fr.gz")
        pairs = {}
        for part in ("train", "validation", "test"):
            for source, target in (("en", "fr"), ("fr", "en")):
                (text,) = corpus.parallel(part, source, target)
                pairs[part, source] = [pair[:: 1 if source == "en" else -1] for pair in text.pairs()]
            self.assertEqual(pairs[part, "en"], pairs[part, "fr"])
        self.assertCountEqual(
            sum((pairs[part, "en"] for part in ("train", "validation", "test")), []),
            [(f"news.en {n}", f"news.fr.gz {n}") for n in range(200)],
        )
        self.assertGreater(len(pairs["train", "en"]), 150)

    def test_a_sentence_under_two_names_is_tested_under_both_or_none(self):
        lines = [f"sentence {n}" for n in range(200)]
        folder = new_folder(self)
        for other in ("de", "fr"):
            write(folder / f"news.{other}-en.en", lines)
            write(folder / f"news.{other}-en.{other}", [f"{other} {line}" for line in lines])
        corpus = ParallelCorpus.from_directory(folder)
        for part in ("train", "test"):
            sides = [[pair[0] for pair in corpus.parallel(part, "en", other)[0].pairs()] for other in ("de", "fr")]
            self.assertEqual(*sides)
            self.assertNotEmpty(sides[0])

    def test_parts_that_the_user_names(self):
        names = [f"{name}.{language}" for name in ("a", "b", "c", "d") for language in ("en", "fr")]
        corpus = self.corpus(*names, validation="b", test="c")
        self.assertLen(corpus.parallel("train", "en", "fr"), 2)
        self.assertEqual(self.first(corpus, "validation"), [("b.en 0", "b.fr 0")])
        self.assertEqual(self.first(corpus, "test"), [("c.en 0", "c.fr 0")])
        self.assertEqual(self.first(self.corpus(*names, train="d", validation="b", test="c"), "train")[0][0], "d.en 0")

    def test_several_tests(self):
        names = [f"{name}.{language}" for name in ("train", "val", "test_1", "test_2") for language in ("en", "fr")]
        with self.assertRaisesRegex(ValueError, r"Several test files: \['test_1', 'test_2'\]. Choose one: .*test="):
            self.corpus(*names).parallel("test", "en", "fr")
        self.assertEqual(self.first(self.corpus(*names, test="test_2"), "test")[0][0], "test_2.en 0")

    def test_errors(self):
        with self.assertRaisesRegex(FileNotFoundError, "nowhere"):
            ParallelCorpus.from_directory("nowhere")
        with self.assertRaisesRegex(ValueError, "No aligned files in .* such as train.en"):
            self.corpus("train.en", "README.md")
        with self.assertRaisesRegex(ValueError, "train.en' and .*train.en.gz' are for the same lines"):
            self.corpus("train.en", "train.en.gz", "train.fr")
        with self.assertRaisesRegex(ValueError, r"No files for test among \['train', 'val'\].*pass test="):
            self.corpus("train.en", "train.fr", "val.en", "val.fr")
        names = [f"{part}.{language}" for part in ("train", "val", "test") for language in ("en", "fr")]
        with self.assertRaisesRegex(ValueError, r"test must be one of \['test', 'train', 'val'\].*test='2016'"):
            self.corpus(*names, test="2016")
        corpus = self.corpus(*names)
        with self.assertRaisesRegex(ValueError, r"target must be one of \['en', 'fr'\]. Received: target='de'"):
            corpus.parallel("train", "en", "de")
        with self.assertRaisesRegex(ValueError, "source='xx'"):
            corpus.parallel("train", "xx", "en")
        with self.assertRaisesRegex(ValueError, "two languages. Received: 'en' twice"):
            corpus.parallel("train", "en", "en")
        with self.assertRaisesRegex(ValueError, "part='dev'"):
            corpus.parallel("dev", "en", "fr")
        with self.assertRaisesRegex(ValueError, "pivot='ja'"):
            corpus.directions("ja")
