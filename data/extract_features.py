"""Makes audio_feature.h5 and visual_feature.h5 from video files, as the features of AVE were made.

    python data/extract_features.py --videos clips --output_dir data/own
    python data/extract_features.py --videos clips --output_dir data/own --annotations Annotations.txt

Without annotations the rows are the files in the order of their names, and a video that cannot be used has no row.
With annotations row i is line i, of the file that its YouTube id names, or of the only one that has it as a part of
its name (Title [ID].mp4, ID_000030.mp4). A video that is missing or unusable has a row of zeros, whose number is in
the HDF5 attribute rows_without_video. Such videos are listed at the end, with exit code 1. videos.txt names the rows.

Visual: VGG-19's block5_pool of 16 frames a second, averaged. Audio: VGGish of each second (see data/video.py).

OUTPUT_DIR/by_video keeps the features of each video (2 MB a video), named by what they depend on. So the same command
continues a run that was stopped, and with --overwrite it adds videos that were fixed or are new.
"""
import hashlib
import io
import re
import sys
import unicodedata
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.hdf5 import new_h5  # noqa: E402
from data.video import VideoError, log_mel_patches, natural_order, read_clip  # noqa: E402
from model.class_names import read_annotations  # noqa: E402
from model.feature_networks import (VGG19_WEIGHTS, VGGISH_WEIGHTS, load_vgg19, load_vggish,  # noqa: E402
                                    random_networks)
from utils import (OptionParser, UserError, add_overwrite_option, bounded, locked, one_line,  # noqa: E402
                   one_line_errors, progress_bar, refuse_to_overwrite, set_up_device, write_atomically)

SUFFIXES = ".3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split()
READERS = 2      # threads that read videos


def find_videos(place, annotations=None):
    """(name, path) of each row's video; without a file the path is None. Raises UserError if no file is a video."""
    files = [place]
    if not place.is_file():
        files = sorted((path for path in place.iterdir() if path.suffix.lower() in SUFFIXES and not path.is_dir()
                        and not path.name.startswith(".")), key=natural_order)
    if not files:
        raise UserError(f"--videos {place}: has no video files (names that end in {', '.join(SUFFIXES)})")
    if annotations is None:
        return [(path.name if path.name.isprintable() else ascii(path.name), path) for path in files]
    by_id = {}
    for path in files:
        other = by_id.setdefault(unicodedata.normalize("NFC", path.stem), path)      # the form of the annotations
        if other != path:
            raise UserError(f"--videos: {other} and {path} are of one YouTube id; remove one")
    ids = {annotation.video_id for annotation in annotations}
    by_id |= files_by_part(ids - by_id.keys(), {name: path for name, path in by_id.items() if name not in ids})
    used = {by_id.get(video_id) for video_id in ids}
    left = [path.name for path in files if path not in used]
    if left:
        print(f"--videos: {len(left)} of {len(files)} files are not used, as no line is theirs alone: "
              f"{', '.join(left[:3])}{', ...' * (len(left) > 3)}", file=sys.stderr)
    return [(annotation.video_id, by_id.get(annotation.video_id)) for annotation in annotations]


def files_by_part(ids, files):
    """{id: the file whose name has the id as a part of its own}, where the id fits one file, and the file one id."""
    fitting = {video_id: [path for name, path in files.items() if video_id in name
                          and re.search(rf"(?<![^\W_]){re.escape(video_id)}(?![^\W_])", name)] for video_id in ids}
    uses = Counter(path for paths in fitting.values() for path in paths)
    return {video_id: paths[0] for video_id, paths in fitting.items() if len(paths) == 1 and uses[paths[0]] == 1}


def read_ahead(args, paths):
    """Yields each path and the Future of read_video, in their order; threads read the next ones meanwhile."""
    with ThreadPoolExecutor(READERS) as readers:
        coming = deque()
        for path in paths:
            coming.append((path, readers.submit(read_video, args, path)))
            if len(coming) > READERS:
                yield coming.popleft()
        yield from coming


def read_video(args, path):
    """(kept file of a video, its Clip, or None if this file exists). Raises VideoError or OSError if it is unusable."""
    with open(path, "rb") as file:
        depends_on = [hashlib.file_digest(file, "sha256").hexdigest(), str(args.segments), args.dtype]
    depends_on += [name for name in ("pad", "random_weights") if getattr(args, name)]
    kept = args.output_dir / "by_video" / f"{'_'.join(depends_on)}.npz"
    return kept, None if kept.exists() else read_clip(path, args.segments, args.pad)


