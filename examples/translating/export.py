"""What is served: from lines to translations, the word pieces inside."""

import argparse
from pathlib import Path

import keras
import tensorflow as tf

from tf_moe.models import Translator
from tf_moe.text import Pieces


def export(model: Translator, pieces: Pieces, options: argparse.Namespace, directory: Path) -> None:
    """A SavedModel with the function `translate`: lines [N] and, of several, the language to translate into.

    It returns translations [N] and the scores of the search. To load it takes TensorFlow, and tensorflow_text for the
    operations of the word pieces.
    """

    def translate(lines, target_language):
        ids = pieces.encode(lines, target_language).to_tensor()
        ids, scores = model.translate(ids, options.beam, options.longest)
        return pieces.decode(ids), scores

    lines, language = tf.TensorSpec([None], tf.string, "lines"), tf.TensorSpec([], tf.string, "target_language")
    if pieces.languages:
        function = tf.function(translate, [lines, language])
    else:
        function = tf.function(lambda lines: translate(lines, None), [lines])
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("translate", function)
    archive.write_out(str(directory), verbose=False)
