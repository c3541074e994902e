"""Bringing weights into a model: all of them or none, and a word about each that did not fit."""

from __future__ import annotations

import logging
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.report import LoadReport, some, some_pairs
from zoo.checkpoints.sources import locate
from zoo.checkpoints.state_dict import open_state_dict
from zoo.errors import ZooError

log = logging.getLogger("zoo")

#: What wrappers put before every name; taken off only when the names then fit the model better.
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.", "encoder.", "net.")


def load_pretrained(
    model: nn.Module,
    source: str | os.PathLike[str],
    *,
    key: str | None = None,
    strict: bool = True,
    sha256: str | None = None,
) -> LoadReport:
    """Load a checkpoint, ours or the authors', into a model.

    The names are adapted in two steps: wrappers' prefixes (``PREFIXES``) are taken off if more
    names fit then, and ``model.remap_state_dict(state_dict)``, where the model has it, turns
    foreign names into its own. Then every name and shape must fit. The one exception: a classifier
    for another number of classes is left out, which is logged; the model names it in ``head_names``
    (module names), or timm's ``pretrained_cfg["classifier"]``. Tensors take the model's dtype and
    device; a model on the ``meta`` device gets memory for its parameters on the CPU, one by one.

    Args:
        model: any module.
        source, key, sha256: see :func:`zoo.checkpoints.read_state_dict`.
        strict: False loads what fits and logs the rest as a warning.

    Raises:
        ZooError: if the checkpoint cannot be read or does not fit; the model is as it was before.
    """
    located = locate(source, sha256=sha256)
    tensors, place = open_state_dict(located, key=key, mmap=True)
    return load_tensors(model, tensors, located.name, place, strict)


def load_tensors(
    model: nn.Module, tensors: dict[str, Tensor], source: str, place: str = "", strict: bool = True
) -> LoadReport:
    """Load tensors that were read already; see :func:`load_pretrained`.

    Args:
        source: where they come from, for messages.
        place: key of the checkpoint that they were found under.
    """
    plan = _Plan(model, tensors, source)
    if plan.problems and (strict or not plan.copies):
        raise ZooError(plan.complaint())
    plan.check_values()
    plan.carry_out()
    report = LoadReport(
        source=source,
        place=place,
        prefix=plan.prefix,
        loaded=tuple(plan.copies),
        head=tuple(plan.head),
        kept=tuple(plan.kept),
        aside=tuple(plan.aside),
        resized=plan.resized,
        missing=tuple(plan.missing),
        unexpected=tuple(plan.unexpected + plan.dropped_head),
        mismatched=plan.mismatched,
        converted=dict(plan.converted),
    )
    partial = plan.problems or plan.head
    log.log(logging.WARNING if partial else logging.INFO, "%s: %s", type(model).__name__, report)
    return report


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Module names of a model's classifier; none if it does not say."""
    named: Any = getattr(model, "head_names", None)
    if named is None:
        settings = getattr(model, "pretrained_cfg", None) or {}
        named = settings.get("classifier") if hasattr(settings, "get") else None
    get_classifier: Any = getattr(model, "get_classifier", None)
    if named is None and get_classifier is not None:
        classifier = get_classifier()
        found = classifier if isinstance(classifier, tuple | list) else (classifier,)
        named = [n for n, module in model.named_modules() if any(module is f for f in found)]
    if callable(named):
        named = named()
    return (named,) if isinstance(named, str) else tuple(named or ())


