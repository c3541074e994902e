from __future__ import annotations

import json

import lightning.pytorch as pl
import pytest
import torch

from tests.language_models import make_model
from zoo.data.language.text import Conversations, PythonSource, read_conversations, train_tokenizer
from zoo.data.language.unit_language import PeriodLanguage, UnitLanguage
from zoo.decoding.spec_bench import (
    Answer,
    Question,
    chat_prompt,
    mean_accepted,
    read_questions,
    same_texts,
    speed_up,
)
from zoo.errors import ZooError
from zoo.generate import main as generate_command
from zoo.tasks.base import OptimizerSettings, ScheduleSettings
from zoo.tasks.decoding._decoding_test import DecodingTest
from zoo.tasks.decoding.draft_heads import AdapterTraining, TokenHeadTraining
from zoo.tasks.decoding.draft_models import AcceptanceTraining, DraftModelTraining
from zoo.tasks.decoding.hidden_transfer import HiddenTransferTraining
from zoo.tasks.decoding.prompt_tokens import PromptTokenTraining
from zoo.tasks.language.language_modeling import LanguageModeling

SHAPE = dict(
    vocab_size=35,
    num_hidden_layers=2,
    hidden_size=16,
    intermediate_size=32,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
)
DRAFT = SHAPE | {"num_hidden_layers": 1}
SETTINGS = dict(
    optimizer=OptimizerSettings(lr=0.01, lr_batch_size=None),
    schedule=ScheduleSettings(sched="constant", warmup_epochs=0),
)


def fit(task, length: int = 32) -> dict[str, float]:
    data = UnitLanguage(samples=16, length=length, batch_size=4)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(task, datamodule=data)
    return trainer.test(task, datamodule=data, verbose=False)[0]


def decoding_test(method: str, **options) -> DecodingTest:
    return DecodingTest(method, options, prompts=2, prompt_length=8, new_tokens=8)


TASKS = {
    "medusa": lambda **k: TokenHeadTraining("base_lm_small", "medusa", {"num_heads": 2}, **k),
    "hydra": lambda **k: TokenHeadTraining(
        "base_lm_small", "hydra", {"num_heads": 2}, teacher_weight=0.5, state_weight=0.1, **k
    ),
    "hydra++": lambda **k: TokenHeadTraining(
        "base_lm_small", "hydra++", {"num_heads": 2, "num_layers": 2}, **k
    ),
    "cross-attn": lambda **k: TokenHeadTraining("base_lm_small", "cross-attn", **k),
    "eagle-attn": lambda **k: TokenHeadTraining(
        "base_lm_small", "eagle-attn", state_weight=0.1, **k
    ),
    "clover": lambda **k: TokenHeadTraining(
        "base_lm_small",
        "clover",
        {"num_heads": 2, "num_layers": 1, "own_outputs": 35},
        teacher_weight=0.5,
        **k,
    ),
    "clover2": lambda **k: TokenHeadTraining(
        "base_lm_small", "clover2", {"num_heads": 2}, state_weight=0.1, decay=0.7, **k
    ),
    "kangaroo": lambda **k: AdapterTraining("base_lm_small", 1, **k),
    "ppd": lambda **k: PromptTokenTraining("base_lm_small", {"num_special_tokens": 2}, cuts=3, **k),
    "hidden_transfer": lambda **k: HiddenTransferTraining(
        "base_lm_small", {"layers": [1, 2], "bias": True}, state_weight=0.1, cuts=3, **k
    ),
    "specdec_pp": lambda **k: AcceptanceTraining("base_lm_small", "base_lm_draft", DRAFT, **k),
    "spectr": lambda **k: DraftModelTraining("base_lm_small", "base_lm_draft", DRAFT, **k),
}


