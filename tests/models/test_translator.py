"""The translation model: in training, step by step, and what a search finds with it."""

import inspect
import pathlib
import warnings

import keras
import numpy as np
import tensorflow as tf
from absl.testing import parameterized

from tests.base import TestCase
from tf_moe.models import Perplexity, SmoothedCrossentropy, Translator

V, START, END = 12, 2, 3
SIZES = {
    "vocabulary_size": V, "width": 4, "lstm_units": 6, "num_experts": 4, "expert_hidden": 5, "k": 2,
    "dropout": 0.0, "start": START, "end": END,
}  # fmt: skip
KINDS = {
    "balanced": {"encoder_layers": 2},
    "noisy": {"gate": "noisy_top_k", "lstm_units": 4, "decoder_layers": 3},
    "hierarchical": {"gate": "noisy_top_k", "num_experts": (2, 2), "k": (2, 1), "attention": "additive"},
    "dense": {"num_experts": None},
}


class TranslatorTest(TestCase):
    def model(self, **arguments):
        model = Translator(**{**SIZES, **arguments})
        for weight in model.trainable_weights:  # so that logits differ by more than rounding
            if "thresholds" not in weight.path:
                weight.assign(0.7 * self.normal(*weight.shape))
        return model

    def texts(self, batch=3, times=5):
        """Source ids, and target ids: the start, some words, zeros."""
        source, target = self.rng.integers(4, V, (batch, times)), self.rng.integers(4, V, (batch, times + 1))
        for n in range(1, batch):
            source[n, times - n :], target[n, 2 + n :] = 0, 0
        target[:, 0] = START
        return source.astype("int32"), target.astype("int32")

    def by_steps(self, model, source, target):
        """The logits (B, T, V) and the attention's weights (B, T, S) of single steps."""
        encoded, state = model.encode(tf.constant(source)), model.initial_state(len(source))
        logits, weights = [], []
        for t in range(target.shape[1]):
            found, read, state = model.step(tf.constant(target[:, t]), state, encoded)
            logits.append(found), weights.append(read)
        return tf.stack(logits, 1), tf.stack(weights, 1)

    @parameterized.named_parameters(KINDS.items())
    def test_steps_equal_the_whole(self, arguments):
        model, (source, target) = self.model(**arguments), self.texts()
        whole = model((source, target))
        self.assertEqual((whole.shape, whole.dtype), ((*target.shape, V), tf.float32))
        logits, weights = self.by_steps(model, source, target)
        self.assertAllClose(logits[target != 0], whole[target != 0], rtol=1e-4, atol=1e-5)
        self.assertAllClose(tf.reduce_sum(weights, -1), tf.ones_like(weights[..., 0]))
        self.assertAllEqual(weights.numpy().sum(1)[source == 0], np.zeros(np.sum(source == 0)))

    def test_embedding_begins_as_large_as_asked(self):
        default = np.abs(Translator(**SIZES).embedding.embeddings)
        self.assertLess(default.max(), 1)
        self.assertGreater(default.max(), 0.5)
        config = Translator(**SIZES, embeddings_initializer="zeros").get_config()
        self.assertAllEqual(Translator.from_config(config).embedding.embeddings, np.zeros((V, 4)))

    def test_padding_might_as_well_not_be_there(self):
        model, (source, target) = self.model(), self.texts()
        whole = model((source, target))
        self.assertAllEqual(whole._keras_mask, target != 0)
        self.assertAllEqual(model((source, target[:, :1] * 0 + [START, 4, END, 0]))._keras_mask, [[1, 1, 0, 0]] * 3)
        self.assertAllEqual(model((source, target[:, :1] * 0 + [END, 4, END, 0]))._keras_mask, [[1, 1, 0, 0]] * 3)
        for n in range(3):
            alone = model((source[n : n + 1, source[n] != 0], target[n : n + 1, target[n] != 0]))
            self.assertAllClose(alone[0], whole[n][target[n] != 0], rtol=1e-4, atol=1e-5)

    def test_every_position_has_its_part(self):
        """The last source position reaches the first logits, both directions; a target id only what comes after."""
        model, (source, target) = self.model(num_experts=None), self.texts(batch=1)
        before = model((source, target)).numpy()
        other = source.copy()
        other[0, -1] = 4 + (source[0, -1] - 3) % (V - 4)
        self.assertGreater(np.abs(model((other, target)).numpy() - before)[0, 0].max(), 1e-4)
        other = target.copy()
        other[0, 2] = 4 + (target[0, 2] - 3) % (V - 4)
        change = np.abs(model((source, other)).numpy() - before)[0].max(-1)
        self.assertAllEqual(change[:2], np.zeros(2))
        self.assertGreater(change[2:].min(), 1e-5)

    def test_translate(self):
        """What is found scores what it claims, whoever else is in the batch; greedy is the best id at each step."""
        model, (source, _) = self.model(), self.texts()
        penalties = {"length_penalty": 0.6, "coverage_penalty": 0.2}
        ids, scores = model.translate(source, beam_size=3, max_length=6, **penalties)
        self.assertEqual((ids.shape, scores.shape), ((3, 6), (3,)))
        for n in range(3):
            words = [int(i) for i in ids[n].numpy() if i]
            logits, weights = self.by_steps(model, source[n : n + 1], np.array([[START, *words[:-1]]]))
            log_probs = tf.nn.log_softmax(logits)[0].numpy()
            coverage = np.minimum(weights[0].numpy().sum(0)[source[n] != 0], 1)
            score = sum(log_probs[t, i] for t, i in enumerate(words)) / ((5 + len(words)) / 6) ** 0.6
            self.assertAllClose(scores[n], score + 0.2 * np.log(coverage).sum(), rtol=1e-4)
            alone = model.translate(source[n : n + 1, source[n] != 0], beam_size=3, max_length=6, **penalties)
            self.assertAllEqual(alone[0][0], ids[n])
            self.assertAllClose(alone[1][0], scores[n], rtol=1e-5)
        self.assertEqual(model._search.experimental_get_tracing_count(), 1)

        several, ranked = model.translate(source, beam_size=3, max_length=6, num_best=2, **penalties)
        self.assertAllEqual(several[:, 0], ids)
        self.assertAllClose(ranked[:, 0], scores)
        self.assertAllEqual(ranked[:, 0] > ranked[:, 1], [True] * 3)

        ids, _ = model.translate(source[:1], beam_size=1, max_length=6)
        words = [START]
        while len(words) <= 6 and END not in words:
            logits = model((source[:1], np.array([words])))
            words.append(1 + int(tf.argmax(logits[0, -1, 1:])))
        self.assertAllEqual(ids[0, : len(words) - 1], words[1:])

    def test_sources_of_any_form(self):
        """What word pieces are, ragged, and sources without anything."""
        model, (source, _) = self.model(), self.texts()
        expected, _ = model.translate(source, beam_size=2, max_length=4)
        ragged = tf.RaggedTensor.from_tensor(source, padding=0)
        self.assertAllEqual(model.translate(ragged, beam_size=2, max_length=4)[0], expected)
        ids, scores = model.translate(source[:2, :0], beam_size=2, max_length=4)
        self.assertEqual(ids.shape, (2, 4))
        self.assertTrue(np.all(np.isfinite(scores)))

    def test_learns_to_translate(self):
        """A word for a word, by Keras's own fit: with smoothing, padding, masked metrics, and saved in between."""
        source = np.concatenate([self.rng.integers(4, V, (96, 3)), np.zeros((96, 1))], 1).astype("int32")
        words = np.where(source > 0, (source - 4 + 3) % (V - 4) + 4, 0)
        words[:, 3] = END
        target = np.concatenate([np.full((96, 1), START), words, np.zeros((96, 1))], 1).astype("int32")
        x, y = (source, target[:, :-1]), target[:, 1:]
        model = Translator(**{**SIZES, "encoder_layers": 2, "width": 16, "lstm_units": 32, "expert_hidden": 16})
        model.compile(keras.optimizers.Adam(0.01), SmoothedCrossentropy(0.1), weighted_metrics=[Perplexity()])
        history = model.fit(x, y, epochs=30, batch_size=32, verbose=0).history
        self.assertLess(history["loss"][-1], 0.6 * history["loss"][0])
        self.assertContainsSubset({"encoder_moe/load_cv", "decoder_moe/load_cv"}, history)
        self.assertLess(history["perplexity"][-1], 2.0)
        evaluated = model.evaluate(x, y, return_dict=True, verbose=0)
        log_probs = tf.nn.log_softmax(model(x)).numpy()
        nll = -log_probs[np.arange(96)[:, None], np.arange(5), y][y != 0]
        self.assertAllClose(evaluated["perplexity"], np.exp(nll.mean()), rtol=1e-3)
        ids, _ = model.translate(source[:20], beam_size=2, max_length=6)
        self.assertGreater(np.mean(np.all(ids[:, :5] == y[:20], axis=1)), 0.6)

    @parameterized.named_parameters(
        ("experts", {}, {"filters": "experts"}, 4),
        ("all_layers", {"dtype": "mixed_bfloat16"}, {}, 6),
        ("dense", {"num_experts": None}, {}, 6),
    )
    def test_quantized(self, arguments, options, scales):
        """It translates with the new weights, and is loaded as it was saved, whatever layers there were before."""
        model, (source, _) = self.model(gate="noisy_top_k", **arguments), self.texts()
        model.translate(source, beam_size=2, max_length=5)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have a `quantize` method")
            model.quantize("int8", **options)
        found = [weight for weight in model.weights if weight.name.endswith("_scale")]
        self.assertLen(found, scales)
        for scale in found:
            scale.assign(0.01 * self.rng.random(scale.shape) + 0.01)
        file = pathlib.Path(self.get_temp_dir()) / "model.keras"
        model.save(file)
        again = keras.models.load_model(file)
        self.assertEqual(again.get_config(), model.get_config())
        for ours, want in zip(*(m.translate(source, beam_size=2, max_length=5) for m in (again, model)), strict=True):
            self.assertAllEqual(ours, want)
        self.assertEqual(again.softmax.compute_dtype, "float32")

    def test_frozen_parts_stay_so(self):
        model = self.model(gate="noisy_top_k")
        model.embedding.trainable = model.decoder_moe.gate.trainable = model.decoder_first.attention.trainable = False
        file = pathlib.Path(self.get_temp_dir()) / "model.keras"
        model.save(file)
        again = keras.models.load_model(file)
        paths = [weight.path for weight in model.trainable_weights]
        self.assertNotIn("translator/embedding/embeddings", paths)
        self.assertEqual([weight.path for weight in again.trainable_weights], paths)
        self.assertEqual(again.get_config(), model.get_config())

    def test_files(self):
        """The `.keras` file and the export answer as the model does, the search among what is exported."""
        folder, (source, target) = pathlib.Path(self.get_temp_dir()), self.texts()
        model = self.model(num_experts=None)  # mixtures are saved in tests/saving
        model.save(folder / "model.keras")
        again = keras.models.load_model(folder / "model.keras")
        for argument in set(inspect.signature(Translator).parameters) - {"kwargs"}:
            self.assertTrue(hasattr(again, argument), argument)
            self.assertIn(argument, again.get_config())
        self.assertEqual(again.get_config(), model.get_config())
        self.assertAllEqual(again((source, target)), model((source, target)))

        def translate(ids):
            return model.translate(ids, beam_size=2, max_length=4)

        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("translate", translate, input_signature=[tf.TensorSpec([None, None], tf.int32)])
        archive.write_out(folder / "exported", verbose=False)
        exported = tf.saved_model.load(folder / "exported")
        for part in (source, source[:1, :4]):
            for ours, want in zip(exported.translate(part), translate(part), strict=True):
                self.assertAllClose(ours, want, rtol=1e-5)

    def assert_near(self, found, expected):
        self.assertLess(np.linalg.norm(found - expected), 0.1 * np.linalg.norm(expected))

    @parameterized.parameters("mixed_bfloat16", "mixed_float16")
    def test_half_precision(self, policy):
        exact, (source, target) = self.model(num_experts=None), self.texts()
        model = Translator(**{**SIZES, "num_experts": None}, dtype=policy)
        exact.set_weights([0.5 * w for w in exact.get_weights()])
        model.set_weights(exact.get_weights())
        logits = model((source, target))
        self.assertEqual(logits.dtype, tf.float32)
        self.assert_near(logits[target != 0], exact((source, target))[target != 0])
        model.compile("adam", SmoothedCrossentropy(), run_eagerly=True)
        self.assertTrue(np.isfinite(model.train_on_batch((source, target[:, :-1]), target[:, 1:])))
        found, _ = self.by_steps(model, source, target)
        self.assert_near(found[target != 0], logits[target != 0])

    def test_xla(self):
        """One step of training compiled is that of one that is not."""
        source, target = self.texts()
        models = [self.model(num_experts=None, encoder_layers=2) for _ in range(2)]  # mixtures have their own test
        models[1].set_weights(models[0].get_weights())
        for model, jit in zip(models, (False, True), strict=True):
            model.compile(keras.optimizers.SGD(0.1), SmoothedCrossentropy(), jit_compile=jit, run_eagerly=not jit)
            model.train_on_batch((source, target[:, :-1]), target[:, 1:])
        for ours, want in zip(*(model.get_weights() for model in models), strict=True):
            self.assertAllClose(ours, want, rtol=1e-4, atol=1e-5)

    @parameterized.parameters(
        ({"encoder_layers": 1}, "encoder_layers=1"),
        ({"decoder_layers": 1}, "decoder_layers=1"),
        ({"width": 0}, "width=0"),
        ({"dropout": 2}, "dropout=2"),
        ({"gate": None}, "gate=None"),
        ({"gate": "balanced"}, "gate='balanced'"),
        ({"gate": "expert_choice"}, "gate='expert_choice' choose among all words of a target"),
        ({"num_experts": (2, 2), "k": (1, 1)}, r"num_experts=\(2, 2\)"),
        ({"attention": "dot"}, "attention='dot'"),
        ({"moe": {"expert": lambda: None}}, "have the built-in experts.*'expert'"),
        ({"moe": {"k": 2, "seed": 1}}, "Pass k to Translator itself. Received: moe={'k': 2, 'seed': 1}"),
        ({"start": 0}, "start=0"),
        ({"start": V}, f"under vocabulary_size={V}. Received: start={V}"),
        ({"end": V}, f"end={V}"),
        ({"moe": 3}, "moe=3"),
    )
    def test_bad_arguments(self, arguments, pattern):
        with self.assertRaisesRegex(ValueError, pattern):
            Translator(**{**SIZES, **arguments})

    @parameterized.parameters(
        ({"gate": "noisy_top_k"}, (0.01, 0.01)),
        ({"gate": "strictly_balanced"}, (0.01, 0.01)),
        ({"gate": "bias_balanced"}, (0.0, 0.0)),
        ({"gate": "bias_balanced", "load_weight": 0.2}, (0.0, 0.2)),
        ({"gate": "noisy_top_k", "importance_weight": 0.0}, (0.0, 0.01)),
    )
    def test_balance_losses_are_what_the_gate_needs(self, arguments, weights):
        model = Translator(**{**SIZES, **arguments})
        self.assertEqual((model.decoder_moe.importance_weight, model.decoder_moe.load_weight), weights)
        self.assertEqual((model.get_config()["importance_weight"], model.get_config()["load_weight"]), weights)

    def test_bad_calls(self):
        model, (source, target) = Translator(**{**SIZES, "num_experts": None}), self.texts()
        with self.assertRaisesRegex(ValueError, r"a pair, \(source_ids, target_ids\)"):
            model(source)
        with self.assertRaisesRegex(ValueError, r"target_ids must be integers \(batch, time\).*int32 \(3,\)"):
            model((source, target[:, 0]))
        with self.assertRaisesRegex(ValueError, "source_ids must be integers.*float32"):
            model.translate(source.astype("float32"))
        with self.assertRaisesRegex(ValueError, "target_ids must be integers.*float32"):
            model((source, target.astype("float32")))
        with self.assertRaisesRegex(ValueError, "beam_size=0"):
            model.translate(source, beam_size=0)
