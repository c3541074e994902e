import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from zoo.models.tracking._byte_track import ByteTracker, Thresholds, assign, fill_gaps, overlaps
from zoo.models.tracking._motion import KalmanMotion, TrackSSMMotion


class GoesOn:
    """Instead of a trained model: the newest box moves on as it last moved."""

    interval = 5

    def generate(self, histories, img_w, img_h):
        rows = np.stack([history[-1] for history in histories])
        return (rows[:, :4] + rows[:, 4:]) / np.array([img_w, img_h] * 2)


def tracker(**limits) -> ByteTracker:
    return ByteTracker(TrackSSMMotion(GoesOn(), 640, 360), Thresholds(**limits))


def frame(*objects: tuple[float, float, float]) -> np.ndarray:
    """(left, top, score) of boxes 40 x 80."""
    return np.array([[x, y, 40, 80, s] for x, y, s in objects], float).reshape(-1, 5)


def numbers(tracks) -> list[int]:
    return sorted(track.number for track in tracks)


def test_tracks_keep_their_numbers():
    it = tracker()
    for t in range(20):
        tracks = it.update(frame((10 + 6 * t, 20, 0.9), (400 - 6 * t, 200, 0.9)))
        assert numbers(tracks) == [1, 2]
    left = {track.number: track.box for track in tracks}
    np.testing.assert_allclose(left[1], [10 + 6 * 19 + 20, 60, 40, 80])


def test_a_hidden_object_comes_back_where_its_motion_leads():
    it = tracker()
    for t in range(30):
        hidden = 10 <= t < 16
        tracks = it.update(frame() if hidden else frame((10 + 15 * t, 20, 0.9)))
        assert numbers(tracks) == ([] if hidden else [1])


def test_what_is_lost_too_long_gets_a_new_number():
    for gap, number in ((31, 1), (32, 2)):
        it = tracker(max_lost=30)
        for _ in range(3):
            it.update(frame((100, 100, 0.9)))
        for _ in range(gap):
            assert it.update(frame()) == []
        it.update(frame((100, 100, 0.9)))
        assert numbers(it.update(frame((100, 100, 0.9)))) == [number]


def test_unsure_detections_hold_tracks_but_begin_none():
    it = tracker()
    it.update(frame((100, 100, 0.9)))
    for _ in range(5):
        assert numbers(it.update(frame((100, 100, 0.3), (300, 100, 0.3)))) == [1]
    it.update(frame())
    assert numbers(it.update(frame((100, 100, 0.3)))) == [], "and find none that are lost"


def test_a_new_track_must_be_seen_twice_after_the_first_frame():
    it = tracker()
    it.update(frame((100, 100, 0.9)))
    assert numbers(it.update(frame((100, 100, 0.9), (300, 100, 0.9)))) == [1]
    assert numbers(it.update(frame((100, 100, 0.9)))) == [1]
    assert numbers(it.update(frame((100, 100, 0.9), (300, 100, 0.9)))) == [1]
    assert numbers(it.update(frame((100, 100, 0.9), (300, 100, 0.9)))) == [1, 3]
    it.update(frame((100, 100, 0.9), (300, 100, 0.9), (500, 100, 0.65)))
    assert it.count == 3, "scores below 0.7 begin no track"


def test_of_a_lost_and_a_seen_track_in_one_place_the_younger_goes():
    it = tracker(first=0.05, unconfirmed=0.7)  # nothing that moved is matched at once
    for _ in range(4):
        it.update(frame((100, 100, 0.9)))
    it.update(frame((103, 100, 0.9)))
    assert [track.number for track in it.lost] == [1] and numbers(it.seen) == []


def test_empty_frames():
    it = tracker()
    assert it.update(frame()) == [] and it.update(frame()) == []


def test_overlap_counts_the_last_pixel():
    a, b = np.array([[4.5, 4.5, 9, 9]]), np.array([[4.5, 4.5, 9, 9], [9.5, 4.5, 9, 9]])
    np.testing.assert_allclose(overlaps(a, b), [[1, 50 / 150]])


def test_a_dear_pair_is_left_out_for_the_good_of_the_others():
    # the cheapest full matching takes 0.45 + 0.45; leaving one out at 0.5 costs less
    cost = np.array([[0.1, 0.45], [0.45, 0.85]])
    assert linear_sum_assignment(cost)[1].tolist() == [1, 0]
    rows, columns = assign(cost, 0.5)
    assert (rows.tolist(), columns.tolist()) == ([0], [0])
    assert assign(np.zeros((0, 3)), 0.5)[0].size == 0


def test_kalman_filter_learns_a_speed():
    motion = KalmanMotion()
    box, step = np.array([100.0, 100.0, 40.0, 80.0]), np.array([5, -2, 0, 0])
    state = motion.begin(box)
    for _ in range(30):
        motion.predict([state], [False])
        box = box + step
        motion.correct(state, box)
    np.testing.assert_allclose(motion.predict([state], [False])[0], box + step, atol=0.1)
    assert motion.predict([], []).shape == (0, 4)