@pytest.mark.parametrize(
    "head, wrong", [("medusa", {"foo": 1}), ("hydra", {"foo": 1}), ("hydra", {"num_heads": -1})]
)
def test_wrong_arguments_of_heads_are_said(head: str, wrong: dict) -> None:
    with pytest.raises(ZooError, match=r"^model\.init_args\.head_args: "):
        TokenHeadTraining("base_lm_small", head, wrong, target_args=SHAPE, train_target=True)


@pytest.mark.parametrize("name", TASKS)
def test_target_and_head_learn_together(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    pl.seed_everything(0, verbose=False)
    method = "hydra" if name.endswith("attn") else name.rstrip("+2")
    task = TASKS[name](
        target_args=SHAPE,
        train_target=True,
        export="made",
        decoding_test=decoding_test(method),
        **SETTINGS,
    )
    before = {key: p.clone() for key, p in task.model.named_parameters()}
    scores = fit(task)
    assert scores["test/same_text"] == 1
    assert scores["test/tokens_per_step"] >= 1
    assert scores["test/loss"] > 0
    for key, p in task.model.named_parameters():
        assert not torch.equal(p.detach(), before[key]), key
    assert "acceptance" in task.figures()

    # what was exported decodes from the shell, and is what a second training starts from
    heads = [] if method in ("spectr", "specdec_pp") else ["--heads", "made"]
    if method == "specdec_pp":
        heads = ["--heads", "made", "--draft", "made/draft"]
    if method == "spectr":
        heads = ["--draft", "made"]
    arguments = ["--target", "made/target", "--method", method, *heads, "--max-new-tokens", "8"]
    assert generate_command([*arguments, "1 9 10 11"]) == 0
    if name == "medusa":
        frozen = TokenHeadTraining("made/target", "medusa", {"num_heads": 1}, **SETTINGS)
        assert all(key.startswith("head.") for key, _ in frozen.model.named_parameters())
        target = frozen.language_model("target")
        kept = [p.clone() for p in target.parameters()]
        assert 0 <= fit(frozen)["test/agree_head0"] <= 1
        assert all(torch.equal(a, b) for a, b in zip(kept, target.parameters(), strict=True))


def test_the_command_compares_and_reports(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    task = LanguageModeling(
        "base_lm_small",
        SHAPE,
        export="lm",
        decoding_test=decoding_test("token_recycling"),
        **SETTINGS,
    )
    assert fit(task)["test/same_text"] == 1
    file = tmp_path / "numbers.json"
    target = ["--target", "lm", "--max-new-tokens", "8"]
    extra = ["--repeat", "1", "--json", str(file), "--plot", str(tmp_path)]
    assert generate_command([*target, "--draft", "lm", "--compare", "all", *extra, "1 2", "3"]) == 0
    rows = {row["method"]: row for row in json.loads(file.read_text())}
    two = {"draft_tree", "ead", "spectr", "speculative"}
    others = {"beam", "contrastive", "exact_mode", "hso", "lud", "minicache", "momentum"}
    others.add("superposed")
    assert set(rows) == {"plain", "aded", "token_recycling", *two, *others}
    assert all(row["same_text"] for name, row in rows.items() if name not in others)
    assert rows["speculative"]["tokens_per_step"] > 2  # a model drafts well for itself
    assert (tmp_path / "comparison.png").stat().st_size > 0
    printed = capsys.readouterr().out
    assert "not compared: medusa, which needs --heads" in printed
    assert generate_command([*target, "a b"]) == 2
    assert "no tokenizer" in capsys.readouterr().err
    assert generate_command([*target, "--set", "medua.tree=x", "1"]) == 2
    assert "no decoding method 'medua'" in capsys.readouterr().err
    tree = ["--method", "token_recycling", "--set", "tree=[[0]"]
    assert generate_command([*target, *tree, "1"]) == 2
    assert "--set tree=[[0]: the value cannot be read" in capsys.readouterr().err
    assert generate_command(["--target", "nothing_here", "a b"]) == 2
    assert "recipes/decoding/base_lm/small.yaml" in capsys.readouterr().err


def test_unit_language_is_what_it_says() -> None:
    language = UnitLanguage(samples=4, length=40)
    text = language.text(500, seed=0).view(-1, 4)
    assert text[:, 0].min() == 1 and text[:, 0].max() == 8
    for branch in range(1, 9):
        rows = text[text[:, 0] == branch]
        assert len(rows) > 20 and (rows == rows[0]).all()
    assert text.max() < language.vocab_size == 35
    shared = UnitLanguage(shared_tail=True).text(500, seed=0).view(-1, 4)
    tails = {int(row[0]): tuple(row[1:].tolist()) for row in shared}
    assert len(set(tails.values())) == 8  # each branch writes its own word,
    assert all(len({t[place] for t in tails.values()}) == 8 for place in range(3))
    assert len({symbol for tail in tails.values() for symbol in tail}) == 8  # in common symbols
    noisy = UnitLanguage(noisy_share=0.5, stretch=4).text(64, seed=0).view(-1, 4, 5)
    assert (noisy[:, :, 0] == noisy[:, :1, 0]).all()  # a marker for each unit of a stretch
    assert set(noisy[:, 0, 0].tolist()) == {33, 34}
    repeated = PeriodLanguage(period=4, symbols=3, samples=20, length=10)
    repeated.setup("fit")
    ids, mask = repeated.source("train")[7]
    assert torch.equal(ids[4:], ids[:-4]) and mask.tolist() == [0.0] * 4 + [1.0] * 6
    assert set(repeated.texts(50, 0).unique().tolist()) == {1, 2, 3} and repeated.vocab_size == 4
    mixed = UnitLanguage(noisy_share=0.5, stretch=4, second_code=True).text(64, seed=0)
    mixed = mixed.view(-1, 5)
    assert torch.equal(mixed[:, :2], noisy.view(-1, 5)[:, :2])
    for marker, branch, *tail in mixed.tolist():
        owner = (branch - 1 + (marker == 34)) % 8  # the other code writes as the next branch
        assert tail == [9 + 3 * owner + place for place in range(3)]


def test_python_source_splits_and_round_trips() -> None:
    data = PythonSource(length=32, vocab_size=300, max_bytes=400_000, batch_size=4)
    data.setup("fit")
    ids, mask = data.source("train")[0]
    assert ids.shape == (32,) and mask.eq(1).all()
    assert int(ids.max()) < data.vocab_size
    text = data.texts("train")[0][:200]
    assert data.tokenizer.decode(data.tokenizer(text)["input_ids"]) == text
    assert not set(data.texts("train")) & set(data.texts("val") + data.texts("test"))


def test_conversations_count_the_assistants_words(tmp_path) -> None:
    tokenizer = train_tokenizer(["hello there, how are you USER: ASSISTANT:"] * 3, 270)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    file = tmp_path / "talk.json"
    talk = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "there"}]
    file.write_text(json.dumps([{"conversations": talk}] * 20))
    data = Conversations(file, str(tmp_path / "tokenizer"), length=256, batch_size=2)
    data.setup("fit")
    ids, mask = data.train_transform(data.source("train")[0])
    assert ids.shape == mask.shape == (256,)
    assert data.tokenizer.decode(ids[mask.bool()]) == " there"
    text = data.tokenizer.decode(ids)
    assert "questions. USER: hello ASSISTANT: there" in text
    alpaca = tmp_path / "alpaca.json"
    alpaca.write_text(json.dumps([{"instruction": "a", "input": "b", "output": "c"}]))
    assert read_conversations(alpaca) == [[("user", "a\nb"), ("assistant", "c")]]
    for wrong, expected in (
        ([{"text": "a"}], "entry 0 cannot be read .*'instruction' is missing"),
        ([1, 2], "entry 0 cannot be read"),
        ([{"conversations": [{"value": "a"}]}], "entry 0 cannot be read .*'from' is missing"),
        ([{"instruction": "a", "output": None}], "entry 0 cannot be read .*None is no text"),
    ):
        alpaca.write_text(json.dumps(wrong))
        with pytest.raises(ZooError, match=expected):
            read_conversations(alpaca)
    alpaca.write_bytes(b"\xff")
    with pytest.raises(ZooError, match=r"alpaca\.json: cannot be read"):
        read_conversations(alpaca)


