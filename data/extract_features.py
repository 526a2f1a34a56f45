"""Makes audio_feature.h5 and visual_feature.h5 from video files, as the features of AVE were made.

    python data/extract_features.py --videos clips --output_dir data/own
    python data/extract_features.py --videos clips --output_dir data/own --annotations Annotations.txt

Without annotations the rows are the files in the order of their names, and a video that cannot be used has no row.
With annotations row i is line i, of the file that its YouTube id names, or of the only one that has it as a part of
its name (Title [ID].mp4, ID_000030.mp4). A video that is missing or cannot be used has a row of zeros, whose number is
in the HDF5 attribute rows_without_video. Such videos are listed at the end, and the exit code is 1. Line i of
videos.txt names row i.

Visual: VGG-19's block5_pool of 16 frames a second, averaged. Audio: VGGish of each second (see data/video.py).

OUTPUT_DIR/by_video keeps the features of each video (2 MB a video). So the same command continues a run that was
stopped, and with --overwrite it adds videos that were fixed or are new.
"""
import hashlib
import io
import os
import re
import sys
import unicodedata
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.hdf5 import new_h5  # noqa: E402
from data.video import (FRAMES_OF_A_SEGMENT, VideoError, log_mel_patches, natural_order, read_clip,  # noqa: E402
                        require_packages)
from model.class_names import read_annotations  # noqa: E402
from model.feature_networks import VGG19_WEIGHTS, VGGISH_WEIGHTS, load_networks, random_networks  # noqa: E402
from utils import (OptionParser, UserError, add_overwrite_option, bounded, locked, one_line,  # noqa: E402
                   one_line_errors, progress_bar, refuse_to_overwrite, set_up_device, write_atomically)

SUFFIXES = ".3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split()
READERS = 2      # threads that read videos
LONG_NAME = 200      # bytes of a file name, after which the kept file is named by the checksum


class Video(NamedTuple):
    name: str          # of the file, or the YouTube id
    path: Path         # None if there is no such file


def find_videos(place, annotations=None):
    """The Video of each row, from a folder or one file. Raises UserError if there is none, or two for one line."""
    files = [place]
    if not place.is_file():
        files = sorted((path for path in place.iterdir() if path.suffix.lower() in SUFFIXES and not path.is_dir()
                        and not path.name.startswith(".")), key=natural_order)
    if not files:
        raise UserError(f"--videos {place}: has no video files (names that end in {', '.join(SUFFIXES)})")
    if annotations is None:
        return [Video(path.name, path) for path in files]
    by_id = {}
    for path in files:
        other = by_id.setdefault(one_form(path.stem), path)
        if other != path:
            raise UserError(f"--videos: {other} and {path} are of one YouTube id; remove one")
    ids = {one_form(annotation.video_id) for annotation in annotations}
    longer = files_by_part(ids - by_id.keys(), {name: path for name, path in by_id.items() if name not in ids})
    by_id |= longer
    if longer:
        print(f"--videos: {len(longer)} lines take a file with a longer name: "
              + ", ".join(f"{video_id}: {path.name}" for video_id, path in sorted(longer.items())[:3])
              + ", ..." * (len(longer) > 3), file=sys.stderr)
    left = sorted(set(files) - {by_id.get(video_id) for video_id in ids}, key=natural_order)
    if left:
        print(f"--videos: {len(left)} of {len(files)} files fit no line, or more than one: "
              f"{', '.join(path.name for path in left[:3])}{', ...' * (len(left) > 3)}", file=sys.stderr)
    return [Video(annotation.video_id, by_id.get(one_form(annotation.video_id))) for annotation in annotations]


def one_form(name):
    """A name in the form in which names are compared: file systems differ in how they write accents."""
    return unicodedata.normalize("NFC", name)


def files_by_part(ids, files):
    """{id: the file whose name has the id as a part of its own}, where the id fits one file, and the file one id."""
    fitting = {video_id: [path for name, path in files.items() if video_id in name
                          and re.search(rf"(?<![^\W_]){re.escape(video_id)}(?![^\W_])", name)] for video_id in ids}
    uses = Counter(path for paths in fitting.values() for path in paths)
    return {video_id: paths[0] for video_id, paths in fitting.items() if len(paths) == 1 and uses[paths[0]] == 1}


