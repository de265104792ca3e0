"""The handles of a pool.

Owns: which kinds of handles a pool makes, and their options. Refuses to know: what is behind the
gate that they call.

Invariant: making a handle does no I/O, and is possible before the pool is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy.typing as npt

from tritonasync.batching.padding import Padder
from tritonasync.core.policies import Padding
from tritonasync.handles.classifier import Activation, Classifier
from tritonasync.handles.detector import DecoderChoice, Detector
from tritonasync.handles.encoder import Encoder
from tritonasync.handles.frames import Layout
from tritonasync.handles.generator import Generator
from tritonasync.handles.model import ModelHandle
from tritonasync.handles.slot import Casting
from tritonasync.transport.gate import Gate


class HandleFactory:
    """Makes handles; a pool is one.

    Args:
        gate: The first stage.
        timeout_s: Seconds for a call that gives none of its own.
    """

    def __init__(self, gate: Gate, timeout_s: float) -> None:
        self._gate = gate
        self._timeout_s = timeout_s

    def model(
        self,
        name: str,
        version: str = "",
        *,
        casting: Casting = "safe",
        padding: Padding | None = None,
        idempotent: bool = True,
    ) -> ModelHandle:
        """Return a handle that takes and gives tensors by name. No I/O; make it where needed.

        Args:
            name: The model's name.
            version: A version of it; empty for the server's choice (its latest).
            casting: Which arrays are converted to the model's dtype unasked, in numpy's words.
            padding: How rows of different lengths share a batch, for a model with a free axis.
            idempotent: Whether it does no harm if the model runs twice. If not, a call is sent
                again only where it certainly did not run. (Classifiers, detectors and encoders are
                taken to be idempotent.)

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return ModelHandle(
            name,
            version,
            self._gate if padding is None else Padder(self._gate),
            self._gate,
            timeout_s=self._timeout_s,
            casting=casting,
            padding=padding,
            idempotent=idempotent,
            lane=self._gate.lane,
            streamer=self._gate,
            lend=self._gate.lend,
        )

    def classifier(
        self,
        name: str,
        version: str = "",
        *,
        input_name: str | None = None,
        output_name: str | None = None,
        labels: Sequence[str] | None = None,
        activation: Activation = "softmax",
        casting: Casting = "safe",
    ) -> Classifier:
        """Return a handle that gives a score for each class. The options are `Classifier`'s.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return Classifier(
            name,
            version,
            self._gate,
            self._gate,
            timeout_s=self._timeout_s,
            input_name=input_name,
            output_name=output_name,
            labels=labels,
            activation=activation,
            casting=casting,
        )

    def detector(
        self,
        name: str,
        version: str = "",
        *,
        input_name: str | None = None,
        outputs: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        decoder: DecoderChoice = "auto",
        layout: Layout | None = None,
        image_size: tuple[int, int] | None = None,
        score_threshold: float = 0.25,
        iou_threshold: float | None = 0.45,
        max_detections: int = 300,
        class_agnostic: bool = False,
    ) -> Detector:
        """Return a handle that finds objects in images. The options are `Detector`'s.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return Detector(
            name,
            version,
            self._gate,
            self._gate,
            timeout_s=self._timeout_s,
            input_name=input_name,
            outputs=outputs,
            labels=labels,
            decoder=decoder,
            layout=layout,
            image_size=image_size,
            score_threshold=score_threshold,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            class_agnostic=class_agnostic,
        )

    def encoder(
        self,
        name: str,
        version: str = "",
        *,
        input_name: str | None = None,
        output_name: str | None = None,
        normalize: bool = False,
        casting: Casting = "safe",
    ) -> Encoder:
        """Return a handle that gives a vector for each row. The options are `Encoder`'s."""
        return Encoder(
            name,
            version,
            self._gate,
            self._gate,
            timeout_s=self._timeout_s,
            input_name=input_name,
            output_name=output_name,
            normalize=normalize,
            casting=casting,
        )

    def generator(
        self,
        name: str,
        version: str = "",
        *,
        prompt_input: str | None = None,
        output_name: str | None = None,
        cumulative: bool = False,
        inputs: Mapping[str, npt.ArrayLike] | None = None,
        errors: str = "replace",
    ) -> Generator:
        """Return a handle that generates text, piece by piece. The options are `Generator`'s.

        Raises:
            ConfigurationError: An option makes no sense.
        """
        return Generator(
            name,
            version,
            self._gate,
            self._gate,
            self._gate,
            timeout_s=self._timeout_s,
            prompt_input=prompt_input,
            output_name=output_name,
            cumulative=cumulative,
            inputs=inputs,
            errors=errors,
        )
