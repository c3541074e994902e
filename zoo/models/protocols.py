"""What a task asks of its models, as typing Protocols: a new paper's model fulfils one of them.

They stand in their families: :mod:`zoo.models.language._protocol` (language models, which all ways
of decoding serve), :mod:`zoo.models.decoding._protocol` (draft heads),
:mod:`zoo.models.speech._protocol` (recognisers), :mod:`zoo.models.vision._protocol` (detectors),
:mod:`zoo.models.multimodal._protocol` (generators of image tokens) and
:mod:`zoo.models.ssm._protocol` (classifiers of sequences, models of sound, policies).
"""

from __future__ import annotations

from inspect import get_annotations

from zoo.errors import ZooError


def check_model(model: object, protocol: type, name: str, example: str) -> None:
    """A model must have all that a protocol names.

    Args:
        model: any module.
        protocol: a :class:`typing.Protocol`.
        name: of the model, for the message.
        example: name of a model that fulfils the protocol.

    Raises:
        ZooError: it lacks some.
    """
    # not isinstance(): it does not see what nn.Module keeps apart, such as submodules
    lacking = [member for member in _members(protocol) if not hasattr(model, member)]
    if lacking:
        raise ZooError(
            f"model.init_args.model: {name} is no {protocol.__name__.lower()}, it lacks "
            f"{', '.join(lacking)}; expected a model such as {example}"
        )


def _members(protocol: type) -> list[str]:
    names: dict[str, None] = {}
    for part in reversed(protocol.__mro__[:-1]):
        functions = [name for name, value in vars(part).items() if callable(value)]
        names |= dict.fromkeys([*get_annotations(part), *functions])
    return [name for name in names if not name.startswith("_")]
