"""What tasks share that put a head on an encoder: model, adapters, export, lines of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn
from typing_extensions import override

from zoo.arguments import blaming
from zoo.data.base import DataModule
from zoo.errors import ZooError
from zoo.models.language._causal_lm import export_causal_lm
from zoo.models.language._transformers import LoraSettings, add_lora
from zoo.tasks.base import MODEL, Task
from zoo.tasks.language._text_inputs import TextInput, find_lines


class EncoderTask(Task):
    """A model of transformers with a head for ``num_classes`` classes.

    Args:
        model: a registered model, an architecture of transformers, a folder, or a hub name.
        num_classes: of the data.
        model_args: of the model's configuration.
        pretrained: weights of a registered model to start from.
        lora: train adapters and the head alone.
        export: name under which the trained model is kept, or a folder.
        kwargs: see :class:`zoo.tasks.Task`.
    """

    input_suffixes = frozenset({".txt", ".tsv"})
    #: peft's name of the task.
    lora_type: ClassVar[str]
    #: Name, classes, settings, with weights or not -> the model.
    build: ClassVar[Callable[[str, int, dict[str, Any], bool], nn.Module]]

    def __init__(
        self,
        model: str,
        num_classes: int,
        model_args: dict[str, Any] | None = None,
        pretrained: str | None = None,
        lora: LoraSettings | None = None,
        export: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.model_name, self.model_args = model, model_args or {}
        self.num_classes, self.pretrained, self.lora = num_classes, pretrained, lora
        self.export = export
        super().__init__(**kwargs)

    @override
    def configure_models(self) -> None:
        with blaming(MODEL):
            self.model = self.build(
                self.model_name, self.num_classes, self.model_args, self.starts_fresh
            )
        self.load_start(self.model, self.pretrained)
        if self.lora is not None:
            self.model = add_lora(self.model, self.lora, self.lora_type)

    @property
    def config(self) -> Any:
        """Of the model, below adapters."""
        return self.model.config

    def check_data(self, data: DataModule) -> None:
        """The model must know the tokens, and read texts of this length."""
        super().check_data(data)
        check_sizes(data, self.config, "the model")

    def finish_test(self) -> dict[str, Any]:
        """Keep the model."""
        if self.export is not None and self.trainer.is_global_zero:
            model = self.eval_model
            if self.lora is not None:
                model = model.merge_and_unload()
            names = self.class_names or []
            model.config.id2label = dict(enumerate(names))
            model.config.label2id = {name: number for number, name in enumerate(names)}
            export_causal_lm(model, self.trainer.datamodule.tokenizer, self.export)
        return {}

    # files

    @override
    def find_inputs(self, sources: Sequence[Path]) -> list[TextInput]:
        """Lines of files, or of standard input (``-``); the texts of a pair have a tab between
        them."""
        return find_lines(sources)

    @override
    def describe(self, source: TextInput) -> dict[str, Any]:
        return {"file": str(source.path), "line": source.line}


def check_sizes(data: Any, config: Any, whose: str) -> None:
    """The model must know the tokens of the data, and read texts of their length."""
    if data.vocab_size > config.vocab_size:
        raise ZooError(
            f"model.init_args.model_args.vocab_size: {whose} knows {config.vocab_size} tokens, "
            f"the data have {data.vocab_size}: set it to that or more, or take its tokenizer"
        )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and data.length > longest:
        raise ZooError(
            f"data.init_args.length is {data.length}, but {whose} reads {longest} tokens: set "
            "it to that or less"
        )
