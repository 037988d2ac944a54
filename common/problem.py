"""The one family of errors of the programs: a status and a sentence that says what happened and what to do."""

from __future__ import annotations


class Problem(Exception):
    """`status` is what an HTTP API answers (RFC 9110, 15), `headers` what it adds. `close`: nothing more can be read
    on the connection. Subclasses are there only where somebody tells them apart."""

    def __init__(self, status: int, message: str, headers: dict | None = None, close: bool = False):
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.close = close
