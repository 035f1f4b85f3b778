# SPDX-License-Identifier: GPL-3.0-or-later
"""What is wrong with the user's data, in our words: pydantic's errors, a line each."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


class DataError(Exception):
    """The user's data is wrong; `mistakes` has one line for each mistake."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


REQUIRED = {
    "homes": 'write homes = [{"name": "fritzbox", "hostname": "xxx.myfritz.net"}]',
    "name": 'write "name": "fritzbox" or another short name',
    "hostname": 'write "hostname": "xxx.myfritz.net", the DNS name of the home',
    "home": "write the name of the home that the forward leads to",
    "protocol": 'write "protocol": "tcp" or "udp"',
    "port": 'write "port": 44444, the port on the VPS, or a range such as "8000-8010"',
}
"""What to write for a key that is missing."""


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """A line for each thing that is wrong with the data that `model` was made from."""
    return [_explain(each, model) for each in error.errors()]


def _explain(error: Any, model: type[BaseModel]) -> str:
    location, kind, value = error["loc"], error["type"], error["input"]
    if kind in ("extra_forbidden", "invalid_key") and not str(location[-1]).isidentifier():
        return f"{_where(location[:-1]) or 'data'}: no such key {location[-1]!r}"
    where = _where(location)
    if kind == "value_error":
        return f"{where}: {error['ctx']['error']}"
    if kind == "missing":
        return f"{where}: is missing; {REQUIRED[location[-1]]}"
    if kind == "extra_forbidden":
        return f"{where}: no such key{_suggest(location, model)}"
    if kind in ("tuple_type", "list_type"):
        return f"{where}: {value!r} is not a list; write {location[0]} = [{{...}}, {{...}}]"
    return f'{where}: {value!r} is not a dict; write {{"key": value, ...}}'


def _where(location: tuple[int | str, ...]) -> str:
    """forwards[1].port, as one would write it in Python."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith("function-"):
            text += f".{part}" if text else str(part)
    return text


def _suggest(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    for part in location[:-1]:
        if isinstance(part, str):
            model = _model_in(model.model_fields[part].annotation) or model
    known = list(model.model_fields)
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; the keys are {', '.join(known)}"


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that a value of this type is made of: Smtp of `Smtp | None`, Home of `tuple[Home, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
