"""Reads a list of requests, and tells of all that is wrong in it at once, each by its place."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_provider_kling.api.errors import InvalidRequestError
from airflow_provider_kling.api.request import Fault, VideoRequest, find_faults
from airflow_provider_kling.arguments import comes_later, text_of
from airflow_provider_kling.output_path import OutputPath

REQUEST_FIELDS = tuple(VideoRequest.model_fields)
ITEM_FIELDS = (*REQUEST_FIELDS, "output_path")
"""What an item of the list may hold."""


@dataclass(frozen=True)
class Item:
    """
    One video of the list.

    :param fields: of the request, the common ones filled in.
    :param output_path: where it is stored, None to leave it with the service.
    """

    fields: Mapping[str, Any]
    output_path: str | None = None

    @property
    def request(self) -> VideoRequest:
        """What is asked for. Raises :class:`InvalidRequestError` where that breaks a rule."""
        return VideoRequest(**self.fields)


def read_items(requests: Any, common: Mapping[str, Any]) -> list[Item]:
    """
    Read a list of requests, when templates are rendered.

    :param requests: a list of dicts of request fields, or the text that a template renders to.
    :param common: the fields that hold where an item does not name them; ``output_path`` among them.
    :raises InvalidRequestError: with every fault of the list's form. What the service allows is not looked at here.
    """
    items, faults = [], []
    for index, (value, fault) in enumerate(_values(requests)):
        if fault is not None:
            faults.append(at_place(index, fault))
            continue
        merged = {**common, **value}
        output_path = text_of(merged.pop("output_path", None))
        items.append(Item(merged, output_path))
    if faults:
        raise InvalidRequestError(faults)
    return items


def faults_of(items: Sequence[Item], conn_id: str | None) -> list[Fault]:
    """Find all that the service would refuse, and all places where nothing can be stored, before anything is sent."""
    found = []
    for index, item in enumerate(items):
        found += [at_place(index, fault) for fault in find_faults(item.fields)]
        if fault := output_fault(item.output_path, conn_id):
            found.append(at_place(index, fault))
    return found


def literal_faults(requests: Any, common: Mapping[str, Any]) -> list[Fault]:
    """Find what is wrong with arguments that are known when the Dag is parsed. What comes later is left alone."""
    if comes_later(requests) and not isinstance(requests, (list, tuple)):
        # What the list leaves out here may stand in it, so a rule that reads it has to wait.
        fields = {name: common.get(name) for name in REQUEST_FIELDS}
        late = frozenset(name for name, value in fields.items() if value is None or comes_later(value))
        return [*find_faults(fields, unknown=late), *_output_faults(common.get("output_path"))]
    found = []
    for index, (value, fault) in enumerate(_values(requests)):
        if comes_later(value) and not isinstance(value, Mapping):
            continue
        if fault is not None:
            found.append(at_place(index, fault))
            continue
        merged = {**common, **value}
        output_path = merged.pop("output_path", None)
        late = frozenset(name for name, its in merged.items() if comes_later(its))
        found += [at_place(index, its) for its in find_faults(merged, unknown=late)]
        found += [at_place(index, its) for its in _output_faults(output_path)]
    return found


def output_fault(output_path: Any, conn_id: str | None) -> Fault | None:
    """Tell what is wrong with a place for videos of a list, None where nothing is."""
    if output_path is None:
        return None
    try:
        output = OutputPath(output_path, conn_id)
    except ValueError as error:
        return Fault("output_path", output_path, str(error))
    if not output.tells_tasks_apart:
        return Fault(
            "output_path",
            output_path,
            "a directory, or a file's name with {kling_task_id}: the videos of a list would replace each other",
        )
    return None


def _output_faults(output_path: Any) -> list[Fault]:
    if output_path is None or comes_later(output_path):
        return []
    fault = output_fault(text_of(output_path), None)
    return [fault] if fault else []


def _values(requests: Any) -> Iterator[tuple[Any, Fault | None]]:
    """Return each item as a mapping, or with what is wrong with it."""
    for value in _list(requests):
        if isinstance(value, str) and not comes_later(value):
            yield {"prompt": value}, None
        elif not isinstance(value, Mapping):
            yield value, Fault("", value, "a dict of request fields, or a prompt as text")
        elif unknown := [name for name in value if name not in ITEM_FIELDS]:
            yield (
                value,
                Fault(
                    f".{unknown[0]}", value[unknown[0]], f"no such field; there are {', '.join(ITEM_FIELDS)}"
                ),
            )
        else:
            yield value, None


def _list(requests: Any) -> list[Any]:
    value = requests
    if isinstance(value, str):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(value.strip())
                break
            except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
                continue
    # What a mapped task returned comes as a sequence of Airflow's own.
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        raise InvalidRequestError(
            [
                Fault(
                    "requests",
                    requests,
                    "a list of dicts of request fields, or a template that renders to one",
                )
            ]
        )
    return list(value)


def at_place(index: int, fault: Fault) -> Fault:
    """Return what is wrong with a request as what is wrong with the list."""
    dot = "" if fault.field.startswith(".") or not fault.field else "."
    return Fault(f"requests[{index}]{dot}{fault.field}", fault.value, fault.allowed)
