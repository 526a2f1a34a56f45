"""Makes audio_feature.h5 and visual_feature.h5 from video files, as the features of AVE were made.

    python data/extract_features.py --videos clips --output_dir data/own
    python data/extract_features.py --videos clips --output_dir data/own --annotations Annotations.txt

Without annotations the rows are the files by their sorted names, and videos.txt lists them: line i is row i. A video
that cannot be used has no row. With annotations row i is line i, of the file that is named by its YouTube id; a video
that is missing or cannot be used has a row of zeros, and its number stands in the HDF5 attribute rows_without_video.
Either way such videos are listed at the end, and the exit code is 1.

Visual: VGG-19's block5_pool of 16 frames a second, averaged. Audio: VGGish of each second. See data/video.py for which
frames and what sound are taken of a clip that lasts longer or shorter than --segments seconds.

extraction.jsonl has a line for each video, with what was odd about it. A run that was stopped goes on with --resume.
"""
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.annotations import read_annotations  # noqa: E402
from data.files import UserError, refuse_to_overwrite, write_atomically  # noqa: E402
from data.progress import progress_bar  # noqa: E402
from model import vgg19, vggish  # noqa: E402
from model.weights import find_missing  # noqa: E402
from utils import OptionParser, add_overwrite_option, bounded, one_line_errors, select_device  # noqa: E402

PACKAGES = "av==18.1.0 opencv-python-headless==4.14.0.94 resampy==0.4.3 numba==0.68.1"

try:
    from data.log_mel import examples
    from data.row_files import RowFiles, partial
    from data.video import FRAMES_OF_A_SEGMENT, VideoError, read_clip
except ModuleNotFoundError as error:
    print(f"{Path(sys.argv[0]).name}: error: the package {error.name} is missing; pip install {PACKAGES}",
          file=sys.stderr)
    sys.exit(2)

SUFFIXES = set(".3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv"
               .split())

RANDOM_WARNING = "WARNING: --random_weights: the networks are untrained, and these features mean nothing"


class Video(NamedTuple):
    """One row of the files."""
    name: str              # the file's, or the YouTube id
    path: Path             # None where there is no such file


class Prepared(NamedTuple):
    """What the networks are shown of one video."""
    frames: np.ndarray     # uint8 [T, 16, 224, 224, 3]
    examples: np.ndarray   # float64 [T, 96, 64]; None where the video has no sound
    notes: list


# ------------------------------------------------------------------------------------------- which videos

def find_videos(place, annotations=None):
    """The Video of each row, from a folder or one file. Raises UserError where there is none, or two for one line."""
    if place.is_file():
        files = [place]
    elif place.is_dir():
        files = sorted((path for path in place.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()),
                       key=lambda path: path.name)
    else:
        raise UserError(f"--videos {place}: does not exist")
    if not files:
        raise UserError(f"--videos {place}: has no video files (names that end in {', '.join(sorted(SUFFIXES))})")
    if annotations is None:
        for path in files:
            if not path.name.isprintable():
                raise UserError(f"--videos: {path.name!r} has characters in its name that a list of names "
                                "cannot hold; rename it")
        return [Video(path.name, path) for path in files]

    by_id = {}
    for path in files:
        other = by_id.setdefault(path.stem, path)
        if other != path:
            raise UserError(f"--videos {place}: both {other.name} and {path.name} are of one YouTube id; remove one")
    videos = [Video(annotation.video_id, by_id.get(annotation.video_id)) for annotation in annotations]
    if not any(video.path for video in videos):
        raise UserError(f"--videos {place}: no file is named by a YouTube id of the annotations, such as "
                        f"{videos[0].name}.mp4")
    return videos


# ------------------------------------------------------------------------------------------- one video

def prepare(video, segments, pad):
    """Prepared, or the VideoError that tells why not."""
    try:
        if video.path is None:
            raise VideoError("is missing")
        clip = read_clip(video.path, segments, pad)
    except VideoError as error:
        return error
    return Prepared(clip.frames, None if clip.sound is None else examples(clip.sound, clip.rate, segments), clip.notes)