def test_spec_bench_questions_and_numbers(tmp_path) -> None:
    file = tmp_path / "question.jsonl"
    lines = [
        {"question_id": 81, "category": "writing", "turns": ["a", "b"], "reference": []},
        {"question_id": 1, "category": "translation", "turns": ["c"]},
        {"question_id": 2, "category": "translation", "turns": ["d\u2028\u00fc"]},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    file.write_text(text, encoding="utf-8")
    questions = read_questions(file)
    assert [q.task for q in questions] == ["mt_bench", "translation", "translation"]
    assert questions[2].turns == ("d\u2028\u00fc",)
    assert [q.question_id for q in read_questions(file, ["translation"], limit=1)] == [1]
    with pytest.raises(ZooError, match="no questions of rag"):
        read_questions(file, ["rag"])
    file.write_text("{}")
    with pytest.raises(ZooError, match="line 1"):
        read_questions(file)

    def answer(seconds: float, lengths: list[int], text: str = "x") -> Answer:
        question = Question(1, "qa", ("q", "r"))
        tokens = [sum(lengths) - 1, 1]
        return Answer(question, [text, ""], tokens, [seconds, 0.0], [len(lengths), 0], lengths)

    plain = [answer(1.0, [1] * 10), answer(1.0, [1] * 20)]
    fast = [answer(0.5, [5, 5]), answer(2.0, [2] * 10)]
    assert mean_accepted(fast) == 30 / 12  # over all steps, not a mean of means
    assert speed_up(fast, plain) == pytest.approx(((20 + 10) / 2) / ((10 + 20) / 2))
    assert same_texts(fast, plain) and not same_texts([answer(1, [1], "y"), fast[1]], plain)


def test_spec_bench_is_answered_turn_by_turn(tmp_path, monkeypatch, capsys) -> None:
    words = "A chat between a curious user and USER: ASSISTANT: polite answers to questions."
    tokenizer = train_tokenizer([words] * 3, 300)
    make_model("llama", vocab_size=300, max_position_embeddings=400).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    first = chat_prompt(tokenizer, ["a"], [])
    assert tokenizer.decode(first[0]).endswith("questions. USER: a ASSISTANT:")
    second = tokenizer.decode(chat_prompt(tokenizer, ["a", "b"], ["c"])[0])
    assert second.endswith(" USER: a ASSISTANT: c</s>USER: b ASSISTANT:")

    file = tmp_path / "question.jsonl"
    questions = [
        {"question_id": 81, "category": "math", "turns": ["a", "b"]},
        {"question_id": 200, "category": "qa", "turns": ["c"]},
    ]
    file.write_text("\n".join(map(json.dumps, questions)))
    arguments = ["--target", str(tmp_path), "--spec-bench", str(file), "--max-new-tokens", "6"]
    folder = tmp_path / "answers"
    assert generate_command([*arguments, "--method=token_recycling", f"--answers={folder}"]) == 0
    printed = capsys.readouterr().out
    assert "mt_bench" in printed and "qa" in printed and "same" in printed
    lines = [json.loads(line) for line in (folder / "token_recycling.jsonl").open()]
    assert [line["question_id"] for line in lines] == [81, 200]
    choice = lines[0]["choices"][0]
    assert choice["new_tokens"] == [6, 6] and len(choice["turns"]) == 2
    assert sum(choice["decoding_steps"]) == len(choice["accept_lengths"])
    assert sum(choice["accept_lengths"]) == 12
    plain = json.loads((folder / "plain.jsonl").read_text().splitlines()[0])
    assert plain["choices"][0]["accept_lengths"] == [1] * 12
