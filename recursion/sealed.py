"""Sealed files: safetensors with a format, a version, one JSON object and a digest of everything. No pickle in them."""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from recursion.files import explained, replace_file


class Format(NamedTuple):
    """A kind of sealed file."""

    name: str  # in the file
    word: str  # before its version in messages
    version: int
    what: str  # in messages
    if_damaged: str  # what to do
    if_older: str
    fields: Mapping[str, type | tuple[type, ...]]  # of its content


def write_sealed(path: Path, form: Format, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the file, whole or not at all. Raises OSError; then the file that was there before stays."""
    text = json.dumps(content)
    whole = {name: leaf.detach().cpu().clone(memory_format=torch.contiguous_format) for name, leaf in tensors.items()}
    about = {"format": form.name, "version": str(form.version), "digest": _digest(text, whole), "content": text}
    replace_file(path, to_bytes(whole, about))


def read_sealed(path: Path, form: Format) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content and tensors of a file. Raises OSError if it cannot be read; ValueError if it is damaged or another."""
    with explained("read", path):
        path.open("rb").close()
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check(path, form, metadata)
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        what = f"{path} is not a whole file, it is truncated or garbled ({error})"
        raise ValueError(f"{what}; {form.if_damaged}") from error
    if _digest(metadata["content"], tensors) != metadata["digest"]:
        raise ValueError(f"{path} is garbled, its digest does not fit what it holds; {form.if_damaged}")
    content = _content(metadata["content"])
    if not all(name in content and isinstance(content[name], kind) for name, kind in form.fields.items()):
        raise ValueError(f"{path} is garbled, it must hold {', '.join(form.fields)}; {form.if_damaged}")
    return content, tensors


def _content(text: str) -> dict[str, Any]:
    """The JSON object in a file; empty if it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        content = json.loads(text)
        return content if isinstance(content, dict) else {}
    return {}


def described(tensor: Tensor | None) -> str:
    """Dtype and shape in words: ``float32 [2, 3]``."""
    return "nothing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _check(path: Path, form: Format, metadata: Mapping[str, str]) -> None:
    name, version = metadata.get("format", ""), metadata.get("version", "")
    if name != form.name:
        other = f"a {name}" if name.startswith("descent-tower ") else "a safetensors file of something else"
        raise ValueError(f"{path} is not {form.what}, it is {other}")
    if version.isdecimal() and int(version) != form.version:
        newer = int(version) > form.version
        reads, fix = ("up to ", "update descent-tower") if newer else ("", form.if_older)
        raise ValueError(f"{path} has {form.word} version {version}, this program reads {reads}{form.version}; {fix}")
    if version != str(form.version) or not {"digest", "content"} <= metadata.keys():
        raise ValueError(f"{path} is garbled, its metadata is incomplete; {form.if_damaged}")


def _digest(content: str, tensors: Mapping[str, Tensor]) -> str:
    """A hash of some text and of tensors on the CPU, with their names, dtypes and shapes."""
    summed = hashlib.blake2b(content.encode(), digest_size=16)
    for name in sorted(tensors):
        summed.update(f"{name} {described(tensors[name])}".encode())
        summed.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return summed.hexdigest()