def read_clips(paths, segments, pad):
    """Yields each path and the Future of its Clip, in their order; threads read the next ones meanwhile."""
    with ThreadPoolExecutor(READERS) as readers:
        coming = deque()
        for path in paths:
            coming.append((path, readers.submit(read_clip, path, segments, pad)))
            if len(coming) > READERS:
                yield coming.popleft()
        while coming:
            yield coming.popleft()


@torch.inference_mode()
def visual_features(network, frames, batch_size, device, progress):
    """uint8 [T, 16, 224, 224, 3] -> float64 [T, 7, 7, 512], the mean of each segment."""
    maps = []
    for batch in torch.from_numpy(frames).flatten(0, 1).split(batch_size):
        maps.append(network(batch.to(device)).cpu().double())
        progress(len(batch))
    return torch.cat(maps).unflatten(0, frames.shape[:2]).mean(dim=1).numpy()


@torch.inference_mode()
def audio_features(network, clip, segments, device):
    """float64 [T, 128] of the sound of a Clip; zeros without sound."""
    if clip.sound is None:
        return np.zeros((segments, 128))
    patches = torch.from_numpy(log_mel_patches(clip.sound, clip.rate, segments)).float()
    return network(patches.to(device)).cpu().double().numpy()


def read_kept(kept, name):
    """An array of a kept file: settings, notes, visual or audio. Raises UserError if it cannot be read."""
    try:
        with np.load(kept) as arrays:
            return arrays[name]
    except Exception as error:
        raise UserError(f"{kept}: cannot be read ({one_line(error)}); delete it and start again") from error


def find_kept(args, paths):
    """({path: its kept file}, {path: what features depend on} of those to be made, {path: reason} of the unusable).

    Raises UserError if kept features have other settings, unless --overwrite allows to replace them.
    """
    kept, to_make, failed = {}, {}, {}
    flags = "".join(f" --{name}" for name in ("pad", "random_weights") if getattr(args, name))
    for path in progress_bar(iterable=paths, desc="comparing with what is kept", unit="file", leave=False, delay=1):
        try:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            failed[path] = f"cannot be read ({one_line(error.strerror or error)})"
        if not path.name.isprintable() and not args.annotations:
            failed[path] = "has a name that a list of names cannot hold; rename it"
        if path in failed:
            print(f"{ascii(path.name)}: not used: {failed[path]}", file=sys.stderr)
            continue
        name = path.name if len(os.fsencode(path.name)) <= LONG_NAME else digest[:16]
        kept[path] = args.output_dir / "by_video" / f"{name}.npz"
        settings = f"--segments {args.segments} --dtype {args.dtype}{flags} of a file with SHA-256 {digest}"
        before = str(read_kept(kept[path], "settings")) if kept[path].exists() else None
        if before not in (None, settings) and not args.overwrite:
            raise UserError(f"{kept[path]}: was made with {before}, this run has {settings}; choose another "
                            "--output_dir, delete it, or replace it with --overwrite")
        if before != settings:
            to_make[path] = settings
    return kept, to_make, failed


def extract(args, paths, device):
    """Makes the kept file of each video file; returns ({path: kept file}, {path: reason} of the unusable)."""
    kept, settings, failed = find_kept(args, paths)
    if not settings:
        return kept, failed
    networks = random_networks() if args.random_weights else load_networks(args.vgg19_weights, args.vggish_weights)
    vgg19, vggish = [network.to(device).eval() for network in networks]
    torch.backends.cudnn.deterministic = True      # a continued run must end in the same bits
    frames = args.segments * FRAMES_OF_A_SEGMENT
    with progress_bar(total=len(settings) * frames, desc="extracting", unit="frame") as bar:
        for path, future in read_clips(settings, args.segments, args.pad):
            try:
                clip = future.result()
            except VideoError as error:
                failed[path] = error
                bar.update(frames)
                bar.write(f"{path.name}: not used: {error}", file=sys.stderr)
                continue
            content = io.BytesIO()
            np.savez(content, settings=settings[path], notes=np.array(clip.notes, dtype=str),
                     visual=visual_features(vgg19, clip.frames, args.batch_size, device, bar.update).astype(args.dtype),
                     audio=audio_features(vggish, clip, args.segments, device).astype(args.dtype))
            write_atomically(kept[path], content.getvalue())
    return kept, failed


