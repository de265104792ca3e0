"""Triton's classification extension: a server names the classes of an output.

Owns: the request's parameter, and the form of the answer (``score:index`` or
``score:index:label``). Refuses to know: whether to ask (``labels``).

Source: Triton's extension "classification" of the KServe v2 protocol; tried on server 2.51.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from tritonasync.core.errors import ProtocolError
from tritonasync.core.offload import LONG_NBYTES, in_worker
from tritonasync.core.values import ClassQuestion
from tritonasync.transport.endpoint import Endpoint
from tritonasync.transport.protobuf import pb
from tritonasync.transport.unary import read_answer
from tritonasync.wire.encode import encode_request, encode_small


async def ask_labels(endpoint: Endpoint, question: ClassQuestion) -> tuple[str, ...]:
    """Ask a server to name the classes of an output, by the question's deadline.

    Raises as :meth:`UnaryInvoker.infer` does.
    """
    call = replace(question.call, outputs=())
    message = encode_small(call, LONG_NBYTES)
    if message is None:
        encode = partial(encode_request, call)
        message = await in_worker(encode, deadline=call.deadline, model=call.model)
    answer = await endpoint.exchange(
        "ModelInfer",
        message + _wanted(question),
        call.deadline,
        stage="metadata",
        model=call.model,
        repeatable=call.idempotent,
    )
    reply = await read_answer(answer, call, endpoint.target)
    strings = reply.outputs.get(question.output)
    if strings is None or strings.dtype != object:
        raise _unreadable(question, "no such strings in the answer")
    return parsed_labels(question, strings.ravel().tolist())


def _wanted(question: ClassQuestion) -> bytes:
    """Return the output that is wanted, as a request: put behind another, it is part of that."""
    request = pb.ModelInferRequest()
    wanted = request.outputs.add(name=question.output)
    wanted.parameters["classification"].int64_param = question.classes
    return bytes(request.SerializeToString())


def parsed_labels(question: ClassQuestion, entries: Iterable[bytes]) -> tuple[str, ...]:
    """Return the names by class, of entries in any order; ``""`` for a class without one.

    Raises:
        ProtocolError: An entry has another form, or a class that the output does not have.
    """
    names = [""] * question.classes
    for entry in entries:
        _, _, rest = entry.partition(b":")
        index, _, name = rest.partition(b":")  # a name may have colons of its own
        if not index.isdigit() or int(index) >= question.classes:
            raise _unreadable(question, f"{entry!r} among {question.classes} classes")
        text = name.decode(errors="replace")
        if int(index) == 0:  # the file's first line, which a byte order mark may stand before
            text = text.removeprefix("\ufeff")
        names[int(index)] = text.strip()
    return tuple(names) if any(names) else ()


def _unreadable(question: ClassQuestion, got: str) -> ProtocolError:
    model = question.call.model
    return ProtocolError(
        f"model {model!r}, output {question.output!r}: expected classes as score:index:label, got "
        f"{got}",
        model=model,
    )
