"""Classifies sounds with a mixture of experts over the frames of a spectrogram, beside dense layers in its place.

After a convolution over time each frame goes to the experts that the gate picks for it, and what they say is averaged
over the clip. Clips have different lengths: frames of padding are masked, and reach no expert. Training, the dense twin
of equal multiply-adds and the tables are those of `images.py`, from `comparing.py` beside it.

Without arguments the sounds are generated, so that the truth is known: tones, sweeps, bands of hiss and pulses, each at
one of several pitches, in noise. Which class a pitch means is drawn by lot, for each kind of sound another, and has no
pattern: what a network can remember of it is what its capacity is worth. With `--data`, a directory with a folder of
16-bit WAV files for each class.

    python examples/audio.py
    python examples/audio.py --data speech_commands --seconds 1
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from common import positive
from comparing import (
    Data,
    add_common_arguments,
    check_folders,
    compare,
    middles,
    show_comparison,
    show_experts,
    split,
    verdict,
)

RATE = 8000  # samples a second of the generated sounds
NUM_CLASSES = 8
KINDS = ["tone", "sweep", "hiss", "pulses"]


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    number = {"type": positive, "metavar": "N"}
    parser.add_argument("--data", metavar="DIR", type=Path, help="a folder for each class (default: generated sounds)")
    parser.add_argument("--seconds", default=4, help="of --data; longer clips are cut (default: %(default)s)", **number)
    parser.add_argument("--clips", default=10_000, help="generated (default: %(default)s)", **number)
    parser.add_argument("--pitches", default=40, help="of each kind of sound (default: %(default)s)", **number)
    parser.add_argument(
        "--width", default=16, help="of convolution and experts' output (default: %(default)s)", **number
    )
    add_common_arguments(parser, experts=8, hidden=16, epochs=15, learning_rate=2e-2)
    options = parser.parse_args(arguments)
    if options.smoke:
        options.clips, options.width, options.hidden = 200, 8, 8
        options.seeds, options.epochs = 1, 1
    return options


class Truth(NamedTuple):
    """Groups of clips to tell experts apart by: the number of each clip's group, and the names of all groups."""

    groups: np.ndarray
    names: list[str]


def generate(options: argparse.Namespace) -> tuple[list[np.ndarray], np.ndarray, dict[str, Truth]]:
    """Clips of a quarter to half a second, the class of each, and what sound it is, all from one seed."""
    if options.pitches < NUM_CLASSES:
        raise ValueError(f"--pitches must be at least {NUM_CLASSES}, one a class. Received: {options.pitches}.")
    rng = np.random.default_rng(0)
    classes = np.stack([rng.permutation(options.pitches) % NUM_CLASSES for _ in KINDS])
    kinds, pitches = rng.integers(len(KINDS), size=options.clips), rng.integers(options.pitches, size=options.clips)
    hertz = 300 * 10 ** (np.arange(options.pitches) / options.pitches)
    clips = [sound(KINDS[kind], hertz[pitch], rng) for kind, pitch in zip(kinds, pitches, strict=True)]
    names = [f"{pitch:.0f} Hz" for pitch in hertz]
    return clips, classes[kinds, pitches], {"kind of sound": Truth(kinds, KINDS), "pitch": Truth(pitches, names)}


