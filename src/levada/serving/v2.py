"""The Open Inference Protocol, version 2, over HTTP and JSON: what KServe, Triton and MLServer speak.

A model has one input of shape (n, 1) a feature. A model whose features are all of type double also takes them as the
columns of one tensor of shape (n, features), as clients of scikit-learn servers send it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import orjson

from levada.event import Violation
from levada.http.problem import Problem
from levada.scoring import Feature
from levada.serving.forms import EXPLAINED_BYTES, MAX_INSTANCES, NOT_PLAIN, Row, parse, wrong
from levada.serving.loaded import Loaded, Outcomes, Scores, Write

_ACCEPTED: Final = {
    "double": ("FP64", "FP32", "FP16"),
    "long": ("INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8"),
    "boolean": ("BOOL",),
    "string": ("BYTES",),
}
"""Declared type → data types, the model's own first."""
_PLATFORM: Final = "onnxruntime"

_Scalar = float | int | str | bool | None


class _Tensor(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(min_length=1, max_length=2)]
    datatype: str
    data: list[_Scalar | list[_Scalar]]
    parameters: msgspec.Raw = msgspec.Raw()


class _Output(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: str
    parameters: msgspec.Raw = msgspec.Raw()


class _Infer(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    inputs: list[_Tensor]
    id: str | None = None
    outputs: list[_Output] = []
    parameters: msgspec.Raw = msgspec.Raw()


_DECODER: Final = msgspec.json.Decoder(_Infer)


def read(model: Loaded, body: bytes) -> tuple[Sequence[Row], Write]:
    """The rows of an inference request, and how it is answered.

    Raises:
        Problem: 400 for what is no JSON, 422 for tensors that are not of the model's features, with their names.
    """
    form = model.form
    # Lists take many times the room of their brackets.
    if body.count(b"[") > (MAX_INSTANCES + 10) * (len(form.features) + 1):
        raise wrong("inputs", "size", f"must hold between 1 and {MAX_INSTANCES} rows")
    infer, broken = _decode(body)
    write = _writer(model, infer)
    columns = list(_columns(form.features, {tensor.name: tensor for tensor in infer.inputs}, len(infer.inputs)))
    found = list(zip(*columns, strict=True))
    if broken is None:
        try:
            rows: list[Row] = msgspec.convert(found, list[form.row_type])  # type: ignore[name-defined]
        except NOT_PLAIN:
            pass
        else:
            return rows, write
    names = [feature.name for feature in form.features]
    rows = form.checked([dict(zip(names, row, strict=True)) for row in found])
    if broken is not None:
        raise broken
    return rows, write


def _decode(body: bytes) -> tuple[_Infer, Problem | None]:
    try:
        return _DECODER.decode(body), None
    except msgspec.ValidationError as error:
        raise _refusal(error) from None
    except NOT_PLAIN as error:
        if len(body) > EXPLAINED_BYTES:
            raise Problem(400, f"the body is not JSON: {str(error)[:200]}") from None
    request, broken = parse(body)
    try:
        return msgspec.convert(request, _Infer), broken
    except msgspec.ValidationError as error:
        raise broken or _refusal(error) from None


def _refusal(error: Exception) -> Problem:
    return wrong("", "type", f"this is no inference request: {error}"[:200])


def _columns(features: Sequence[Feature], tensors: dict[str, _Tensor], given: int) -> Iterable[Sequence[Any]]:
    """The values of each feature, in the order of the features."""
    names = [feature.name for feature in features]
    if given == 1 and len(features) > 1 and not tensors.keys() & set(names):
        yield from _matrix(features, next(iter(tensors.values())))
        return
    unknown = [
        Violation(name, "unknown", "is no feature of this model; take it out") for name in tensors.keys() - set(names)
    ]
    missing = [Violation(f.name, "required", "is missing") for f in features if f.required and f.name not in tensors]
    if unknown or missing:
        raise Problem(422, "the inputs are not the model's features", errors=[*unknown, *missing])
    if len(tensors) != given:
        raise wrong("inputs", "unique", "holds one name twice")
    rows = {name: _rows(tensor) for name, tensor in tensors.items()}
    count = max(rows.values(), default=0)
    if not 0 < count <= MAX_INSTANCES:
        raise wrong("inputs", "size", f"must hold between 1 and {MAX_INSTANCES} rows")
    for feature in features:
        tensor = tensors.get(feature.name)
        if tensor is None:
            yield [None] * count
            continue
        if rows[feature.name] != count or tensor.shape[1:] not in ([], [1]):
            raise wrong(feature.name, "shape", f"must be of shape [{count}] or [{count}, 1], as the longest input is")
        yield _values(feature, tensor, 1)


def _matrix(features: Sequence[Feature], tensor: _Tensor) -> Iterable[Sequence[Any]]:
    width = len(features)
    if any(feature.type != "double" for feature in features) or tensor.shape[1:] != [width]:
        names = ", ".join(feature.name for feature in features)
        raise wrong(tensor.name, "unknown", f"is no feature of this model; it takes {names}"[:300])
    if not 0 < tensor.shape[0] <= MAX_INSTANCES:
        raise wrong(tensor.name, "size", f"must hold between 1 and {MAX_INSTANCES} rows")
    values = _values(Feature(tensor.name, "double", True), tensor, width)
    return [values[number::width] for number in range(width)]


def _rows(tensor: _Tensor) -> int:
    return tensor.shape[0]


def _values(feature: Feature, tensor: _Tensor, width: int) -> list[Any]:
    accepted = _ACCEPTED[feature.type]
    if tensor.datatype not in accepted:
        raise wrong(feature.name, "datatype", f"must be {accepted[0]}")
    nested = bool(tensor.data) and isinstance(tensor.data[0], list)
    if any(isinstance(value, list) is not nested or (nested and len(value) != width) for value in tensor.data):  # type: ignore[arg-type]
        raise wrong(feature.name, "shape", f"data must be flat, or one array of {width} a row")
    values = list(chain.from_iterable(tensor.data)) if nested else tensor.data  # type: ignore[arg-type]
    if len(values) != tensor.shape[0] * width:
        raise wrong(feature.name, "shape", "data does not have as many values as the shape says")
    return values


def _outputs(model: Loaded) -> list[dict[str, Any]]:
    labels = model.model.meta.labels
    if not labels:
        return [{"name": "value", "datatype": "FP64", "shape": [-1]}]
    kind = {bool: "BOOL", int: "INT64", float: "FP64"}.get(type(labels[0]), "BYTES")
    return [
        {"name": "label", "datatype": kind, "shape": [-1]},
        {"name": "probabilities", "datatype": "FP64", "shape": [-1, len(labels)], "parameters": {"labels": labels}},
    ]


def _writer(model: Loaded, infer: _Infer) -> Write:
    offered = {each["name"]: each for each in _outputs(model)}
    names = [output.name for output in infer.outputs] or [next(iter(offered))]
    for name in names:
        if name not in offered:
            raise wrong("outputs", "unknown", f"{name[:64]} is no output of this model: it has {', '.join(offered)}")

    def write(model: Loaded, outcomes: Outcomes, scores: Scores) -> bytes:
        outputs = []
        for name in names:
            data: Any
            if name == "probabilities":
                data = np.asarray(scores, np.float64).ravel().tolist()
            else:
                data = [model.label(outcome) for outcome in outcomes]
            outputs.append({**offered[name], "shape": [len(outcomes), *offered[name]["shape"][1:]], "data": data})
        answer = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
        if infer.id is not None:
            answer["id"] = infer.id
        return orjson.dumps(answer)

    return write


def metadata(model: Loaded) -> dict[str, Any]:
    """What ``GET /v2/models/{name}`` tells."""
    inputs = [
        {"name": f.name, "datatype": _ACCEPTED[f.type][0], "shape": [-1, 1], "parameters": {"optional": not f.required}}
        for f in model.model.meta.features
    ]
    return {
        "name": model.name,
        "versions": [model.version],
        "platform": _PLATFORM,
        "inputs": inputs,
        "outputs": _outputs(model),
    }
