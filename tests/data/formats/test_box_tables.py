import numpy as np
import pytest

from zoo.data.formats.box_tables import FRAME_FILE_COLUMNS, read_boxes
from zoo.errors import ZooError

#: Frame, number, left, top, width, height, score.
ROWS = np.array([[1, 4, 10, 20, 30, 40, 0.5], [2, 5, 11.5, 21, 30, 41, 0.75]])
LEFT, TOP, WIDTH, HEIGHT = ROWS[:, 2:6].T


def written(path, header, columns, mark=","):
    lines = [mark.join(header)] if header else []
    lines += [mark.join(f"{value:g}" for value in row) for row in np.column_stack(columns)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        (None, [*ROWS.T]),
        (None, [*ROWS.T, [-1, -1], [-1, -1], [-1, -1]]),
        (["frame", "id", "x", "y", "w", "h", "score"], [*ROWS.T]),
        (["Frame", "ID", "bb_left", "bb_top", "bb_width", "bb_height", "conf"], [*ROWS.T]),
        (
            ["score", "h", "w", "y", "x", "track_id", "frame_id"],
            [*ROWS.T[::-1]],
        ),
        (
            ["frame", "id", "x1", "y1", "x2", "y2", "score"],
            [*ROWS[:, :4].T, LEFT + WIDTH, TOP + HEIGHT, ROWS[:, 6]],
        ),
        (
            ["frame", "id", "xmin", "ymin", "xmax", "ymax", "confidence"],
            [*ROWS[:, :4].T, LEFT + WIDTH, TOP + HEIGHT, ROWS[:, 6]],
        ),
        (
            ["frame", "id", "cx", "cy", "w", "h", "score"],
            [ROWS[:, 0], ROWS[:, 1], LEFT + WIDTH / 2, TOP + HEIGHT / 2, WIDTH, HEIGHT, ROWS[:, 6]],
        ),
        (["frame", "id", "x", "y", "w", "h", "score", "speed"], [*ROWS.T, [7, 8]]),
    ],
)
@pytest.mark.parametrize("mark", [",", "\t", ";", " ", ", "])
def test_columns_go_by_their_names(tmp_path, header, columns, mark):
    table = read_boxes(written(tmp_path / "it", header, columns, mark))
    assert table.frames.tolist() == [1, 2] and table.frames.dtype == np.int64
    np.testing.assert_allclose(table.boxes, ROWS[:, 2:6])
    np.testing.assert_allclose(table.column("number", -1), ROWS[:, 1])
    np.testing.assert_allclose(table.column("score", 1), ROWS[:, 6])


def test_what_a_header_leaves_out(tmp_path):
    table = read_boxes(
        written(tmp_path / "it", ["frame", "x", "y", "w", "h"], ROWS[:, [0, 2, 3, 4, 5]].T)
    )
    assert table.column("score", 1).tolist() == [1, 1] and "number" not in table.columns
    names = ["file,x,y,w,h,label", "a/frame_0007.jpg,10,20,30,40,person", '"3.png",1,2,3,4,car']
    (tmp_path / "it").write_text("\n".join(names))
    table = read_boxes(tmp_path / "it")
    assert table.frames.tolist() == [7, 3] and table.boxes[0].tolist() == [10, 20, 30, 40]


def test_of_two_names_for_a_thing_the_plainer_counts(tmp_path):
    (tmp_path / "it").write_text("file,frame,x,y,w,h\nclip9.mp4,2,1,2,3,4\n")
    assert read_boxes(tmp_path / "it").frames.tolist() == [2]


