import pytest

from zoo.data.formats.subtitles import Cue, cues_of, write_subtitles

WORDS = [("good", 0.5, 0.8), ("morning", 0.84, 1.3), ("all", 2.4, 2.5)]


def test_a_pause_a_long_line_and_a_long_time_end_a_cue():
    assert list(cues_of(WORDS)) == [Cue(0.5, 1.3, "good morning"), Cue(2.4, 2.5, "all")]
    words = [("word" * 5, float(n), n + 0.9) for n in range(3)]  # 20 letters each
    assert [cue.text for cue in cues_of(words)] == [" ".join(["word" * 5] * 2), "word" * 5]
    words = [("a", float(n), n + 0.9) for n in range(8)]
    assert [cue.end - cue.start for cue in cues_of(words)] == pytest.approx([5.9, 1.9])
    assert not list(cues_of([]))


def test_both_formats(tmp_path):
    write_subtitles([*WORDS, ("late", 3661.0005, 3662.25)], tmp_path / "it")
    assert (tmp_path / "it.srt").read_text() == (
        "1\n00:00:00,500 --> 00:00:01,300\ngood morning\n\n"
        "2\n00:00:02,400 --> 00:00:02,500\nall\n\n"
        "3\n01:01:01,000 --> 01:01:02,250\nlate\n"
    )
    assert (
        (tmp_path / "it.vtt")
        .read_text()
        .startswith("WEBVTT\n\n00:00:00.500 --> 00:00:01.300\ngood morning\n\n00:00:02.400 -->")
    )