def prepare_ahead(videos, segments, pad):
    """Yields each video and what `prepare` gives, in their order; the next one is prepared meanwhile, by one thread."""
    with ThreadPoolExecutor(1) as reader:
        coming = None
        for video, following in zip(videos, [*videos[1:], None]):
            prepared = (coming or reader.submit(prepare, video, segments, pad)).result()
            coming = following and reader.submit(prepare, following, segments, pad)
            yield video, prepared
            del prepared      # so that two videos are held, not three


@torch.inference_mode()
def visual_features(network, frames, batch_size, device, progress=lambda frames: None):
    """uint8 [T, 16, 224, 224, 3] -> float64 [T, 7, 7, 512]: the mean of the maps of each segment's frames."""
    maps = []
    for batch in torch.from_numpy(frames).flatten(0, 1).split(batch_size):
        maps.append(network(batch.to(device)).cpu().double())
        progress(len(batch))
    return torch.cat(maps).unflatten(0, frames.shape[:2]).mean(dim=1).numpy()


@torch.inference_mode()
def audio_features(network, log_mels, segments, device):
    """float64 [T, 96, 64] or None -> float64 [T, 128]; zeros where there is no sound."""
    if log_mels is None:
        return np.zeros((segments, 128))
    return network(torch.from_numpy(log_mels).float().to(device)).cpu().double().numpy()


# ------------------------------------------------------------------------------------------- networks

def load_networks(args, device):
    """(VGG19, VGGish) on the device, with their published weights or random ones.

    Raises UserError where weight files are missing or wrong.
    """
    if args.random_weights:
        print(RANDOM_WARNING, file=sys.stderr)
        networks = [randomised(vgg19.VGG19()), randomised(vggish.VGGish())]
    else:
        find_missing([(vgg19.WEIGHTS, args.vgg19_weights), (vggish.WEIGHTS, args.vggish_weights)])
        networks = [vgg19.load_vgg19(args.vgg19_weights), vggish.load_vggish(args.vggish_weights)]
    torch.backends.cudnn.deterministic = True      # a run that goes on must end in the same bits
    return [network.to(device).eval() for network in networks]


