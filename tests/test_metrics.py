"""Metrics besides segment accuracy, on cases worked by hand."""
import numpy as np

from model.metrics import Predictions, matched_events

B = 9      # background


def predictions(labels, predicted):
    labels, predicted = np.array(labels), np.array(predicted)
    return Predictions(np.arange(len(labels)), labels, predicted, np.ones(labels.shape))


def test_a_case_worked_by_hand():
    result = predictions(
        [[1, 1, 1, 1, B, B], [2, 2, 2, 2, 2, 2], [B, B, B, B, B, B], [B, 3, 3, B, 3, 3]],
        [[1, 1, 1, B, B, B], [2, 2, 4, 4, 4, 4], [B, B, B, B, B, 5], [B, 3, 3, 3, 3, 3]])
    metrics = result.metrics(B)
    # Wrong on event or background: one in the first video, one in the third, one in the fourth; of 24.
    assert metrics["event_or_background"] == 21 / 24
    # Three videos have an event; the second one's most frequent label is 4.
    assert metrics["video_category"] == 2 / 3
    # Right event labels 3 + 2 + 0 + 4 = 9; true ones 4 + 6 + 4 = 14, predicted ones 3 + 6 + 1 + 5 = 15.
    assert metrics["segment_f1"] == 2 * 9 / (14 + 15)
    # Events: 1 (3 of 4 shared: right), 2 (2 of 6: wrong), 4 wrong, 5 wrong, and one 3 that covers two true ones, each
    # with 2 of 5: wrong. Hits 1; true 1 + 1 + 2 = 4, predicted 1 + 2 + 1 + 1 = 5.
    assert metrics["event_f1"] == 2 * 1 / (4 + 5)
    # Background 2 + 0 + 6 + 2 of 24; category everywhere right on 4 + 6 + 6 (a video without event) + 4.
    assert metrics["always_background"] == 10 / 24 and metrics["category_everywhere"] == 20 / 24


def test_nothing_to_count_is_not_zero():
    nothing = predictions([[B, B]], [[B, B]]).metrics(B)
    assert nothing["video_category"] is None and nothing["segment_f1"] is None and nothing["event_f1"] is None
    assert predictions([[1, B]], [[B, B]]).metrics(B)["video_category"] == 0


def test_half_an_overlap_is_enough():
    assert matched_events([(1, 0, 4)], [(1, 0, 2)]) == 1            # 2 of 4
    assert matched_events([(1, 0, 4)], [(1, 3, 7)]) == 0            # 1 of 7
    assert matched_events([(1, 0, 4)], [(2, 0, 4)]) == 0            # another category
