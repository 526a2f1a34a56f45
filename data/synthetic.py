"""Writes a synthetic AVE: all eleven published files, with features in which an event needs both sound and picture.

    python data/synthetic.py --output_dir data/synthetic
    python data/synthetic.py --output_dir data/full --annotations FILE --orders DIR --background 178    # real labels

A video has one event category c. Every category has a sound (a sparse pattern of audio channels) and a faint look (of
visual channels). Categories belong to families, which share a hum and a strong look. Each video varies these patterns.

- Event segment: the source of c is heard, and it is seen in a few neighbouring cells that drift slowly over the map.
- Background segment: the source of c is heard but not seen, or seen but silent, or neither (a third each).
- In half of the segments only the hum of c is heard. A second source, from another family, is heard over it, and also
  when the source of c is silent. It is never seen.
- Correlated noise: textures, the same in all videos, whose strength changes slowly over the seconds and over the map.

So neither modality alone tells an event: two categories are heard, and the categories of a family look much alike.
Background videos (for weak training) show one source and contain the sounds of another. Zeros, mean, spread, tail and
correlations are close to real features: of 178 background videos for sound, and of a single clip for the picture.

Also written: Annotations.txt, and true_cells.h5 [videos, segments, height, width], 1 where the source of c is seen.
"""
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.hdf5 import new_h5, write_h5  # noqa: E402
from data.prepare_labels import label_files  # noqa: E402
from dataset import AVE_FILES, SPLITS, find_files, read_order  # noqa: E402
from model.class_names import AVE_CLASSES, Annotation, read_annotations  # noqa: E402
from utils import (OptionParser, add_overwrite_option, bounded, one_line_errors, progress_bar,  # noqa: E402
                   refuse_to_overwrite, write_atomically)

SHARE_OF_FULL_VIDEOS = 0.664       # as in AVE; in the others the event lasts 1 .. T-1 segments, uniformly
CHANNELS_OF_A_PATTERN = 0.12       # share of the channels that make a pattern
MISSING_IN_A_VARIANT = 0.1         # share of a pattern's channels that a video lacks
FAMILIES = 7                       # category i belongs to family i % 7
SOUND, HUM = 5, 2.5                # audio strength of the patterns of a category and of a family, relative to the noise
LOOK, FAMILY_LOOK = 0.3, 2.5       # visual strength of the same, both at the default difficulty
SHARE_OF_DROWNED_SOUNDS = 0.5      # share of the segments in which only the hum of the source is heard
TEXTURES = 16                      # number of noise patterns
BETWEEN_CELLS = 0.8                # correlation of a texture's strength in neighbouring cells
NOISE = 0.275                      # standard deviation of the independent noise; all noise together has 1


class Modality(NamedTuple):
    """Fitted to real features: feature = scale * max(noise + patterns - threshold, 0) ** power."""
    levels: float              # share of the noise variance that is a fixed mean of each channel
    between_seconds: float     # correlation of a texture's strength in consecutive seconds
    threshold: float
    power: float               # above 1: a heavy tail
    scale: float

    def feature(self, latent):
        return self.scale * np.maximum(latent - self.threshold, 0) ** self.power


AUDIO = Modality(levels=0.45, between_seconds=0.92, threshold=1.12, power=1.04, scale=0.1)
VISUAL = Modality(levels=0.15, between_seconds=0.88, threshold=0.41, power=1.7, scale=5.25)


class Clutter:
    """Correlated noise: fixed textures, whose strength differs between videos."""

    def __init__(self, generator, modality, channels, segments, map_size=1):
        self.levels = modality.levels ** 0.5 * generator.standard_normal(channels, np.float32)
        spread = ((1 - modality.levels) / TEXTURES) ** 0.5
        self.textures = spread * generator.standard_normal((TEXTURES, channels), np.float32)
        self.noise = NOISE
        self.over_time = correlating(segments, modality.between_seconds)
        self.over_cells = np.kron(*[correlating(map_size, BETWEEN_CELLS)] * 2)

    def draw(self, generator):
        """[T, cells, channels]"""
        shape = len(self.over_time), len(self.over_cells)
        strength = self.over_cells @ generator.standard_normal((*shape, TEXTURES), np.float32)
        strength = np.tensordot(self.over_time, strength, 1)
        noise = generator.standard_normal((*shape, len(self.levels)), np.float32)
        return self.levels + strength @ self.textures + self.noise * noise