def randomised(network):
    """The network with weights that keep the size of what passes through, the same each time."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.kaiming_normal_(parameter, nonlinearity="relu", generator=generator)
        else:
            torch.nn.init.zeros_(parameter)
    return network


# ------------------------------------------------------------------------------------------- all videos

def options():
    parser = OptionParser(__doc__)
    parser.add_argument("--videos", type=Path, required=True, metavar="DIR", help="folder of video files, or one file")
    parser.add_argument("--output_dir", type=Path, required=True, metavar="DIR", help="where the feature files go")
    parser.add_argument("--annotations", type=Path, metavar="FILE",
                        help="Annotations.txt: row i is line i, of the file ID.mp4 (or another kind of video)")
    parser.add_argument("--segments", type=bounded(int, 1, 1000), default=10, metavar="N",
                        help="segments of a video, a second each (default: %(default)s)")
    parser.add_argument("--pad", action="store_true",
                        help="fill clips that are too short with their last frame and silence; otherwise they are "
                             "refused")
    parser.add_argument("--dtype", choices=["float64", "float32", "float16"], default="float64",
                        help="of the features; the published ones are (default: %(default)s)")
    weights = parser.add_argument_group("weights")
    weights.add_argument("--vgg19_weights", type=Path, default=vgg19.WEIGHTS.default, metavar="FILE",
                         help=f"{vgg19.WEIGHTS.what} (default: %(default)s)")
    weights.add_argument("--vggish_weights", type=Path, default=vggish.WEIGHTS.default, metavar="FILE",
                         help=f"{vggish.WEIGHTS.what} (default: %(default)s)")
    weights.add_argument("--random_weights", action="store_true",
                         help="run without the files; such features mean nothing, and the HDF5 attribute "
                              "random_weights says so")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu",
                         help="cpu, cuda, cuda:1, ... (default here: %(default)s)")
    machine.add_argument("--batch_size", type=bounded(int, 1), default=16, metavar="N",
                         help="frames that VGG-19 sees at once (default: %(default)s)")
    parser.add_argument("--resume", action="store_true",
                        help="continue the run in --output_dir that was stopped; same options")
    add_overwrite_option(parser)
    parser.set_defaults(precision="fp32")
    return parser.parse_args()


def open_row_files(args, videos):
    """The RowFiles of this run; UserError where others exist already."""
    outputs = {args.output_dir / "visual_feature.h5": ((args.segments, 7, 7, 512), args.dtype),
               args.output_dir / "audio_feature.h5": ((args.segments, 128), args.dtype)}
    log = args.output_dir / "extraction.jsonl"
    if partial(log).exists() and not args.resume:
        if not args.overwrite:
            raise UserError(f"{partial(log)}: a run was stopped here; go on with --resume, or start again with "
                            "--overwrite")
        partial(log).unlink()
    if not partial(log).exists():
        names = [] if args.annotations else [args.output_dir / "videos.txt"]
        refuse_to_overwrite([*outputs, *names, log], args.overwrite)
    names = "segments", "pad", "dtype", "random_weights", "batch_size", "device"
    settings = {name: getattr(args, name) for name in names}
    settings["annotations"] = args.annotations is not None
    settings["videos"] = [[name, path.stat().st_size if path else None] for name, path in videos]
    return RowFiles(outputs, len(videos), log, settings, {"random_weights": True} if args.random_weights else {},
                    fixed_rows=args.annotations is not None)


def extract(args, videos, files, networks, device):
    """Adds the features of all videos that files has not, and says what is odd about a video."""
    done = len(files.entries)
    frames = args.segments * FRAMES_OF_A_SEGMENT
    with progress_bar(total=len(videos) * frames, initial=done * frames, desc="extracting", unit="frame") as bar:
        for video, prepared in prepare_ahead(videos[done:], args.segments, args.pad):
            entry, rows = {"video": video.name, "error": None, "notes": []}, None
            if isinstance(prepared, VideoError):
                entry["error"] = str(prepared)
                bar.update(frames)
                bar.write(f"{video.name}: not used: {prepared}")
            else:
                entry["notes"] = prepared.notes
                rows = (visual_features(networks[0], prepared.frames, args.batch_size, device, bar.update),
                        audio_features(networks[1], prepared.examples, args.segments, device))
                for note in prepared.notes:
                    bar.write(f"{video.name}: {note}")
            files.add(entry, rows)
            del prepared, rows


def main():
    args = options()
    device = select_device(args)
    videos = find_videos(args.videos, args.annotations and read_annotations(args.annotations))
    row_files = open_row_files(args, videos)
    networks = load_networks(args, device)
    args.output_dir.mkdir(parents=True, exist_ok=True)

    with row_files as files:
        try:
            extract(args, videos, files, networks, device)
        except (KeyboardInterrupt, SystemExit):
            print(f"{len(files.entries)} of {len(videos)} videos are done; continue with --resume", file=sys.stderr)
            raise
        failed = [(row, files.entries[row]) for row in files.failed]
        used = [entry["video"] for entry in files.entries if not entry["error"]]
        if used and not args.annotations:
            text = "".join(f"{name}\n" for name in used)
            write_atomically(args.output_dir / "videos.txt", text)
        if used:
            files.finish()
            print(f"{', '.join(map(str, files.layouts))}: {len(videos) if args.annotations else len(used)} rows")
        else:
            files.discard()

    if args.random_weights:
        print(RANDOM_WARNING, file=sys.stderr)
    if failed:
        where = "no file was written"
        if used:
            where = "their rows are zeros" if args.annotations else "they have no row"
        print(f"{len(failed)} of {len(videos)} videos could not be used; {where}:", file=sys.stderr)
        for row, entry in failed:
            print(f"  {f'row {row}, ' if args.annotations else ''}{entry['video']}: {entry['error']}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    with one_line_errors():
        main()
