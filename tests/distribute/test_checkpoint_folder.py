"""What is written: whole or not at all, and files of others stay."""

import pathlib
import resource
from unittest import mock

import keras
from absl.testing import parameterized

from tests.distribute.resuming import EPOCHS, Interrupt, ResumeTestCase
from tf_moe.distribute import Resume, restore_sharded


class CheckpointFolderTest(ResumeTestCase):
    def test_full_disk(self):
        """The checkpoint that could not be written leaves nothing behind, and the one before is whole."""

        class FillDisk(keras.callbacks.Callback):
            """From the fifth batch on no file can have more than 2000 bytes: that of the weights has more."""

            def on_train_batch_end(self, batch, logs=None):
                if batch == 4:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))

        before, model = resource.getrlimit(resource.RLIMIT_FSIZE), self.model(width=300)
        try:
            with self.assertRaisesRegex(OSError, f"could not be written to '{self.directory}'.*once the cause is gone"):
                self.fit(model, FillDisk(), Resume(self.directory, 2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        last = "epoch-0-batch-4"
        files = {f"{last}.data-00000-of-00001", f"{last}.index", "state.json"}
        self.assertEqual({file.name for file in self.directory.iterdir()}, files)
        again = self.model(width=300)
        restore_sharded(self.directory / last, again)
        self.assertEqual(again.optimizer.iterations, 4)
        whole, rest = Interrupt(), Interrupt()
        self.fit(self.model(width=300), whole)
        self.fit(again, rest, Resume(self.directory, 2))
        self.assertEqual(rest.losses, whole.losses[4:])

    def test_a_deletion_that_was_interrupted(self):
        """Of what is left nothing counts, and the training begins anew."""
        self.fit(self.model(), Resume(self.directory, delete_checkpoint=False), epochs=1)
        deleted, unlink = [], pathlib.Path.unlink

        def unlink_one(file, *arguments, **more):
            if file.parent != self.directory:
                return unlink(file, *arguments, **more)
            if deleted:
                raise KeyboardInterrupt
            deleted.append(file.name)
            return unlink(file, *arguments, **more)

        # In an order in which the state would not come first.
        names = sorted(file.name for file in self.directory.iterdir())
        glob = mock.patch.object(pathlib.Path, "glob", lambda folder, _: [folder / name for name in names])
        with glob, mock.patch.object(pathlib.Path, "unlink", unlink_one), self.assertRaises(KeyboardInterrupt):
            self.fit(self.model(), Resume(self.directory), epochs=1)
        self.assertEqual(deleted, ["state.json"])
        whole, again = Interrupt(), Interrupt()
        self.fit(self.model(), whole, epochs=1)
        self.fit(self.model(), again, Resume(self.directory), epochs=1)
        self.assertEqual(again.losses, whole.losses)
        self.assertFalse(self.directory.exists())

    def test_files_of_others_stay(self):
        """Also those whose names begin like its own: those of another callback, a copy that someone kept."""
        others = {
            *(f"epoch-{epoch:02d}.keras" for epoch in range(1, EPOCHS + 1)),
            "epoch-0-batch-2.keras",
            "epoch-0-batch-2.index.bak",
            "epoch-best",
            "epochs",
            "state.json.bak",
        }
        (self.directory / "epoch-best").mkdir(parents=True)
        (self.directory / "epoch-best" / "model.keras").touch()
        for name in others - {"epoch-best"}:
            (self.directory / name).touch()
        saved = keras.callbacks.ModelCheckpoint(self.directory / "epoch-{epoch:02d}.keras")
        self.fit(self.model(), saved, Resume(self.directory, 2))
        self.assertEqual({file.name for file in self.directory.iterdir()}, others)
        self.assertTrue((self.directory / "epoch-best" / "model.keras").exists())

    @parameterized.parameters("gs://bucket/run", pathlib.Path("gs://bucket/run"), "hdfs://host:1/run")
    def test_urls_are_refused(self, url):
        """They would be local folders, gone with the machine."""
        with self.assertRaisesRegex(ValueError, "directory='(gs|hdfs):/.*/run'. Mount the storage"):
            Resume(url)
