import pytest

from zoo.data.language.passkey import FILLER, TASK, Passkey
from zoo.errors import ZooError


def test_the_number_stands_where_it_shall_and_is_asked_for():
    data = Passkey(length=300, depths=4, samples=40, batch_size=4)
    source = data.load("train")
    assert len(source) == 40 and len(data.load("test")) == 4
    places = []
    for index in range(8):
        ids, mask = source[index]
        assert ids.shape == mask.shape == (300,) and int(ids.max()) < data.vocab_size
        text = data.tokenizer.decode(ids)
        answer = data.tokenizer.decode(ids[mask > 0]).strip()
        assert len(answer) == 5 and answer.isdigit()
        assert text.startswith(TASK) and text.endswith(f"The pass key is {answer}")
        assert text.count(answer) == 3
        before, _, after = text.partition("The pass key is")
        filler = len(before) - len(TASK)
        whole = filler + len(after) - len(after.partition("pass key.\n")[0])
        places.append(filler / whole)
        assert FILLER[:20] in text
    assert places[:4] == sorted(places[:4]) and places[0] == pytest.approx(places[4], abs=0.05)
    assert places[0] < 0.25 and 0.6 < places[3] < 1
    assert len({data.tokenizer.decode(source[i][0][-5:]) for i in range(40)}) > 30


def test_no_room_is_said_with_the_length_that_is_needed():
    with pytest.raises(ZooError, match="length is 40: expected ") as raised:
        Passkey(length=40, batch_size=2).load("train")
    least = int(str(raised.value).split("expected ")[1].split()[0])
    ids, _ = Passkey(length=least, batch_size=2).load("train")[3]
    assert len(ids) == least
    for name in ("digits", "depths", "samples"):
        with pytest.raises(ZooError, match=f"{name} is 0"):
            Passkey(**{name: 0}, batch_size=2)
