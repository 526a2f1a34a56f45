"""How good the labels of a split's segments are: accuracy, F1, and intervals of means over seeds and videos."""
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass
class Predictions:
    """Labels of a split's segments, true and predicted."""
    video: np.ndarray         # [videos] row in the files
    labels: np.ndarray        # [videos, T] true; None where they are not known
    predicted: np.ndarray     # [videos, T] arg-max of the network's logits
    probability: np.ndarray   # [videos, T] softmax of the logits at the predicted label
    kept_pairs: float = None  # share of all T x T pairs that pruning keeps; None without propagation

    @property
    def accuracy(self):
        """Segment-level accuracy in 0..1: the share of all segments of all videos whose label is right."""
        return float((self.predicted == self.labels).mean())

    @property
    def correct_segments(self):
        """[videos]: how many segments of each video have the right label."""
        return (self.predicted == self.labels).sum(axis=1).tolist()

    def metrics(self, background):
        """Further metrics, each in 0..1; None where there is nothing to count.

        event_or_background: share of segments that are rightly called event or background.
        video_category: share of videos with an event whose category is the most frequent predicted one.
        segment_f1: F1 over all segments; a correct event label is a hit.
        event_f1: F1 over all events, the runs of segments of one category; see `matched_events` for a hit.
        always_background, category_everywhere: for reference, the accuracy of always saying background, and of knowing
        each video's category but localising nothing.
        """
        event, predicted_event = self.labels != background, self.predicted != background
        hits = int((event & (self.predicted == self.labels)).sum())
        true_events = [find_events(labels, background) for labels in self.labels]
        predicted_events = [find_events(labels, background) for labels in self.predicted]
        event_hits = sum(matched_events(true, found) for true, found in zip(true_events, predicted_events))
        categories = [(most_frequent(true[true != background]), most_frequent(labels[labels != background]))
                      for true, labels in zip(self.labels, self.predicted) if (true != background).any()]
        return {
            "event_or_background": float((event == predicted_event).mean()),
            "video_category": float(np.mean([true == found for true, found in categories])) if categories else None,
            "segment_f1": f1(hits, int(event.sum()), int(predicted_event.sum())),
            "event_f1": f1(event_hits, sum(map(len, true_events)), sum(map(len, predicted_events))),
            "always_background": float((~event).mean()),
            "category_everywhere": float((event | ~event.any(axis=1, keepdims=True)).mean()),
        }

    def label_accuracy(self, label):
        """(accuracy on the segments that truly have the label, their number); accuracy is None where there are none."""
        segments = self.labels == label
        count = int(segments.sum())
        return (float((self.predicted[segments] == label).mean()) if count else None), count


def pruning_note(kept_pairs, threshold):
    """What to print if pruning keeps nearly no pairs or nearly all; '' if it does neither, or was asked to."""
    if kept_pairs is None or threshold in (0, 1) or 0.01 <= kept_pairs <= 0.99:
        return ""
    return (f"note: pruning (threshold {threshold}) keeps {percent(kept_pairs)} of all pairs of segments: "
            f"{'nearly no' if kept_pairs < 0.5 else 'nearly every'} pair")


def percent(value):
    """'95.70 %', or '-' for None."""
    return "-" if value is None else f"{100 * value:.2f} %"


def f1(hits, true, predicted):
    """Harmonic mean of hits / true and hits / predicted; None where both are empty."""
    return 2 * hits / (true + predicted) if true + predicted else None


def most_frequent(labels):
    """The most frequent label, the smallest of several; None where there is none."""
    return int(np.bincount(labels).argmax()) if len(labels) else None


def find_events(labels, background):
    """The events (category, start, end) of one video's labels [T]: its longest runs of one category."""
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return [(int(labels[start]), start, end) for start, end in zip(edges, edges[1:]) if labels[start] != background]


def matched_events(true, predicted):
    """How many predicted events overlap a true one of their category with an intersection over union of 0.5 or more.

    No two of them overlap the same one so far, since a video's events of one category do not touch.
    """
    hits = 0
    for category, start, end in predicted:
        for true_category, true_start, true_end in true:
            intersection = min(end, true_end) - max(start, true_start)
            union = (end - start) + (true_end - true_start) - intersection
            hits += category == true_category and 2 * intersection >= union
    return hits


# --------------------------------------------------------------------------------------------- several seeds

@lru_cache(maxsize=2)
def resampling_counts(seeds, videos, resamples=10_000):
    """How often each resample draws each seed [resamples, seeds] and, independently, each video [resamples, videos]."""
    generator = np.random.default_rng(0)
    return tuple(generator.multinomial(n, np.full(n, 1 / n), size=resamples) for n in (seeds, videos))


def bootstrap_means(values):
    """The mean of each resample of values [seeds, videos]."""
    seed_counts, video_counts = resampling_counts(*values.shape)
    return ((seed_counts @ values) * video_counts).sum(axis=1) / values.size


def bootstrap_interval(values):
    """95 % interval (low, high) of the mean of values [seeds, videos], with seeds and videos resampled together."""
    low, high = np.percentile(bootstrap_means(values), [2.5, 97.5])
    return float(low), float(high)
