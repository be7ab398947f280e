"""The example as a user runs it, on generated sounds and on files of its own; its features, masks, and refusals."""

import re
from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.base import TestCase
from tests.examples.program import EXAMPLES, load, run, table_rows

EXAMPLE = EXAMPLES / "audio.py"


class AudioExampleTest(TestCase):
    def folder(self, name="data"):
        path = Path(self.get_temp_dir()) / self._testMethodName / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def write_wav(self, path, samples, rate=4000):
        self.folder(path.parent.relative_to(self.folder(".")))
        path.write_bytes(tf.audio.encode_wav(np.asarray(samples, "float32"), rate).numpy())

    def write_sounds(self, name, number=10):
        """Stereo clips of other lengths, one of them under a frame: high and low tones."""
        for label, hertz in (("high", 1500), ("low", 200)):
            for i in range(number):
                length = 50 if i == 0 else self.rng.integers(500, 1500)
                wave = np.sin(2 * np.pi * hertz * np.arange(length) / 4000 + self.rng.uniform(0, 6))
                noisy = 0.5 * wave[:, None] + 0.02 * self.rng.standard_normal((length, 2))
                self.write_wav(self.folder(name) / label / f"{i}.wav", noisy)
        return self.folder(name)

    def test_generated_sounds(self):
        out = run(EXAMPLE, "--smoke")
        self.assertEqual(out.returncode, 0, out.stderr)
        moe, dense, wide = table_rows(out.stdout, "moe", "dense", "wide")
        self.assertEqual(moe[2], dense[2])  # multiply-adds
        # 30 frames of 5 x 40 bands x 8, of the mixture's 2 of 8 experts 8x8x8 and its gate's 2 matrices; 8 classes; the
        # wide one has 64 hidden units.
        self.assertEqual(moe[2], f"{30 * (1600 + 2 * 128 + 128) + 64:,}")
        self.assertEqual(wide[2], f"{30 * (1600 + 1024) + 64:,}")
        self.assertIn("One seed does not tell", out.stdout)
        self.assertRegex(out.stdout, r"most for kind of sound \|\n(.*\n)+\n.*most for pitch \|\n")
        self.assertRegex(out.stdout, r"(tone|sweep|hiss|pulses) \(x \d\.\d\)")

    def test_folders_of_wav_files_are_learned(self):
        data = self.write_sounds("data")
        sizes = ["--width", 8, "--hidden", 8, "--batch", 4, "--epochs", 30, "--learning-rate", 0.02, "--seconds", 1]
        out = run(EXAMPLE, "--data", data, "--seeds", 1, *sizes)
        self.assertEqual(out.returncode, 0, out.stderr)
        for row in table_rows(out.stdout, "moe", "dense", "wide"):
            self.assertEqual(row[4], "100.00 ± 0.00 %")
        self.assertRegex(out.stdout, r"(high|low) \(x [12]\.\d\)")

    def test_a_generated_class_follows_from_kind_and_pitch_alone(self):
        audio = load(EXAMPLE)
        options = audio.parse_arguments(["--clips", "300", "--pitches", "10"])
        clips, labels, truths = audio.generate(options)
        kinds, pitches = truths["kind of sound"].groups, truths["pitch"].groups
        again, same_labels, _ = audio.generate(options)
        self.assertAllEqual(labels, same_labels)
        for clip, same in zip(clips, again, strict=True):
            self.assertAllEqual(clip, same)
        self.assertCountEqual(set(labels), range(8))
        self.assertCountEqual(set(kinds), range(4))
        # The loudest frequency of a pure enough sound tells its pitch, and so its class; each kind has its own table.
        tables = {kind: {} for kind in range(4)}
        for clip, label, kind, pitch in zip(clips, labels, kinds, pitches, strict=True):
            if audio.KINDS[kind] in ("tone", "hiss", "pulses"):
                spectrum = np.abs(np.fft.rfft(clip))
                hertz = spectrum.argmax() * 8000 / len(clip)
                self.assertEqual(round(10 * np.log10(hertz / 300)), pitch)
                tables[kind].setdefault(pitch, set()).add(label)
        found = [table for table in tables.values() if table]
        for table in found:
            self.assertCountEqual(table, range(10))
            self.assertTrue(all(len(classes) == 1 for classes in table.values()), table)
        self.assertFalse(any(found[0] == other for other in found[1:]))

    def test_spectrogram(self):
        audio = load(EXAMPLE)
        clip, longer = self.normal(1000), self.normal(3000)
        alone, together = audio.log_mel([clip], 4000), audio.log_mel([clip, longer], 4000)
        frames = 1 + (1000 - 128) // 64
        self.assertEqual(alone.shape, (1, frames, 40))
        self.assertAllClose(together[0, :frames], alone[0], atol=1e-5)
        self.assertAllEqual(together[0, frames:], np.zeros_like(together[0, frames:]))
        self.assertTrue((together[1] != 0).any(axis=-1).all())
        self.assertAllClose(audio.log_mel([0.01 * clip], 4000), alone, atol=1e-4)
        silent = audio.log_mel([0 * clip], 4000)
        self.assertAllClose(silent, np.full_like(silent, np.log(1e-3) / 2), atol=1e-5)
        # The band of a tone by the mel scale: 40 triangles between 60 Hz and 2000.
        mel = lambda hertz: 1127 * np.log(1 + hertz / 700)  # noqa: E731
        tone = np.sin(2 * np.pi * 1200 * np.arange(2000) / 4000).astype("float32")
        band = 41 * (mel(1200) - mel(60)) / (mel(2000) - mel(60)) - 1
        self.assertAllClose(audio.log_mel([tone], 4000)[0].argmax(axis=-1), np.full(30, band), atol=1)

    def test_padding_reaches_no_expert_and_changes_no_answer(self):
        audio = load(EXAMPLE)
        options = audio.parse_arguments(["--smoke"])
        features = audio.log_mel([self.normal(2000), self.normal(4000), self.normal(4000)], 8000)
        frames = [1 + (2000 - 256) // 128, 30, 30]
        data = audio.split(features, np.array([0, 0, 0]), ["only"])
        network = audio.build(audio.middles(options.width, options)["moe"](), data, options)
        answer = load(EXAMPLES / "comparing.py").answer
        load_of = answer(network, data.test._replace(inputs=features, labels=np.zeros(3))).load
        self.assertAllEqual(load_of.sum(axis=1), 2 * np.array(frames))
        short = data.train._replace(inputs=features[:1, : frames[0]])
        unpadded = audio.build(audio.middles(options.width, options)["moe"](), data._replace(train=short), options)
        unpadded.set_weights(network.get_weights())
        self.assertAllClose(unpadded(short.inputs), network(features[:1]), atol=1e-5)

    def test_mistakes_get_a_message_and_no_traceback(self):
        broken, rates, silent = (self.write_sounds(name, number=3) for name in ("broken", "rates", "silent"))
        (broken / "low" / "1.wav").write_bytes(b"RIFF, but not really")
        self.write_wav(rates / "low" / "1.wav", np.zeros((500, 1)), rate=8000)
        self.write_wav(silent / "low" / "1.wav", np.zeros((0, 1)))
        self.folder("empty/a")
        self.folder("empty/b")
        few = self.write_sounds("few", number=2)
        cases = (
            (["--data", "no/such/place"], "No such directory: 'no/such/place'"),
            (["--data", broken / "low"], "a folder for each class, two or more"),
            (["--data", self.folder("empty")], "No WAV files in the folders of '.*empty'"),
            (["--data", few], "Each class needs 3 examples or more.*Received: 2 of 'high'"),
            (["--data", broken], r"Not a 16-bit WAV file: '.*/low/1.wav'"),
            (["--data", rates], r"one sample rate. Received: 4000 in '.*0.wav', 8000 in '.*/low/1.wav'"),
            (["--data", silent], r"without a sample: '.*/low/1.wav'"),
            (["--pitches", 5], "--pitches must be at least 8"),
            (["--k", 9], "k=9"),
        )
        for arguments, pattern in cases:
            out = run(EXAMPLE, "--smoke", *arguments)
            self.assertNotEqual(out.returncode, 0)
            self.assertTrue(re.search(pattern, out.stderr), out.stderr)
