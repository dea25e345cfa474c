"""Threads for processors' blocking work: a message that takes long to read, or a DNS that does not answer, must not
delay the spool's files.

A step's time limit ends the wait, not the thread, so that the number of threads limits the damage of hostile mail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Messages that are read or written at once, and those that wait for the DNS.
_content = ThreadPoolExecutor(4, "content")
_names = ThreadPoolExecutor(16, "names")


async def reading(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Return the result of a function that reads a whole message or writes a file."""
    return await asyncio.get_running_loop().run_in_executor(_content, lambda: function(*arguments, **named))


async def asking_names(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Return the result of a function that asks the DNS."""
    return await asyncio.get_running_loop().run_in_executor(_names, lambda: function(*arguments, **named))
