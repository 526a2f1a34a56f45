"""Makes audio_feature.h5 and visual_feature.h5 from video files, as the features of AVE were made.

    python data/extract_features.py --videos clips --output_dir data/own
    python data/extract_features.py --videos clips --output_dir data/own --annotations Annotations.txt

Without annotations the rows are the files in the order of their names, and a video that cannot be used has no row.
With annotations row i is line i, of the file that is named by its YouTube id. If that file is missing or cannot be
used, the row is zeros, and its number is in the HDF5 attribute rows_without_video. Either way line i of videos.txt
names row i, such videos are listed at the end, and the exit code is 1.

Visual: VGG-19's block5_pool of 16 frames a second, averaged. Audio: VGGish of each second. data/video.py says what is
used of a clip that is longer or shorter than --segments seconds.

OUTPUT_DIR/by_video keeps the features of each video (2 MB a video). So the same command continues a run that was
stopped, and with --overwrite it adds videos that were fixed or are new. Delete the folder if you need neither.
"""
import io
import sys
from collections import deque
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
from utils import (OptionParser, UserError, add_overwrite_option, bounded, one_line, one_line_errors,  # noqa: E402
                   progress_bar, refuse_to_overwrite, set_up_device, write_atomically)

SUFFIXES = set(".3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv"
               .split())
READERS = 2      # threads that read videos


class Video(NamedTuple):
    """What a row is made of."""
    name: str          # the file's, or the YouTube id
    path: Path         # None if there is no such file


def find_videos(place, annotations=None):
    """The Video of each row, from a folder or one file. Raises UserError if there is none, or two for one line."""
    files = [place]
    if not place.is_file():
        files = sorted((path for path in place.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()
                        and not path.name.startswith(".")), key=natural_order)
    if not files:
        raise UserError(f"--videos {place}: has no video files (names that end in {', '.join(sorted(SUFFIXES))})")
    if annotations is None:
        for path in files:
            if not path.name.isprintable():
                raise UserError(f"--videos: {path.name!r} has characters that a list of names cannot hold; rename it")
        return [Video(path.name, path) for path in files]

    by_id = {}
    for path in files:
        if path.stem in by_id:
            raise UserError(f"--videos: {by_id[path.stem]} and {path} are of one YouTube id; remove one")
        by_id[path.stem] = path
    return [Video(annotation.video_id, by_id.get(annotation.video_id)) for annotation in annotations]


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
    """uint8 [T, 16, 224, 224, 3] -> float64 [T, 7, 7, 512]: the mean of the maps of each segment's frames."""
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


# ---------------------------------------------------------------------------- the kept features of one video

def kept_file(args, path):
    """Where the features of a video file are kept."""
    return args.output_dir / "by_video" / f"{path.name}.npz"


def extraction_settings(args, path):
    """What the features of a video file depend on."""
    flags = "".join(f" --{name}" for name in ("pad", "random_weights") if getattr(args, name))
    return f"--segments {args.segments} --dtype {args.dtype}{flags} of a file of {path.stat().st_size} bytes"


def is_kept(args, path):
    """Whether the features of a video file are kept.

    Raises UserError if they were made with other settings, unless --overwrite allows to replace them.
    """
    kept, settings = kept_file(args, path), extraction_settings(args, path)
    if not kept.exists():
        return False
    before = str(read_kept(kept, "settings"))
    if before != settings and not args.overwrite:
        raise UserError(f"{kept}: was made with {before}, this run has {settings}; choose another --output_dir, "
                        "delete it, or replace it with --overwrite")
    return before == settings


def read_kept(kept, name):
    """An array of a kept file: settings, notes, visual or audio. Raises UserError if it cannot be read."""
    try:
        with np.load(kept) as arrays:
            return arrays[name]
    except Exception as error:
        raise UserError(f"{kept}: cannot be read ({one_line(error)}); delete it and start again") from error


# ------------------------------------------------------------------------------------------- all videos

