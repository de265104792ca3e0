"""ASGI's calls as types, so that no framework has to be imported for them.

The specification: https://asgi.readthedocs.io/en/latest/specs/www.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, object]
Message: TypeAlias = MutableMapping[str, object]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

Theirs: TypeAlias = Any
"""A framework's own type of one of these, or of a handler. Litestar's fit neither Starlette's nor
those above, so that only this lets an application that is type-checked use what is given here."""