def sound(kind: str, hertz: float, rng: np.random.Generator) -> np.ndarray:
    """One clip of a kind at a pitch, with white noise 0 to 12 dB under it."""
    time = np.arange(rng.integers(RATE // 4, RATE // 2)) / RATE + rng.uniform()
    if kind == "tone":  # with two overtones, where the rate has room for them
        wave = sum(np.sin(2 * np.pi * n * hertz * time) / n for n in (1, 2, 3) if n * hertz < RATE / 2)
    elif kind == "sweep":  # from a fifth below to a fifth above, eight times a second
        instant = hertz * 1.5 ** (2 * (8 * time % 1) - 1)
        wave = np.sin(2 * np.pi * np.cumsum(instant) / RATE)
    elif kind == "hiss":  # a narrow band of noise
        spectrum = np.fft.rfft(rng.standard_normal(len(time)))
        frequencies = np.fft.rfftfreq(len(time), 1 / RATE)
        wave = np.fft.irfft(spectrum * np.exp(-(((frequencies / hertz - 1) / 0.05) ** 2)), len(time))
    else:  # twelve pulses a second of a pure tone
        wave = np.sin(2 * np.pi * hertz * time) * (12 * time % 1 < 0.5)
    noise = rng.standard_normal(len(time)) * 10 ** (-rng.uniform(0, 12) / 20)
    return (wave / np.std(wave) + noise).astype("float32")


def load_wavs(directory: Path, seconds: int) -> tuple[list[np.ndarray], np.ndarray, list[str], int]:
    """All clips, the number of each one's class, the names of the classes, and the one rate of all files."""
    folders = check_folders(directory)
    clips, labels, rates = [], [], {}
    for number, folder in enumerate(folders):
        for path in sorted(folder.glob("**/*.[wW][aA][vV]")):
            try:
                audio, rate = tf.audio.decode_wav(path.read_bytes())
            except tf.errors.InvalidArgumentError as error:
                raise ValueError(f"Not a 16-bit WAV file: {str(path)!r}. {error.message}") from error
            clip = audio.numpy().mean(axis=1)[: seconds * int(rate)]
            if not len(clip):
                raise ValueError(f"A WAV file without a sample: {str(path)!r}.")
            rates.setdefault(int(rate), path)
            clips.append(clip)
            labels.append(number)
    if len(rates) > 1:
        found = ", ".join(f"{rate} in {str(path)!r}" for rate, path in rates.items())
        raise ValueError(f"All WAV files must have one sample rate. Received: {found}.")
    if not clips:
        raise ValueError(f"No WAV files in the folders of {str(directory)!r}.")
    return clips, np.array(labels), [folder.name for folder in folders], next(iter(rates))


def log_mel(clips: list[np.ndarray], rate: int, bands: int = 40) -> np.ndarray:
    """Spectrograms `(clips, frames, bands)` of frames of 32 ms, one every 16 ms; zeros after the end of a clip.

    Each is relative to the clip's own level, so that how loud it is does not matter.
    """
    length, step = rate * 32 // 1000, rate * 16 // 1000
    fft_bins = tf.signal.stft(tf.zeros([length]), length, step).shape[-1]
    longest = max(length, *(len(clip) for clip in clips))
    to_mel = tf.signal.linear_to_mel_weight_matrix(bands, fft_bins, rate, 60.0, rate / 2)
    features = []
    for start in range(0, len(clips), 256):
        some = clips[start : start + 256]
        padded = np.stack([np.pad(clip, (0, longest - len(clip))) for clip in some])
        mel = (tf.abs(tf.signal.stft(padded, length, step)) @ to_mel).numpy()
        frames = [1 + max(0, len(clip) - length) // step for clip in some]  # a shorter clip is one, not quite full
        real = (np.arange(mel.shape[1]) < np.array(frames)[:, None])[..., None]
        level = mel.mean(axis=(1, 2), keepdims=True, where=real)
        logs = np.log(mel / np.maximum(level, 1e-9) + 1e-3)  # never quite zero, in silence neither, as padding is
        features.append(np.where(real, logs / 2, 0).astype("float32"))
    return np.concatenate(features)


def build(middle: keras.layers.Layer, data: Data, options: argparse.Namespace) -> keras.Model:
    """A convolution over time, what is to be compared with a residual connection around it, and a softmax."""
    inputs = keras.Input(data.train.inputs.shape[1:])
    mask = keras.ops.any(keras.ops.not_equal(inputs, 0), axis=-1)  # frames of zeros alone are padding
    x = keras.layers.Conv1D(options.width, 5, padding="same", activation="relu")(inputs)
    x = keras.layers.Add()([x, middle(x, mask=mask)])  # (batch, frames, width)
    x = keras.layers.GlobalAveragePooling1D()(x, mask=mask)
    return keras.Model(inputs, keras.layers.Dense(len(data.classes))(x), name=middle.name)


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    try:
        if options.data:
            clips, labels, classes, rate = load_wavs(options.data, options.seconds)
            truths = {"class": Truth(labels, classes)}
        else:
            clips, labels, truths = generate(options)
            classes, rate = [str(n) for n in range(NUM_CLASSES)], RATE
        data = split(log_mel(clips, rate), labels, classes)
        layers = middles(options.width, options)
    except (ValueError, OSError) as error:  # the message says what to do
        sys.exit(f"audio.py: {error}")
    networks = {name: lambda make=make: build(make(), data, options) for name, make in layers.items()}
    runs = compare(networks, data, options)
    print(f"\n{show_comparison(runs, data, 'the longest clip')}\n\n{verdict(runs['moe'], runs['dense'])}\n")
    print("Experts of seed 0 over the test clips:")
    for kind, truth in truths.items():
        groups = split(truth.groups, labels, classes).test.inputs  # of the same clips
        print(f"\n{show_experts(runs['moe'][0].test.load, groups, truth.names, kind)}")


if __name__ == "__main__":
    main()