def correlating(number, neighbours):
    """Cholesky factor [number, number] of the correlation matrix neighbours ** distance."""
    distance = abs(np.subtract.outer(np.arange(number), np.arange(number)))
    return np.linalg.cholesky(neighbours ** distance).astype(np.float32)


class World:
    """The patterns of all categories, and videos made of them. Depends on nothing but the arguments."""

    def __init__(self, seed, categories, segments, audio_dim, map_size, visual_dim, difficulty):
        self.seed, self.categories, self.segments, self.map_size = seed, categories, segments, map_size
        self.look_size = max(1, map_size // 3)
        strength = 2 - 2 * difficulty
        generator = np.random.default_rng([seed, 0])
        self.sounds = strength * SOUND * self._patterns(generator, categories, audio_dim)
        self.looks = strength * LOOK * self._patterns(generator, categories, visual_dim)
        self.hums = strength * HUM * self._patterns(generator, FAMILIES, audio_dim)
        self.family_looks = strength * FAMILY_LOOK * self._patterns(generator, FAMILIES, visual_dim)
        self.audio_clutter = Clutter(generator, AUDIO, audio_dim, segments)
        self.visual_clutter = Clutter(generator, VISUAL, visual_dim, segments, map_size)

    def _patterns(self, generator, number, channels):
        """[number, channels]: each with its own sparse set of strong channels."""
        chosen = generator.random((number, channels)) < CHANNELS_OF_A_PATTERN
        return (chosen * generator.uniform(1, 2, chosen.shape)).astype(np.float32)

    def _variant(self, generator, pattern):
        """A video's own variant of a pattern: some of its channels are missing, the rest differ in strength."""
        kept = generator.random(pattern.shape) > MISSING_IN_A_VARIANT
        return pattern * kept * generator.uniform(0.5, 1.5, pattern.shape)

    def video(self, kind, row, category=None, event=None):
        """(audio [T, Da], visual [T, h, w, Dv], true cells [T, h, w]) of one video; it depends on no other video.

        kind: 1, with the event of `category` in the segments where `event` [T] is true; or 2, a background video.
        """
        generator = np.random.default_rng([self.seed, kind, row])
        if kind == 1:
            background_kind = generator.integers(3, size=self.segments)      # 0: sound alone, 1: look alone, 2: neither
            heard, seen = event | (background_kind == 0), event | (background_kind == 1)
        else:
            category = generator.integers(self.categories)
            heard, seen = np.zeros(self.segments, bool), np.ones(self.segments, bool)
        others = [other for other in range(self.categories) if (other - category) % FAMILIES]
        other = generator.choice(others) if others else None      # the second source
        steps = generator.choice([-1, 0, 1], p=[0.1, 0.8, 0.1], size=(self.segments, 2))      # a random walk
        steps[0] = generator.integers(self.map_size - self.look_size + 1, size=2)
        corners = np.clip(np.cumsum(steps, axis=0), 0, self.map_size - self.look_size)
        cells = np.zeros((self.segments, self.map_size, self.map_size), bool)
        for t, (top, left) in enumerate(corners):
            cells[t, top:top + self.look_size, left:left + self.look_size] = seen[t]

        audio = self._audio(generator, category, other, heard)
        visual = self.visual_clutter.draw(generator).reshape(*cells.shape, -1)
        visual[cells] += self._variant(generator, self.looks[category] + self.family_looks[category % FAMILIES])
        return audio, VISUAL.feature(visual), cells

    def _audio(self, generator, category, other, heard):
        audio = self.audio_clutter.draw(generator)[:, 0]
        drowned = generator.random(self.segments) < SHARE_OF_DROWNED_SOUNDS
        patterns = [(self.sounds[category], heard & ~drowned), (self.hums[category % FAMILIES], heard)]
        if other is not None:
            patterns += [(pattern, ~heard | drowned) for pattern in (self.sounds[other], self.hums[other % FAMILIES])]
        for pattern, when in patterns:
            audio += when[:, None] * self._variant(generator, pattern)
        return AUDIO.feature(audio)


def own_annotations(generator, videos, categories, segments):
    """Annotations with AVE's statistics, sorted by category as AVE's are."""
    names = AVE_CLASSES[:-1] if categories == len(AVE_CLASSES) - 1 else [f"category {i}" for i in range(categories)]
    annotations = []
    for row in range(videos):
        full = segments == 1 or generator.random() < SHARE_OF_FULL_VIDEOS
        length = segments if full else int(generator.integers(1, segments))
        start = int(generator.integers(0, segments - length + 1))
        category = row * categories // videos if videos >= categories else row
        annotations.append(Annotation(names[category], f"synthetic{row:05d}", "good", start, start + length))
    return annotations


def write_features(args, suffix, videos, make_video):
    """Streams the features of make_video(row) to HDF5 files. The true cells of all videos, uint8 [videos, T, h, w]."""
    shape = videos, args.segments
    cells = np.empty((*shape, args.map_size, args.map_size), np.uint8)
    with new_h5(args.output_dir / f"audio_feature{suffix}.h5", (*shape, args.audio_dim), args.dtype) as audio, \
         new_h5(args.output_dir / f"visual_feature{suffix}.h5", (*cells.shape, args.visual_dim), args.dtype) as visual:
        for row in progress_bar(iterable=range(videos), desc=f"writing visual_feature{suffix}.h5", unit="video"):
            audio[row], visual[row], cells[row] = make_video(row)
    return cells


def options():
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("data/synthetic"), metavar="DIR", help="(default: %(default)s)")
    add("--difficulty", type=bounded(float, 0, 1), default=0.5, help="0: easy, 1: only clutter (default: %(default)s)")
    add("--seed", type=bounded(int, 0), default=0, help="(default: %(default)s)")
    for split, fewest, videos in (("train", 1, 800), ("val", 1, 100), ("test", 1, 100), ("background", 0, 42)):
        add(f"--{split}", type=bounded(int, fewest, 10**6), default=videos, help="videos (default: %(default)s)")
    add("--annotations", type=Path, metavar="FILE", help="take the labels from this file (with --orders)")
    add("--orders", type=Path, metavar="DIR", help="take the splits from the order files in this folder")
    add("--categories", type=bounded(int, 1, 1000), default=28, help="(default: %(default)s)")
    add("--segments", type=bounded(int, 1, 1000), default=10, help="(default: %(default)s)")
    add("--audio_dim", type=bounded(int, 1, 100000), default=128, help="(default: %(default)s)")
    add("--map_size", type=bounded(int, 1, 100), default=7, help="height and width of the map (default: %(default)s)")
    add("--visual_dim", type=bounded(int, 1, 100000), default=512, help="(default: %(default)s)")
    add("--dtype", choices=["float64", "float32", "float16"], default="float64", help="(default: %(default)s)")
    add_overwrite_option(parser)
    args = parser.parse_args()
    if (args.annotations is None) != (args.orders is None):
        parser.error("--annotations and --orders go together")
    return args