@torch.inference_mode()
def visual_features(network, frames, batch_size, device):
    """uint8 [T, 16, 224, 224, 3] -> float64 [T, 7, 7, 512], the mean of each segment."""
    batches = torch.from_numpy(frames).flatten(0, 1).split(batch_size)
    maps = torch.cat([network(batch.to(device)).cpu().double() for batch in batches])
    return maps.unflatten(0, frames.shape[:2]).mean(dim=1).numpy()


@torch.inference_mode()
def audio_features(network, clip, device):
    """float64 [T, 128] of the sound of a Clip; zeros without sound."""
    if clip.sound is None:
        return np.zeros((len(clip.frames), 128))
    patches = torch.from_numpy(log_mel_patches(clip.sound, clip.rate, len(clip.frames))).float()
    return network(patches.to(device)).cpu().double().numpy()


def extract(args, paths, device):
    """Makes the kept file of each video file; returns ({path: kept file}, {path: reason} of the unusable)."""
    kept, failed = {}, {}
    if args.random_weights:
        networks = random_networks()
    else:
        networks = load_vgg19(args.vgg19_weights), load_vggish(args.vggish_weights)
    vgg19, vggish = [network.to(device).eval() for network in networks]
    torch.backends.cudnn.deterministic = True      # a continued run must end in the same bits
    with progress_bar(total=len(paths), desc="extracting", unit="video") as bar:
        for path, future in read_ahead(args, paths):
            try:
                kept[path], clip = future.result()
            except (VideoError, OSError) as error:
                clip, failed[path] = None, error
                bar.write(f"{path.name}: not used: {error}", file=sys.stderr)
            if clip:
                content = io.BytesIO()
                np.savez(content, notes=np.array(clip.notes, dtype=str),
                         visual=visual_features(vgg19, clip.frames, args.batch_size, device).astype(args.dtype),
                         audio=audio_features(vggish, clip, device).astype(args.dtype))
                write_atomically(kept[path], content.getvalue())
            bar.update()
    return kept, failed


def stack(args, videos, outputs, kept):
    """Writes outputs, the feature files and the list of rows, from the kept files; rows of other videos are zeros."""
    without_video = [row for row, (_, path) in enumerate(videos) if path not in kept]
    maps, embeddings, names = outputs
    with new_h5(maps, (len(videos), args.segments, 7, 7, 512), args.dtype) as visual, \
         new_h5(embeddings, (len(videos), args.segments, 128), args.dtype) as audio:
        for dataset in (visual, audio):
            if args.random_weights:
                dataset.attrs["random_weights"] = True
            if without_video:
                dataset.attrs["rows_without_video"] = np.int32(without_video)      # of 64 kB at most
        for row, (name, path) in enumerate(videos):
            if path not in kept:
                visual[row] = audio[row] = 0
                continue
            try:
                with np.load(kept[path]) as arrays:
                    visual[row], audio[row], notes = arrays["visual"], arrays["audio"], arrays["notes"]
            except Exception as error:      # a damaged file raises nearly any of them
                raise UserError(f"{kept[path]}: is damaged ({one_line(error)}); delete it and start again") from error
            for note in notes:
                print(f"{name}: {note}", file=sys.stderr)
    write_atomically(names, "".join(f"{name}\n" for name, _ in videos))
    print(f"{', '.join(map(str, outputs))}: {len(videos)} rows")


def options():
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("--videos", type=Path, required=True, metavar="DIR", help="folder of video files, or one file")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="where the feature files go")
    add("--annotations", type=Path, metavar="FILE", help="Annotations.txt: row i is the video that line i names")
    add("--segments", type=bounded(int, 1, 1000), default=10, metavar="N", help="seconds to use (default: %(default)s)")
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
    device = set_up_device(args.device)
    videos = find_videos(args.videos, args.annotations and read_annotations(args.annotations))
    (args.output_dir / "by_video").mkdir(parents=True, exist_ok=True)
    with locked(args.output_dir / "extraction.lock"):
        outputs = [args.output_dir / name for name in ("visual_feature.h5", "audio_feature.h5", "videos.txt")]
        refuse_to_overwrite(outputs, args.overwrite)
        if args.random_weights:
            print("WARNING: --random_weights: these features mean nothing", file=sys.stderr)
        kept, failed = extract(args, dict.fromkeys(path for _, path in videos if path), device)
        failed[None] = "is missing"
        used = [(name, path) for name, path in videos if path in kept]
        if used:
            stack(args, videos if args.annotations else used, outputs, kept)
    if len(used) < len(videos):
        where = "their rows are zeros" if args.annotations else "they have no row"
        print(f"{len(videos) - len(used)} of {len(videos)} videos could not be used; "
              f"{where if used else 'no file was written'}:", file=sys.stderr)
        for name, path in videos:
            if path in failed:
                print(f"  {name}: {failed[path]}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    with one_line_errors():
        main()
