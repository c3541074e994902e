from zoo.models.language._chat import SYSTEM, vicuna_text


def test_a_conversation_and_where_the_answers_stand():
    turns = [("user", "Hi."), ("assistant", "Yes?"), ("user", "Bye."), ("assistant", "So long.")]
    text, spans = vicuna_text(turns)
    assert text == (f"{SYSTEM} USER: Hi. ASSISTANT: Yes?</s>USER: Bye. ASSISTANT: So long.</s>")
    assert [text[a:b] for a, b in spans] == [" Yes?</s>", " So long.</s>"]


def test_an_open_turn_and_another_end():
    turns = [("user", "Hi."), ("assistant", "Yes?"), ("user", "Bye.")]
    text, spans = vicuna_text(turns, end="<end>")
    assert text == f"{SYSTEM} USER: Hi. ASSISTANT: Yes?<end>USER: Bye. ASSISTANT:"
    assert [text[a:b] for a, b in spans] == [" Yes?<end>"]
