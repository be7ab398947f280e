import re
from html.parser import HTMLParser
from pathlib import Path

import keras
import numpy as np

from tests.base import TestCase
from tf_moe.analysis import ExpertMonitor, Label, measure_all, write_report
from tf_moe.analysis.co_activation import CoActivationTally
from tf_moe.analysis.observer import Observer, tally
from tf_moe.analysis.specialisation import SpecialisationTally
from tf_moe.analysis.stability import StabilityTally
from tf_moe.analysis.top_inputs import TopTally
from tf_moe.analysis.usage import UsageTally
from tf_moe.layers import SparseMoE


class Page(HTMLParser):
    """Texts of a page by tag; raises where a tag is not closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.ids, self.links, self._open = {}, [], [], []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[key] for key in ("href", "xlink:href", "src") if key in attrs]
        if tag != "meta":
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, tag

    def handle_data(self, data):
        for tag in set(self._open):
            self.texts[tag][-1] += data


class ReportTest(TestCase):
    def model(self, mask_zero=True):
        layers = [
            keras.layers.Embedding(12, 6, mask_zero=mask_zero),
            SparseMoE(9, 3, k=2, capacity_factor=1.0, name="first"),
            SparseMoE((2, 3), 3, k=(1, 1), name="second"),
        ]
        model = keras.Sequential([keras.Input((None,), dtype="int32"), *layers])
        for layer in layers[1:]:
            for weight in layer.gate.weights:
                if weight.name == "kernel":
                    weight.assign(self.normal(*weight.shape))
        return model

    def test_one_pass_and_its_page(self):
        model = self.model()
        batches = [self.rng.integers(0, 12, (7, 5)) for _ in range(2)]
        labels = {"odd": Label(lambda ids: ids % 2, ("even", "odd & more")), "row": Label(lambda ids: ids[:, 0])}
        found = measure_all(model, iter(batches), labels, ids_of=lambda ids: ids, tops=3)
        self.assertEqual(list(found), ["first", "second"])
        self.assertIsNone(found["second"].co_activation)
        # Against the parts, which have tests of their own; one observer, since each traces the model.
        observer = Observer(model)

        def alone(layer, new):
            return tally(observer, iter(batches), new, [layer])[layer]

        first = found["first"]
        self.assertAllEqual(first.usage.load, alone("first", UsageTally).result().load)
        self.assertAllEqual(first.co_activation.counts, alone("first", CoActivationTally).result().counts)
        expected = alone("second", lambda layer: SpecialisationTally(layer.name, labels)).result(100, 0)
        self.assertEqual(found["second"].specialisation["row"][:4], expected["row"][:4])
        tops = alone("first", lambda layer: TopTally(layer, 3, lambda ids: ids)).result()
        self.assertEqual([[one.gate for one in top] for top in first.tops], [[one.gate for one in top] for top in tops])
        with self.assertRaisesRegex(ValueError, r"calls \['first', 'second'\]. Received: layer='third'"):
            alone("third", UsageTally)
        same = StabilityTally(9)
        for batch in batches:
            decisions = observer(batch)["first"]
            same.add(decisions, decisions, len(batch))
        self.check_page(found, {"first": same.result(0, 0)})

    def test_labels_from_elsewhere(self):
        """A label is asked once for each batch, not by every layer, also of a batch that comes again."""
        batch, numbers = self.rng.integers(1, 12, (4, 5)), iter(range(100))
        labels = {"number": Label(lambda ids: np.full(len(ids), next(numbers)))}
        asked = []
        found = measure_all(self.model(), [batch] * 3, labels, ids_of=lambda ids: asked.append(1) or ids, resamples=0)
        for one in found.values():
            self.assertAllEqual(one.specialisation["number"].values, [0, 1, 2])
        self.assertLen(asked, 3)

    def check_page(self, found, stability):
        file = Path(self.get_temp_dir()) / "report.html"
        words = np.array(["", *["the", "</script>"] * 5, "k"])  # so common that some expert has it among its tops
        history = ExpertMonitor([])
        history.steps, history.usage = [5, 1500], {"second": [found["second"].usage] * 2}
        write_report(file, found, lambda ids: words[ids], "<T>", stability, history, context=2)
        text = file.read_text(encoding="utf-8")
        page = Page(text)
        self.assertEqual(page.texts["h1"], ["<T>"])
        self.assertEqual(page.texts["h2"], ["Layer first", "Layer second", "What the words mean"])
        self.assertLen(set(page.ids), len(page.ids))
        self.assertLessEqual({link[1:] for link in page.links if link[0] == "#"}, set(page.ids))
        # It opens offline: nothing is loaded, and nothing runs.
        self.assertEqual({link.split(",")[0] for link in page.links if link[0] != "#"}, {"data:image/png;base64"})
        self.assertNotRegex(text, "<script|@import|url[(](?!#)")
        self.assertEqual(text.count("from step 5 to step 1,500"), 1)
        self.assertIn("1,500", page.texts["text"])
        usage = found["first"].usage
        use = page.texts["p"][1]
        self.assertIn(f"{usage.positions} positions went to 2 of 9 experts each", use)
        self.assertIn(f"{usage.dropped} choices found no room", use)
        self.assertIn("1 × 1 of 2 × 3 experts", " ".join(page.texts["p"]))
        dead = usage.dead()
        self.assertIn("No expert is dead" if not len(dead) else ", ".join(map(str, dead)), use)
        busiest = [f"Expert {n}:" for n in np.argsort(-usage.load, kind="stable") if usage.load[n]]
        self.assertEqual([re.match("Expert .*?:", text)[0] for text in page.texts["h4"]][: len(busiest)], busiest)
        rows = dict(re.findall(r'<th scope="row" class=text>(.*?)</th>(.*?)</tr>', text))
        self.assertIn(f"{found['second'].specialisation['odd'].information:.3f}", text)
        self.assertIn("1.000", rows["positions with the same experts"])
        self.assertIn("</script>", " ".join(page.texts["td"]))
        self.assertIn("odd &amp; more", text)
        short = Path(self.get_temp_dir()) / "short.html"
        write_report(short, {"second": found["second"]}, experts=0)
        self.assertNotIn("Experts one by one", short.read_text(encoding="utf-8"))

    def test_wrong(self):
        with self.assertRaisesRegex(ValueError, "a layer or more"):
            write_report("a.html", {})
        with self.assertRaisesRegex(TypeError, "findings=3"):
            write_report("a.html", 3)
        with self.assertRaisesRegex(TypeError, "history=3"):
            write_report("a.html", {"moe": None}, history=3)
        with self.assertRaisesRegex(TypeError, "title=3"):
            write_report("a.html", {}, title=3)