class _Plan:
    """What would be copied where; nothing is changed before all of it is known to fit."""

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
        self.model, self.source = model, source
        self.own: dict[str, Tensor] = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **{n: b for n, b in model.named_buffers(remove_duplicate=False)},
        }
        persistent = model.state_dict(keep_vars=True).keys()
        self.unsaved = {n: t for n, t in self.own.items() if n not in persistent}
        self.own = {n: t for n, t in self.own.items() if n in persistent}
        self.head: list[str] = []
        self.dropped_head: list[str] = []
        self.mismatched: dict[str, tuple[str, str]] = {}
        self.converted: Counter[str] = Counter()
        self.prefix, before, self.given = self._fit_names(tensors)
        self.resized = {
            name: (str(list(before[name].shape)), str(list(tensor.shape)))
            for name, tensor in self.given.items()
            if name in before and before[name].numel() != tensor.numel()
        }
        self.aside = _not_passed_on(before, self.given)
        self._compare()
        self._check_meta()

    # names

    def _fit_names(
        self, tensors: dict[str, Tensor]
    ) -> tuple[str, dict[str, Tensor], dict[str, Tensor]]:
        """The prefix to take off, the tensors without it, and these under the model's names."""
        best: tuple[int, str, dict[str, Tensor], dict[str, Tensor]] | None = None
        failure: ZooError | None = None
        for prefix, candidate in _without_prefixes(tensors):
            try:
                mapped = self._remap(candidate)
            except ZooError as error:
                failure = failure or error
                continue
            fitting = sum(name in self.own for name in mapped)
            if best is None or fitting > best[0]:
                best = fitting, prefix, candidate, mapped
            if fitting == len(mapped) == len(self.own):
                break
        if best is None:
            assert failure is not None
            raise failure
        return best[1:]

    def _remap(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        remap = getattr(self.model, "remap_state_dict", None)
        if remap is None:
            return tensors
        try:
            return dict(remap(dict(tensors)))
        except Exception as error:
            raise ZooError(
                f"{self.source} is not for {type(self.model).__name__}: its names cannot be mapped "
                f"({type(error).__name__}: {error})"
            ) from error

    # shapes

    def _compare(self) -> None:
        heads = tuple(f"{name}." for name in head_names(self.model))
        other_classes, unfit_head = set(), False
        self.kept = [n for n, t in self.given.items() if n in self.own and _same(t, self.own[n])]
        for name, theirs in self.given.items():
            mine = self.own.get(name)
            if mine is None or _fits(theirs, mine):
                continue
            self.mismatched[name] = _describe(theirs, mine)
            if name.startswith(heads):
                if theirs.dim() == mine.dim() >= 1 and theirs.shape[1:] == mine.shape[1:]:
                    other_classes.add(next(h for h in heads if name.startswith(h)))
                else:
                    unfit_head = True
        # Only the number of classes may differ, and then the whole classifier is left out.
        if other_classes and not unfit_head:
            self.head = [n for n in self.own if n.startswith(tuple(other_classes))]
            for name in self.head:
                self.mismatched.pop(name, None)
        self.copies = [
            n
            for n in self.given
            if n in self.own and n not in {*self.mismatched, *self.head, *self.kept}
        ]
        self.unexpected = [n for n in self.given if n not in self.own]
        if heads and not any(n.startswith(heads) for n in self.own):
            self.dropped_head = [n for n in self.unexpected if n.startswith(heads)]
            self.unexpected = [n for n in self.unexpected if n not in self.dropped_head]
        filled = {id(self.own[n]) for n in self.copies}
        self.missing = [
            n
            for n, tensor in self.own.items()
            if n not in self.given and n not in self.head and id(tensor) not in filled
        ]
        for name in self.copies:
            before, after = self.given[name].dtype, self.own[name].dtype
            if before != after:
                self.converted[f"{_short(before)} -> {_short(after)}"] += 1

    def _check_meta(self) -> None:
        lost = [n for n, tensor in self.unsaved.items() if tensor.is_meta]
        if lost:
            raise ZooError(
                f"{type(self.model).__name__} on the meta device has buffers that no checkpoint "
                f"holds ({some(lost)}): build it on a real device"
            )
        unset = [n for n in self.copies if self.given[n].is_meta]
        unset += [n for n in (*self.kept, *self.missing, *self.mismatched)]
        for name in self.head:
            module = self.model.get_submodule(name.rpartition(".")[0])
            unset += [] if hasattr(module, "reset_parameters") else [name]
        self.unset = [n for n in unset if self.own[n].is_meta]

    @property
    def problems(self) -> bool:
        """Whether anything does not fit."""
        return bool(self.missing or self.unexpected or self.mismatched)

    def complaint(self) -> str:
        """What does not fit, and what would help."""
        name, total = type(self.model).__name__, len(self.own)
        parts = [
            f"{self.source} does not fit {name}: {len(self.copies)} of its {total} tensors would"
        ]
        if self.mismatched:
            parts.append(f"other shapes (checkpoint / model): {some_pairs(self.mismatched)}")
        if self.missing:
            parts.append(f"missing in the checkpoint: {some(self.missing)}")
        if self.unexpected:
            parts.append(f"unknown to the model: {some(self.unexpected)}")
        return ". ".join([*parts, self._advice()])

    def _advice(self) -> str:
        heads = tuple(f"{name}." for name in head_names(self.model))
        if not self.copies and not self.mismatched:
            return "It is of another model, or its weights stand under another key="
        if self.mismatched and not self.missing and not self.unexpected:
            if len(self.mismatched) == 1 and next(iter(self.mismatched)).endswith("pos_embed"):
                return "Build the model for the picture size of the checkpoint"
            return "Build the model with the checkpoint's sizes; only a classifier may differ"
        if heads and self.missing and all(n.startswith(heads) for n in self.missing):
            return "The checkpoint has no classifier: use num_classes=0, or strict=False"
        return "Choose the variant that the checkpoint is of, or load what fits with strict=False"

    # values

    def check_values(self) -> None:
        """Two names of one parameter must have one value, and all parameters must have some."""
        if self.unset:
            raise ZooError(
                f"{some(self.unset)} would have no values: the model is on the meta device, build "
                "it on a real one"
            )
        first: dict[int, str] = {}
        for name in self.copies:
            other = first.setdefault(id(self.own[name]), name)
            if other != name and not torch.equal(self.given[other], self.given[name]):
                raise ZooError(
                    f"{self.source} has different values for '{other}' and '{name}', which are one "
                    f"parameter in {type(self.model).__name__}: build it with untied weights"
                )

    @torch.no_grad()
    def carry_out(self) -> None:
        """Copy; parameters on the meta device get memory here."""
        made: dict[int, Tensor] = {}
        for name in self.copies:
            mine = self.own[name]
            if not mine.is_meta:
                mine.copy_(self.given[name])
                continue
            if id(mine) not in made:
                real = torch.empty(mine.shape, dtype=mine.dtype).copy_(self.given[name])
                if isinstance(mine, nn.Parameter):
                    real = nn.Parameter(real, requires_grad=mine.requires_grad)
                made[id(mine)] = real
            _assign(self.model, name, made[id(mine)])
        # A parameter may have names that the file lacks; they follow the one that it has.
        for name, mine in self.own.items():
            if id(mine) in made:
                _assign(self.model, name, made[id(mine)])
        for name in dict.fromkeys(n.rpartition(".")[0] for n in self.head):
            module = self.model.get_submodule(name)
            if any(p.is_meta for p in module.parameters(recurse=False)):
                module.to_empty(device="cpu", recurse=False)
                module.reset_parameters()  # type: ignore[operator]


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    module, _, attribute = name.rpartition(".")
    owner = model.get_submodule(module)
    store = owner._parameters if attribute in owner._parameters else owner._buffers
    store[attribute] = tensor  # type: ignore[assignment]


def _without_prefixes(tensors: dict[str, Tensor]) -> Iterable[tuple[str, dict[str, Tensor]]]:
    """The names as they are, then without one, two, three of the known prefixes."""
    candidates = [("", tensors)]
    for _ in range(4):
        yield from candidates
        shorter = []
        for taken, candidate in candidates:
            for prefix in PREFIXES:
                renamed = {n.removeprefix(prefix): t for n, t in candidate.items()}
                changed = renamed.keys() != candidate.keys()
                if changed and len(renamed) == len(candidate):
                    shorter.append((taken + prefix, renamed))
        candidates = shorter


def _same(theirs: Tensor, mine: Tensor) -> bool:
    """Whether a name map gave back the model's own parameter."""
    return not mine.is_meta and theirs.numel() > 0 and theirs.data_ptr() == mine.data_ptr()


def _not_passed_on(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names whose memory appears nowhere behind the name map, neither whole nor in part."""
    starts = sorted(t.data_ptr() for t in after.values() if not t.is_meta)

    def lost(name: str, tensor: Tensor) -> bool:
        if name in after or tensor.numel() == 0:
            return False
        place = bisect_left(starts, tensor.data_ptr())
        return place == len(starts) or starts[place] >= tensor.data_ptr() + tensor.nbytes

    return [name for name, tensor in before.items() if lost(name, tensor)]


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_complex(), tensor.is_floating_point()


def _fits(theirs: Tensor, mine: Tensor) -> bool:
    return theirs.shape == mine.shape and _kind(theirs) == _kind(mine)


def _describe(theirs: Tensor, mine: Tensor) -> tuple[str, str]:
    if theirs.shape != mine.shape:
        return str(list(theirs.shape)), str(list(mine.shape))
    return (
        f"{list(theirs.shape)} {_short(theirs.dtype)}",
        f"{list(mine.shape)} {_short(mine.dtype)}",
    )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
