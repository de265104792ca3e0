"""One attempt at a call, as the error that ends the call tells of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a call that failed in the end.

    Attributes:
        endpoint: The gRPC target tried.
        began_s: Seconds from the beginning of the call to that of the attempt.
        took_s: Seconds until it failed, or was given up.
        error: The name of its error's class.
        message: What that error said.
        hedge: Whether it was sent beside another one that was slow.
    """

    endpoint: str
    began_s: float
    took_s: float
    error: str
    message: str
    hedge: bool = False
