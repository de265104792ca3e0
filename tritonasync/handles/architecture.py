"""A user's own steps before and after a model, in place of a handle's.

Owns: what a class must have to be an architecture, making one, calling its ``preprocess`` and
``postprocess``, and what these may give. Refuses to know: where architectures are registered, what
results mean.

Invariants: the methods run in worker threads, also several at once; what they raise goes to the
caller as it is, with a note that says where it comes from. ``preprocess`` may run twice for a call:
if it refuses what it is given, the model may have been reloaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType, MappingProxyType
from typing import Final, Generic, Never, Protocol, TypeAlias, TypeVar, cast

import numpy.typing as npt

from tritonasync.core.errors import ConfigurationError, InvalidInputError
from tritonasync.core.values import Array
from tritonasync.handles.binding import Binding

_C_co = TypeVar("_C_co", covariant=True)


class Preprocessing(Protocol):
    """A class with ``preprocess(inputs)``: makes what goes into the model of a batch of items."""

    def preprocess(self, inputs: Never, /) -> object:
        """Return the model's inputs; see the page on the registry."""


class Postprocessing(Protocol):
    """A class with ``postprocess(outputs)``: makes the results of a batch, one for each item."""

    @property
    def postprocess(self) -> Callable[..., object]:
        """Takes the outputs by name, and the context if ``preprocess`` gave one."""
        ...


Architecture: TypeAlias = Preprocessing | Postprocessing
"""What can be registered: a class with one of the two methods, or both."""


@dataclass(frozen=True, slots=True, eq=False)
class Preprocessed(Generic[_C_co]):
    """What ``preprocess`` may return to have ``postprocess`` get more than the outputs.

    Attributes:
        inputs: The model's inputs by name, axis 0 being the batch; or the array alone, if the model
            requires a single one.
        context: Given to ``postprocess`` as its second argument.
    """

    inputs: Mapping[str, npt.ArrayLike] | npt.ArrayLike
    context: _C_co


@dataclass(frozen=True, slots=True, eq=False)
class Plug:
    """An architecture, ready to be called.

    Attributes:
        subject: Which it is, for messages: ``architecture 'custom_detector'``.
        preprocess: Makes the model's inputs of a batch of items; ``None`` leaves it to the handle.
            If there is no ``postprocess``, what it makes is what the handle is given instead.
        postprocess: Makes the results of the outputs, one for each item; ``None`` leaves it to the
            handle.
    """

    subject: str
    preprocess: Callable[[Sequence[object]], object] | None = None
    postprocess: Callable[..., object] | None = None
    _takes: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        takes: Iterable[int] = () if self.postprocess is None else _counts(self.postprocess)
        object.__setattr__(self, "_takes", frozenset(takes))

    def items(self, value: object, *, item: bool) -> list[object]:
        """Return the items of a batch, or the one item.

        Raises:
            InvalidInputError: It is no batch, or an empty one.
        """
        if item:
            return [value]
        if isinstance(value, str | bytes | bytearray | Mapping):
            raise self._no_batch(cast("object", value))
        try:
            items = list(cast("Iterable[object]", value))
        except TypeError as error:
            raise self._no_batch(value) from error
        if not items:
            raise InvalidInputError(f"{self.subject}: expected a batch of items, got an empty one")
        return items

    def _no_batch(self, value: object) -> InvalidInputError:
        return InvalidInputError(
            f"{self.subject}: expected a batch of items, got {type(value).__name__}; use "
            "handle.one(item) for a single one"
        )

    def given(self, items: Sequence[object]) -> object:
        """Return what ``preprocess`` makes of items."""
        assert self.preprocess is not None  # noqa: S101 - only asked where there is one
        with self._noted("preprocess"):
            return self.preprocess(items)

    def inputs(self, made: object, binding: Binding) -> tuple[Mapping[str, object], object]:
        """Return the model's inputs by name of what ``preprocess`` made, and the context.

        Raises:
            ConfigurationError: It made something else.
        """
        if isinstance(made, Preprocessed):
            return self.inputs(made.inputs, binding)[0], cast("object", made)
        if isinstance(made, Mapping):
            return cast("Mapping[str, object]", made), None
        required = [tensor for tensor in binding.inputs if not tensor.optional] or binding.inputs
        if len(required) == 1 and made is not None:
            return {required[0].name: made}, None
        names = ", ".join(repr(tensor.name) for tensor in binding.inputs)
        raise ConfigurationError(
            f"model {binding.spec.name!r}: expected the preprocess of {self.subject} to return "
            f"arrays by the names of the model's inputs ({names}), got {type(made).__name__}",
            model=binding.spec.name,
        )

    def alone(self, made: object, binding: Binding) -> object:
        """Return what the handle is given of what ``preprocess`` made, if that is all there is."""
        if isinstance(made, Preprocessed):
            return self.alone(made.inputs, binding)
        if isinstance(made, Mapping):
            named = cast("Mapping[str, object]", made)
            return named[binding.input.name] if [*named] == [binding.input.name] else named
        return made

    def results(self, outputs: Mapping[str, Array], context: object, *, model: str) -> object:
        """Return what ``postprocess`` makes of the outputs.

        Raises:
            ConfigurationError: It takes a context and there is none, or the other way round.
        """
        assert self.postprocess is not None  # noqa: S101 - only asked where there is one
        arguments: tuple[object, ...] = (outputs,)
        if isinstance(context, Preprocessed):
            arguments = (outputs, cast("Preprocessed[object]", context).context)
        if len(arguments) not in self._takes:
            raise self._wrong_context(model, given=len(arguments) == 2)
        with self._noted("postprocess"):
            made = self.postprocess(*arguments)
            return [*cast("Iterator[object]", made)] if isinstance(made, Iterator) else made

    def _wrong_context(self, model: str, *, given: bool) -> ConfigurationError:
        if given:
            fault = "preprocess gives a context, and postprocess(outputs) takes none"
            mend = "write postprocess(outputs, context), or return the inputs alone"
        else:
            fault = "postprocess(outputs, context) takes a context, and preprocess gives none"
            mend = "return Preprocessed(inputs, context)"
        return ConfigurationError(f"model {model!r}, {self.subject}: {fault}; {mend}", model=model)

    @contextmanager
    def _noted(self, step: str) -> Generator[None]:
        try:
            yield
        except Exception as error:
            note = f"in the {step} of {self.subject}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            raise