def stack(args, videos, outputs, kept, failed):
    """Writes outputs, the feature files and the list of rows, from the kept files; rows of failed videos are zeros."""
    without_video = [row for row, video in enumerate(videos) if video.path in failed]
    maps, embeddings, names = outputs
    with new_h5(maps, (len(videos), args.segments, 7, 7, 512), args.dtype) as visual, \
         new_h5(embeddings, (len(videos), args.segments, 128), args.dtype) as audio:
        for dataset in (visual, audio):
            if args.random_weights:
                dataset.attrs["random_weights"] = True
            if without_video:
                dataset.attrs["rows_without_video"] = np.int32(without_video)      # of 64 kB at most
        for row, video in enumerate(videos):
            if video.path in failed:
                visual[row] = audio[row] = 0
                continue
            visual[row], audio[row] = (read_kept(kept[video.path], name) for name in ("visual", "audio"))
            for note in read_kept(kept[video.path], "notes"):
                print(f"{video.name}: {note}", file=sys.stderr)
    write_atomically(names, "".join(f"{video.name}\n" for video in videos))
    print(f"{', '.join(map(str, outputs))}: {len(videos)} rows")


def options():
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("--videos", type=Path, required=True, metavar="DIR", help="folder of video files, or one file")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="where the feature files go")
    add("--annotations", type=Path, metavar="FILE",
        help="Annotations.txt: row i is line i, of the file ID.mp4 or Title [ID].mp4 (or another kind of video)")
    add("--segments", type=bounded(int, 1, 1000), default=10, metavar="N",
        help="segments of a video, a second each (default: %(default)s)")
    add("--pad", action="store_true", help="fill short clips with their last frame and silence, do not refuse them")
    add("--dtype", choices=["float64", "float32", "float16"], default="float64",
        help="of the features (default: %(default)s, as published)")
    for option, weights in (("--vgg19_weights", VGG19_WEIGHTS), ("--vggish_weights", VGGISH_WEIGHTS)):
        add(option, type=Path, default=weights.default, metavar="FILE", help=f"{weights.what} (default: %(default)s)")
    add("--random_weights", action="store_true", help="run without these files; such features mean nothing")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (default here: %(default)s)")
    add("--batch_size", type=bounded(int, 1), default=16, metavar="N",
        help="frames that VGG-19 sees at once (default: %(default)s)")
    add_overwrite_option(parser)
    return parser.parse_args()


def main():
    args = options()
    require_packages()
    device = set_up_device(args.device)
    videos = find_videos(args.videos, args.annotations and read_annotations(args.annotations))
    (args.output_dir / "by_video").mkdir(parents=True, exist_ok=True)
    with locked(args.output_dir / "extraction.lock"):
        outputs = [args.output_dir / name for name in ("visual_feature.h5", "audio_feature.h5", "videos.txt")]
        refuse_to_overwrite(outputs, args.overwrite)
        if args.random_weights:
            print("WARNING: --random_weights: these features mean nothing", file=sys.stderr)
        kept, failed = extract(args, dict.fromkeys(video.path for video in videos if video.path), device)
        failed[None] = "is missing"
        used = [video for video in videos if video.path not in failed]
        if used:
            stack(args, videos if args.annotations else used, outputs, kept, failed)
    if len(used) < len(videos):
        where = "their rows are zeros" if args.annotations else "they have no row"
        print(f"{len(videos) - len(used)} of {len(videos)} videos could not be used; "
              f"{where if used else 'no file was written'}:", file=sys.stderr)
        for row, video in enumerate(videos):
            if video.path in failed:
                at = f"row {row}, " if args.annotations else ""
                print(f"  {at}{video.name}: {failed[video.path]}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    with one_line_errors():
        main()