def extract(args, paths, device):
    """Makes the kept file of each video file; returns {path: VideoError} of those that cannot be used."""
    settings = {path: extraction_settings(args, path) for path in paths if not is_kept(args, path)}
    networks = random_networks() if args.random_weights else load_networks(args.vgg19_weights, args.vggish_weights)
    vgg19, vggish = [network.to(device).eval() for network in networks]
    torch.backends.cudnn.deterministic = True      # a continued run must end in the same bits
    (args.output_dir / "by_video").mkdir(parents=True, exist_ok=True)
    failed, frames = {}, args.segments * FRAMES_OF_A_SEGMENT
    with progress_bar(total=len(settings) * frames, desc="extracting", unit="frame") as bar:
        for path, future in read_clips(settings, args.segments, args.pad):
            try:
                clip = future.result()
            except VideoError as error:
                failed[path] = error
                bar.update(frames)
                bar.write(f"{path.name}: not used: {error}")
                continue
            content = io.BytesIO()
            np.savez(content, settings=settings[path], notes=np.array(clip.notes, dtype=str),
                     visual=visual_features(vgg19, clip.frames, args.batch_size, device, bar.update).astype(args.dtype),
                     audio=audio_features(vggish, clip, args.segments, device).astype(args.dtype))
            write_atomically(kept_file(args, path), content.getvalue())
    return failed


def stack(args, videos, outputs, without_video):
    """Writes the feature files, a row for each video, from the kept files, and the list of the rows.

    outputs: paths of visual features, audio features and the list; without_video: rows to be zeros.
    """
    maps, embeddings, names = outputs
    with new_h5(maps, (len(videos), args.segments, 7, 7, 512), args.dtype) as visual, \
         new_h5(embeddings, (len(videos), args.segments, 128), args.dtype) as audio:
        for dataset in (visual, audio):
            if args.random_weights:
                dataset.attrs["random_weights"] = True
            if without_video:
                dataset.attrs["rows_without_video"] = without_video
        for row, video in enumerate(videos):
            if row in without_video:
                visual[row] = audio[row] = 0
                continue
            kept = kept_file(args, video.path)
            visual[row], audio[row] = read_kept(kept, "visual"), read_kept(kept, "audio")
            for note in read_kept(kept, "notes"):
                print(f"{video.name}: {note}", file=sys.stderr)
    write_atomically(names, "".join(f"{video.name}\n" for video in videos))
    print(f"{', '.join(map(str, outputs))}: {len(videos)} rows")


def options():
    parser = OptionParser(__doc__)
    add = parser.add_argument
    add("--videos", type=Path, required=True, metavar="DIR", help="folder of video files, or one file")
    add("--output_dir", type=Path, required=True, metavar="DIR", help="where the feature files go")
    add("--annotations", type=Path, metavar="FILE",
        help="Annotations.txt: row i is line i, of the file ID.mp4 (or another kind of video)")
    add("--segments", type=bounded(int, 1, 1000), default=10, metavar="N",
        help="segments of a video, a second each (default: %(default)s)")
    add("--pad", action="store_true",
        help="fill clips that are too short with their last frame and silence, instead of refusing them")
    add("--dtype", choices=["float64", "float32", "float16"], default="float64",
        help="of the features (default: %(default)s, as published)")
    add("--vgg19_weights", type=Path, default=VGG19_WEIGHTS.default, metavar="FILE",
        help=f"{VGG19_WEIGHTS.what} (default: %(default)s)")
    add("--vggish_weights", type=Path, default=VGGISH_WEIGHTS.default, metavar="FILE",
        help=f"{VGGISH_WEIGHTS.what} (default: %(default)s)")
    add("--random_weights", action="store_true",
        help="run without these files; such features mean nothing, and the HDF5 attribute random_weights says so")
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
    outputs = [args.output_dir / name for name in ("visual_feature.h5", "audio_feature.h5", "videos.txt")]
    refuse_to_overwrite(outputs, args.overwrite)
    if args.random_weights:
        print("WARNING: --random_weights: the networks are untrained, and these features mean nothing", file=sys.stderr)

    failed = extract(args, dict.fromkeys(video.path for video in videos if video.path), device)
    failed[None] = "is missing"
    used = [video for video in videos if video.path not in failed]
    without_video = [row for row, video in enumerate(videos) if video.path in failed]
    if used and args.annotations:
        stack(args, videos, outputs, without_video)
    elif used:
        stack(args, used, outputs, [])
    if without_video:
        where = "no file was written"
        if used:
            where = "their rows are zeros" if args.annotations else "they have no row"
        print(f"{len(without_video)} of {len(videos)} videos could not be used; {where}:", file=sys.stderr)
        for row in without_video:
            at = f"row {row}, " if args.annotations else ""
            print(f"  {at}{videos[row].name}: {failed[videos[row].path]}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    with one_line_errors():
        main()
