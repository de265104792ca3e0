"""Models that turn texts, images or vectors into embeddings.

Owns: what is encoded how, the course of a call with texts of several lengths, and how one vector is
made of many. Refuses to know: which inputs take tokens (``tokens`` does), how rows are filled up
(``textrows``), where tokenizers come from (``tokenizer``), pixels (``images``).
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from functools import partial
from typing import Final, TypeAlias, Unpack, cast, get_args

import numpy as np
import numpy.typing as npt

from tritonasync.core.deadline import NEVER, Deadline
from tritonasync.core.errors import ConfigurationError, InvalidInputError, ProtocolError
from tritonasync.core.offload import LONG_NBYTES, in_worker, reply_nbytes
from tritonasync.core.ports import Invoker, ModelCatalog
from tritonasync.core.values import Reply, TensorSpec
from tritonasync.handles.architecture import Plug
from tritonasync.handles.base import Prepared, Request
from tritonasync.handles.binding import Binding, bind_one
from tritonasync.handles.flow.bulk import Mappable
from tritonasync.handles.lanes import FindLane, no_lane
from tritonasync.handles.row import RowHandle
from tritonasync.handles.side_by_side import side_by_side
from tritonasync.handles.signature import Signature
from tritonasync.handles.slot import Casting, shape_text
from tritonasync.handles.text.pooling import POOLS, Pooling, pooled
from tritonasync.handles.text.textrows import (
    TextGroup,
    TextOptions,
    TextRows,
    text_options,
    text_rows,
)
from tritonasync.handles.text.texts import in_form, is_text, text_list, texts_nbytes
from tritonasync.handles.text.tokenizer import TextTokenizer, TokenizerLike, Tokens, tokenizer_of
from tritonasync.handles.text.tokens import (
    TokenNames,
    bind_tokens,
    token_inputs_text,
    vector_output,
)
from tritonasync.handles.typed import Feed
from tritonasync.handles.vision.images import (
    ImageLike,
    ImageOptions,
    are_images,
    canvas_of,
    image_rules,
)
from tritonasync.processing.vectors import l2_normalise

Embeddings: TypeAlias = npt.NDArray[np.float32]
"""``[N, D]``, or ``[D]`` of one item."""

_MAX_INFLIGHT: Final = 4
"""Calls of one list of texts that are out at once, as the parts of a large call are."""

_NBYTES_A_CHARACTER: Final = LONG_NBYTES // 2000
"""Of work: 2,000 characters take about 0.8 ms to tokenise, and a worker thread costs 0.1 ms."""


class Encoder(RowHandle[Embeddings], Mappable[ImageLike, Embeddings]):
    """A model that gives one vector for each row: of texts, images, or arrays.

    A model with a BYTES input takes texts: a list of ``str`` (sent as UTF-8) or ``bytes``. With a
    ``tokenizer``, texts are tokenised here, for a model that takes tokens; those of many callers
    share batches with others of about their length. A model of images takes images of any kind and
    size. Any other takes arrays, checked as any model's; so does a model of images, of its input's
    own shape.

    The output is ``[batch, D]``; or ``[batch, tokens, D]``, with a ``pooling``. A model whose
    ``max_batch_size`` is 0 may have its batch in axis 0 all the same.

    Args:
        name: The model's name.
        version: The model's version; ``""`` for the server's choice.
        invoker: The next stage. It applies the padding of calls, if texts are tokenised here.
        catalog: Where signatures come from.
        timeout_s: Seconds for a call that gives none of its own; ``None`` for no limit.
        input_name: The input to feed, with the tokens' numbers if there are several for tokens; may
            be left out if there is only one, or it has a usual name.
        output_name: The output to read; may be left out if there is only one of its kind.
        normalize: Whether vectors are scaled to length 1 (a zero vector stays zero).
        pooling: How the vectors of a row's tokens become one.
        tokenizer: The path of a ``tokenizer.json`` or of a folder with one, or a
            ``tokenizers.Tokenizer``, which is copied. Read at first use, once for all handles.
        max_length: The most tokens of a text, special ones included; ``None`` for what the
            tokenizer's files and the model's input say.
        truncate: Whether longer texts are cut to that, and not refused.
        buckets: The lengths that texts are filled up to; empty for the longest of each batch;
            ``None`` for 16, 32, 64, … and the most tokens of a text.
        mask_name: The input that takes the mask, if it has no usual name.
        token_types_name: The input that takes the tokens' types, if it has no usual name.
        positions_name: The input that takes the tokens' positions, if it has no usual name.
        casting: Which arrays are converted to the model's dtype unasked.
        plug: An architecture of the user's, in place of the steps before and after the model.
        lane: Gives the short way of items like those of a call, if there is one.
        **images: How images are prepared; see `ImageOptions`. They are stretched to the model's
            size unless told otherwise.

    Raises:
        ConfigurationError: An option makes no sense.
    """

    def __init__(
        self,
        name: str,
        version: str,
        invoker: Invoker,
        catalog: ModelCatalog,
        *,
        timeout_s: float | None,
        input_name: str | None = None,
        output_name: str | None = None,
        normalize: bool = False,
        pooling: Pooling | None = None,
        tokenizer: TokenizerLike | None = None,
        max_length: int | None = None,
        truncate: bool = False,
        buckets: Sequence[int] | None = None,
        mask_name: str | None = None,
        token_types_name: str | None = None,
        positions_name: str | None = None,
        casting: Casting = "safe",
        plug: Plug | None = None,
        lane: FindLane = no_lane,
        **images: Unpack[ImageOptions],
    ) -> None:
        super().__init__(
            name,
            version,
            invoker,
            catalog,
            timeout_s=timeout_s,
            casting=casting,
            plug=plug,
            lane=lane,
        )
        if pooling is not None and pooling not in get_args(Pooling):
            raise ConfigurationError(
                f"encoder {name!r}: pooling is one of {', '.join(get_args(Pooling))}, not "
                f"{pooling!r}"
            )
        self._input_name = input_name
        self._output_name = output_name
        self._normalize = normalize
        self._pooling: Pooling | None = pooling
        self._texts = text_options(
            name,
            tokenizer,
            max_length=max_length,
            truncate=truncate,
            buckets=buckets,
            names=TokenNames(input_name, mask_name, token_types_name, positions_name),
        )
        self._rules = image_rules(f"encoder {name!r}", images, resize="stretch")
        if self._texts is not None and self._rules.given:
            raise ConfigurationError(
                f"encoder {name!r}: {', '.join(images)} is for images, and tokenizer for texts; "
                "make a handle for each"
            )
        if self._texts is not None and plug is not None and plug.postprocess is not None:
            raise ConfigurationError(
                f"encoder {name!r}: tokenizer is of no use to {plug.subject}, which has a "
                "postprocess; let its preprocess make tokens, or leave out its postprocess"
            )

    async def __call__(
        self,
        batch: npt.ArrayLike | Sequence[str | bytes] | Sequence[ImageLike],
        *,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """Encode a batch.

        Args:
            batch: A list of texts or of images, or an array whose axis 0 is the batch.
            timeout_s: Seconds for this call; ``None`` for the pool's, ``math.inf`` for no limit.

        Returns:
            float32 ``[N, D]``, in the order of the batch. A read-only view on the received message
            if the model gives FP32 and nothing is done to it; an array of your own otherwise.

        Raises:
            InvalidInputError: The batch does not fit the model's input; a text is empty, or longer
                than the model takes.
            ConfigurationError: The options do not fit the model: input, output, its shape.
            MissingExtraError: A package is not installed: ``tokenizers``, or Pillow.
            UsageError: The model is decoupled.
            DeadlineExceededError: The time ran out; ``stage`` says where.
            TransportError: Nobody answered, or not with vectors.
            ServerError: The server answered with an error.
        """
        return await self._run(batch, timeout_s, item=False)

    async def one(
        self, item: npt.ArrayLike | ImageLike, *, timeout_s: float | None = None
    ) -> Embeddings:
        """Encode one item: a text, an image, or the model's input without the batch axis.

        Returns:
            float32 ``[D]``, as of a batch.

        Raises:
            TritonError: As the call on a batch.
        """
        vectors, row = await self._one(item, timeout_s)
        return cast("Embeddings", vectors[row])

    async def _run(self, value: object, timeout_s: float | None, *, item: bool) -> Embeddings:
        if self._texts is None:
            return await super()._run(value, timeout_s, item=item)
        deadline = self._deadline(timeout_s)
        if self._plug is not None:
            items = self._plug.items(value, item=item)
            made = partial(self._plug.given, items)
            value = await in_worker(made, deadline=deadline, model=self._name)
            if isinstance(value, Sized):
                self._check_count(self._plug, len(value), len(items))
            item = False
        return await self._run_texts(self._texts, value, deadline, item=item)

    # --- arrays, images, and texts for a BYTES input ---

    def _bind(self, signature: Signature) -> Binding:
        output = self._output(signature)
        tokens = token_inputs_text(signature.spec)
        if tokens is not None:
            raise ConfigurationError(
                f"model {self._name!r} takes tokens: {tokens}; give tokenizer=, the path of its "
                f"tokenizer.json, to encode texts, or call it by pool.model({self._name!r})",
                model=self._name,
            )
        return bind_one(signature, self._input_name, output.name)

    def _output(self, signature: Signature) -> TensorSpec:
        of_tokens = None if self._pooling is None else self._pooling in POOLS
        return vector_output(signature.spec, self._output_name, of_tokens=of_tokens)

    def _feed(
        self, binding: Binding, value: object, *, item: bool, deadline: Deadline
    ) -> Feed[None]:
        if are_images(value, binding, item=item, rules=self._rules):
            images = [value] if item else value
            tensor = canvas_of(binding, self._rules).render(images, deadline).tensor
            return Feed(*binding.tensors(tensor, item=False), None)
        if binding.input.datatype == "BYTES":
            value = in_form(binding, value, item=item)
        elif is_text(value):
            raise self._no_texts(binding, value)
        return Feed(*binding.tensors(value, item=item), None)

    def _no_texts(self, binding: Binding, value: object) -> InvalidInputError:
        slot = binding.signature.slots[binding.input.name]
        return slot.refuse(
            f"expected {slot.element_text()}, got a {type(value).__name__}; a model that takes "
            "tokens wants a tokenizer= for texts"
        )

    def _goes_as_it_is(self, binding: Binding, value: object) -> bool:
        return not self._rules.given and binding.is_plain(value)

    def _work_nbytes(self, binding: Binding, value: object, *, item: bool) -> int:
        if self._goes_as_it_is(binding, value):
            return 0
        if are_images(value, binding, item=item, rules=self._rules):
            return canvas_of(binding, self._rules).work_nbytes([value] if item else value)
        return binding.signature.conversion_nbytes({binding.input.name: value})

    def _read(self, binding: Binding, reply: Reply, rows: int, context: None) -> Embeddings:
        del context
        return self._scaled(pooled(binding, reply, rows, None, self._pooling))

    # --- texts that are tokenised here ---

    async def _run_texts(
        self, options: TextOptions, value: object, deadline: Deadline, *, item: bool
    ) -> Embeddings:
        tokenizer = await tokenizer_of(options.tokenizer, deadline, self._name)
        texts, rows = await self._tokenised(tokenizer, value, deadline, item=item)

        def text_rows_of(signature: Signature) -> TextRows:
            inputs = bind_tokens(signature, options.names, self._output(signature))
            length, buckets = options.max_length, options.buckets
            return text_rows(inputs, tokenizer, length, buckets, truncate=options.truncate)

        def prepare(signature: Signature) -> Prepared[tuple[Binding, list[TextGroup]]]:
            model = text_rows_of(signature)
            groups = model.groups(model.fitting(rows, texts, item=item))
            return Prepared((), len(rows), (model.inputs.binding, groups))

        def work_nbytes(signature: Signature) -> int:
            return text_rows_of(signature).work_nbytes(rows)

        prepared = await self._prepared(prepare, work_nbytes, deadline)
        binding, groups = prepared.context
        send = partial(self._send_group, binding, deadline)
        replies = await side_by_side(send, groups, max_inflight=_MAX_INFLIGHT)
        read = partial(self._read_groups, binding, groups, replies)
        if sum(map(reply_nbytes, replies)) < LONG_NBYTES:
            return read()
        return await in_worker(read, deadline=NEVER, model=self._name)

    async def _tokenised(
        self, tokenizer: TextTokenizer, value: object, deadline: Deadline, *, item: bool
    ) -> tuple[list[str], list[Tokens]]:
        def work() -> tuple[list[str], list[Tokens]]:
            texts = text_list(value, self._name, item=item)
            return texts, tokenizer.tokens(texts, deadline, self._name)

        if texts_nbytes(value) * _NBYTES_A_CHARACTER < LONG_NBYTES:
            return work()
        return await in_worker(work, deadline=deadline, model=self._name)

    async def _send_group(self, binding: Binding, deadline: Deadline, group: TextGroup) -> Reply:
        rows, names = binding.call_rows(len(group.rows)), binding.output_names
        return await self._send(group.tensors, rows, names, Request(deadline), group.padding)

    def _read_groups(
        self, binding: Binding, groups: Sequence[TextGroup], replies: Sequence[Reply]
    ) -> Embeddings:
        parts = [
            pooled(binding, reply, len(group.rows), group.mask, self._pooling)
            for group, reply in zip(groups, replies, strict=True)
        ]
        if len(parts) == 1:
            return self._scaled(parts[0])
        if len({part.shape[1] for part in parts}) > 1:
            raise ProtocolError(
                f"model {self._name!r}, output {binding.output.name!r}: expected vectors of one "
                f"length, got {', '.join(shape_text(part.shape) for part in parts)}",
                model=self._name,
            )
        whole = np.concatenate(parts)
        vectors = np.empty_like(whole)
        vectors[np.concatenate([group.rows for group in groups])] = whole
        return self._scaled(vectors)

    # --- vectors ---

    def _scaled(self, vectors: Embeddings) -> Embeddings:
        return l2_normalise(vectors) if self._normalize else vectors

    def _adopt(self, made: object, rows: int, reply: Reply) -> Embeddings:
        del reply
        subject = "the architecture" if self._plug is None else self._plug.subject
        expected = f"numbers of shape [{rows}, D], one vector for each item"
        try:
            array = np.asarray(made)
            got = f"{array.dtype} {shape_text(array.shape)}"
        except ValueError as error:
            array, got = np.empty(0), f"{type(made).__name__}: {error}"
        if array.dtype.kind not in "iuf" or array.ndim != 2 or len(array) != rows:
            raise ConfigurationError(
                f"model {self._name!r}: expected the postprocess of {subject} to return "
                f"{expected}, got {got}",
                model=self._name,
            )
        with np.errstate(over="ignore"):
            return self._scaled(array.astype(np.float32, copy=False))
