"""What is printed and written of predictions: scores, labels found, and the file of --save_predictions."""
import json

from data.files import UserError, write_atomically
from model.run import percent


def print_scores(results, names):
    """Accuracy of each class, then accuracy and the other metrics of each split."""
    print_class_table(results, names)
    for split, result in results.items():
        recall, segments = result.label_accuracy(len(names) - 1)
        print(f"{split} accuracy: {percent(result.accuracy)} of {result.labels.size} segments; background recall: "
              + (f"{percent(recall)} of {segments}" if segments else "no background segments"))
        print_metrics(split, result, len(names) - 1)


def print_metrics(split, result, background):
    """What `Predictions.metrics` and `references` say, on three lines."""
    metrics = {name: percent(value) for name, value in result.metrics(background).items()}
    references = {name: percent(value) for name, value in result.references(background).items()}
    print(f"{split} event or background: {metrics['event_or_background']}; "
          f"video category: {metrics['video_category']}; "
          f"segment F1: {metrics['segment_f1']}; event F1: {metrics['event_f1']}")
    print(f"{split} mean over videos: segment F1 {metrics['segment_f1_per_video']}; "
          f"event F1 {metrics['event_f1_per_video']}")
    print(f"{split} for reference: always background {references['always_background']}; "
          f"right category in all segments {references['category_everywhere']}")


def print_class_table(results, names):
    """Accuracy and number of segments of each class, for each split."""
    width = max(map(len, names))
    print(" " * width + "".join(f"  {split + ' segments':>14}  {'accuracy':>8}" for split in results))
    for label, name in enumerate(names):
        row = f"{name:{width}}"
        for result in results.values():
            accuracy, segments = result.label_accuracy(label)
            row += f"  {segments:>14}  {percent(accuracy):>8}"
        print(row)


def print_found_classes(result, names):
    """How many videos and segments were given each label, most videos first."""
    found = [(int((result.predicted == label).any(axis=1).sum()), int((result.predicted == label).sum()), name)
             for label, name in enumerate(names)]
    for videos, segments, name in sorted(found, key=lambda row: (-row[0], -row[1])):
        if videos:
            print(f"{name:{max(map(len, names))}}  {videos:>6} videos  {segments:>7} segments")


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
