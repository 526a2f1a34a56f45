"""The file of --save_predictions: label and probability of each segment, as JSON."""
import json

from data.files import UserError, write_atomically


def check_predictions_path(path, checkpoint_path):
    """Raises UserError, before any work, where predictions cannot be written or would replace what they must not."""
    if path is None:
        return
    if not path.parent.is_dir():
        raise UserError(f"--save_predictions {path}: there is no folder {path.parent}")
    if path.exists() and (path.suffix != ".json" or not path.is_file() or path.samefile(checkpoint_path)):
        raise UserError(f"--save_predictions {path}: exists already; only a .json file is replaced, "
                        "choose another name")


def save_predictions(path, results, names, ids):
    """JSON: label_names, and for each video its split, row, id (where known), labels and their probabilities."""
    videos = [{
        "split": split or "all",
        "video": int(row),
        **({"id": ids[row]} if ids else {}),
        "labels": labels.tolist(),
        "probabilities": [round(float(p), 6) for p in probabilities],
    } for split, result in results.items()
      for row, labels, probabilities in zip(result.video, result.predicted, result.probability)]
    lines = ",\n".join("  " + json.dumps(video) for video in videos)
    text = f'{{"label_names": {json.dumps(names)},\n "videos": [\n{lines}\n]}}\n'
    write_atomically(path, text)
    print(f"predictions of {len(videos)} videos: {path}")