_METHODS: Final[Mapping[str, str]] = {
    "preprocess": "preprocess(inputs)",
    "postprocess": "postprocess(outputs), or postprocess(outputs, context)",
}


def check_architecture(kind: object) -> None:
    """Refuse what cannot be registered as an architecture.

    Raises:
        ConfigurationError: It is no class, or has neither method, or they cannot be called.
    """
    if not isinstance(kind, type):
        raise ConfigurationError(
            f"expected a class with preprocess(inputs), postprocess(outputs) or both, got {kind!r}"
        )
    present = [name for name in _METHODS if getattr(kind, name, None) is not None]
    if not present:
        raise ConfigurationError(
            f"class {class_text(kind)} has neither preprocess(inputs) nor postprocess(outputs)"
        )
    for name in present:
        _check_method(kind, name)
    _arguments(kind, None)


def plug_of(kind: type, config: object, subject: str) -> Plug:
    """Return a new object of an architecture's class, ready to be called.

    It gets the config if its ``__init__`` must have an argument, or has one named ``config``.
    """
    args, options = _arguments(kind, config)
    made: object = kind(*args, **options)
    return Plug(subject, getattr(made, "preprocess", None), getattr(made, "postprocess", None))


def class_text(kind: type) -> str:
    """Return a class's name with its module, for messages."""
    module = getattr(kind, "__module__", "")  # there is none in code that was run without a name
    return f"{module}.{kind.__qualname__}" if module else kind.__qualname__


def _check_method(kind: type, name: str) -> None:
    method: object = getattr(kind, name)
    if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method):
        raise ConfigurationError(
            f"{class_text(kind)}.{name} is async: it is run in a worker thread, where nothing can "
            "be awaited; make it a plain method"
        )
    counts = range(1, 2 if name == "preprocess" else 3)
    if not callable(method) or not _counts(method, bound=_bound(kind, name)) & {*counts}:
        raise ConfigurationError(f"{class_text(kind)}.{name}: expected {_METHODS[name]}")


def _bound(kind: type, name: str) -> bool:
    """Return whether a class's method is called without an object before its arguments."""
    return not isinstance(inspect.getattr_static(kind, name), FunctionType)


def _counts(function: Callable[..., object], *, bound: bool = True) -> set[int]:
    """Return with how many arguments a function can be called, of one and two."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # written in C
        return {1, 2}
    itself = () if bound else (None,)
    return {count for count in (1, 2) if _binds(signature, (*itself, *(None,) * count))}


def _binds(
    signature: inspect.Signature,
    arguments: tuple[object, ...],
    options: Mapping[str, object] = MappingProxyType({}),
) -> bool:
    try:
        signature.bind(*arguments, **options)
    except TypeError:
        return False
    return True


def _arguments(kind: type, config: object) -> tuple[tuple[object, ...], dict[str, object]]:
    """Return what a class is made with.

    Raises:
        ConfigurationError: It can be made neither with the config nor without anything.
    """
    try:
        signature = inspect.signature(kind)
    except (TypeError, ValueError):  # written in C
        return (), {}
    named = signature.parameters.get("config")
    by_name = named is not None and named.kind in (named.POSITIONAL_OR_KEYWORD, named.KEYWORD_ONLY)
    if by_name and _binds(signature, (), {"config": config}):
        return (), {"config": config}
    if _binds(signature, ()):
        return (), {}
    if _binds(signature, (config,)):
        return (config,), {}
    raise ConfigurationError(
        f"class {class_text(kind)}: expected __init__(self) or __init__(self, config), got "
        f"{kind.__name__}{signature}"
    )