def main():
    args = options()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    names = [file.names[0] for file in AVE_FILES.values()] + ["Annotations.txt", "true_cells.h5"]
    refuse_to_overwrite([args.output_dir / name for name in names], args.overwrite)

    if args.annotations:
        annotations = read_annotations(args.annotations)
        files = find_files(args.orders, [f"order_{split}" for split in SPLITS])
        orders = [read_order(files, name, len(annotations)).numpy() for name in files]
    else:
        generator = np.random.default_rng([args.seed, 3])
        videos = args.train + args.val + args.test
        annotations = own_annotations(generator, videos, args.categories, args.segments)
        parts = np.split(generator.permutation(videos), [args.train, args.train + args.val])
        orders = [np.sort(rows) for rows in parts]

    labels = label_files(annotations, args.segments, args.background)
    one_hot, category = labels["right_labels.h5"], labels["mil_labels.h5"].argmax(axis=-1)
    event = one_hot[:, :, -1] == 0
    for name, array in labels.items():
        write_h5(args.output_dir / name, array)
    for split, rows in zip(SPLITS, orders):
        write_h5(args.output_dir / f"{split}_order.h5", rows, "order")
    write_atomically(args.output_dir / "Annotations.txt",
                     "".join("&".join(map(str, annotation[:5])) + "\n" for annotation in annotations))

    world = World(args.seed, one_hot.shape[-1] - 1, args.segments, args.audio_dim, args.map_size, args.visual_dim,
                  args.difficulty)
    cells = write_features(args, "", len(annotations), lambda row: world.video(1, row, category[row], event[row]))
    write_h5(args.output_dir / "true_cells.h5", cells)
    write_features(args, "_noisy", args.background, lambda row: world.video(2, row))
    print(f"{args.output_dir}: {len(annotations)} videos, and {args.background} background videos")


if __name__ == "__main__":
    with one_line_errors():
        main()