def test_gaps_are_filled_on_the_straight_line():
    track = [[f, 1, 10.0 * f, 0, 40, 80] for f in (1, 2, 3, 7, 30)]
    rows = fill_gaps(np.array(track), min_length=3, max_gap=20)
    assert rows[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 30]
    np.testing.assert_allclose(rows[:, 2], 10 * rows[:, 0])
    assert len(fill_gaps(np.array(track), min_length=5)) == 5


@pytest.mark.parametrize("make", [KalmanMotion, lambda: TrackSSMMotion(GoesOn(), 640, 360)])
def test_motion_models_report_where_the_object_was_seen(make):
    motion = make()
    box = np.array([100.0, 100.0, 40.0, 80.0])
    state = motion.begin(box)
    motion.predict([state], [False])
    np.testing.assert_allclose(motion.correct(state, box), box, atol=1e-9)


def in_full(box, motions, seen):
    """The filter by its textbook equations, for frames of which some are seen; DeepSORT's noise."""
    H = np.eye(4, 8)
    F = np.block([[np.eye(4), np.eye(4)], [np.zeros((4, 4)), np.eye(4)]])

    def squares(height, place, speed, aspect, aspect_speed):
        a, b = place * height, speed * height
        return np.diag([a * a, a * a, aspect**2, a * a, b * b, b * b, aspect_speed**2, b * b])

    def aspect(x, y, w, h):
        return np.array([x, y, w / h, h])

    m = np.concatenate([aspect(*box), [0, 0, 0, 0]])
    P = squares(box[3], 2 / 20, 10 / 160, 1e-2, 1e-5)
    reported, was_seen = [], True
    for z, is_seen in zip(motions, seen, strict=True):
        if not was_seen:
            m[7] = 0
        Q = squares(m[3], 1 / 20, 1 / 160, 1e-2, 1e-5)
        m, P = F @ m, F @ P @ F.T + Q
        reported.append([m[0], m[1], m[2] * m[3], m[3]])
        if is_seen:
            R = np.diag([(m[3] / 20) ** 2, (m[3] / 20) ** 2, 1e-2, (m[3] / 20) ** 2])
            K = P @ H.T @ np.linalg.inv(H @ P @ H.T + R)
            m = m + K @ (aspect(*z) - H @ m)
            P = (np.eye(8) - K @ H) @ P
            reported.append([m[0], m[1], m[2] * m[3], m[3]])
        was_seen = is_seen
    return np.array(reported)


def test_kalman_filter_is_the_textbooks():
    draw = np.random.default_rng(3)
    frames = np.array([100.0, 90, 40, 80]) + draw.uniform(-9, 9, (9, 4)).cumsum(0)
    seen = [True, True, False, True, True, False, False, True]
    motion = KalmanMotion()
    still, state = motion.begin(np.array([7.0, 8, 9, 10])), motion.begin(frames[0])
    reported, lost = [], False
    for frame_, is_seen in zip(frames[1:], seen, strict=True):
        reported.append(motion.predict([still, state], [False, lost])[1])
        if is_seen:
            reported.append(motion.correct(state, frame_))
        lost = not is_seen
    np.testing.assert_allclose(reported, in_full(frames[0], frames[1:], seen), rtol=1e-9)
    np.testing.assert_allclose(still.mean, [7, 8, 0.9, 10, 0, 0, 0, 0], atol=1e-12)


def test_histories_of_boxes_and_their_changes():
    motion = TrackSSMMotion(GoesOn(), 640, 360)
    state = motion.begin(np.array([10.0, 20, 30, 40]))
    assert np.array(state).tolist() == [[10, 20, 30, 40, 0, 0, 0, 0]]
    motion.correct(state, np.array([11.0, 22, 33, 44]))  # in the frame where it began
    assert np.array(state).tolist() == [[11, 22, 33, 44, 1, 2, 3, 4]]
    other = motion.begin(np.array([1.0, 2, 3, 4]))
    boxes = motion.predict([state, other], [False, False])
    np.testing.assert_allclose(boxes, [[12, 24, 36, 48], [1, 2, 3, 4]])
    np.testing.assert_allclose(state[-1], [12, 24, 36, 48, 1, 2, 3, 4])
    assert motion.correct(state, np.array([14.0, 24, 34, 44])).tolist() == [14, 24, 34, 44]
    np.testing.assert_allclose(state, [[11, 22, 33, 44, 1, 2, 3, 4], [14, 24, 34, 44, 3, 2, 1, 0]])
    for _ in range(4):
        motion.predict([state], [True])
    np.testing.assert_allclose([row[0] for row in state], [14, 17, 20, 23, 26])
    assert motion.predict([], []).shape == (0, 4)