def test_comments_empty_lines_and_marks_of_editors(tmp_path):
    (tmp_path / "it").write_bytes(b"\xef\xbb\xbf# made by x\n\n1,4,10,20,30,40,0.5\r\n# end\n")
    assert read_boxes(tmp_path / "it").boxes.tolist() == [[10, 20, 30, 40]]
    (tmp_path / "it").write_text("# frame id x y w h\n1 4 10 20 30 40\n")
    assert read_boxes(tmp_path / "it").boxes.tolist() == [[10, 20, 30, 40]]
    (tmp_path / "it").write_text("frame;x;y;w;h\n1;10,5;20;30;40\n")
    assert read_boxes(tmp_path / "it").boxes.tolist() == [[10.5, 20, 30, 40]]
    for empty in ("", "\n\n", "# nothing\n", "frame,x,y,w,h\n"):
        (tmp_path / "it").write_text(empty)
        assert len(read_boxes(tmp_path / "it").frames) == 0


def test_corners_that_are_sizes(tmp_path, caplog):
    """A header that says x2, y2 over widths and heights: the numbers show it, and it is said."""
    columns = [ROWS[:, 0], LEFT + 80, TOP + 80, WIDTH, HEIGHT]
    table = read_boxes(written(tmp_path / "it", ["frame", "x1", "y1", "x2", "y2"], columns))
    np.testing.assert_allclose(table.boxes[:, 2:], ROWS[:, 4:6])
    assert "in 2 of 2 rows the second corner lies before the first" in caplog.text
    columns = [[1, 2, 3], [10, 10, 90], [5, 5, 5], [20, 20, 20], [9, 9, 9]]
    with pytest.raises(ZooError, match="line 4: a box of -70 x 4 pixels"):
        read_boxes(written(tmp_path / "it", ["frame", "x1", "y1", "x2", "y2"], columns))


def test_boxes_without_extent_are_left_out(tmp_path, caplog):
    (tmp_path / "it").write_text("1,-1,5,5,0,9,0.9\n2,-1,5,5,9,9,0.8\n")
    table = read_boxes(tmp_path / "it")
    assert table.frames.tolist() == [2] and table.column("score", 1).tolist() == [0.8]
    assert "1 boxes without extent" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("frame,a,b\n1,2,3\n", "columns frame, a, b; expected frame and x, y, w, h"),
        ("x,y,w,h\n1,2,3,4\n", "columns x, y, w, h; expected frame and"),
        ("1,2,3\n", "rows of 3 numbers, expected 6 or more: frame, number, left"),
        ("frame,x,y,w,h\n1,2,3,4,5\n1,2,3\n", "line 3: 3 fields, expected 4 or more"),
        ("frame,x,y,w,h\n1,2,3,four,5\n", "line 2: 'four', expected a number"),
        ("frame,x,y,w,h\n1.5,2,3,4,5\n", "line 2: frame 1.5, expected a whole number"),
        ("frame,x,y,w,h\n-1,2,3,4,5\n", "line 2: frame -1, expected a whole number"),
        ("frame,x,y,w,h\nnan,2,3,4,5\n", "line 2: frame nan, expected a whole number"),
        ("frame,x,y,w,h\nabc,2,3,4,5\n", "line 2: 'abc', expected a number"),
        ("frame,x,y,w,h\n1,2,3,-4,5\n", "line 2: a box of -4 x 5 pixels"),
        ("frame,x,y,w,h\n1,2,inf,4,5\n", "line 2: the box is not finite"),
        ("frame,x,y,w,h,score\n\n1,2,2,4,5,nan\n", "line 3: score is not finite"),
        ("frame,x,y,w,h\n1,0.2,0.3,0.1,0.1\n", "no box exceeds 1, expected pixels"),
    ],
)
def test_broken_tables_are_said(tmp_path, text, said):
    (tmp_path / "it").write_text(text)
    with pytest.raises(ZooError, match=said):
        read_boxes(tmp_path / "it")


def test_a_file_for_a_frame_needs_no_frame(tmp_path):
    (tmp_path / "it").write_text("x1,y1,x2,y2\n10,20,40,60\n")
    table = read_boxes(tmp_path / "it", FRAME_FILE_COLUMNS)
    assert table.boxes.tolist() == [[10, 20, 30, 40]]
