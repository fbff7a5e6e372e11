"""Read the objects of a binary Torch 7 file: tensors as arrays, tables and modules as dicts.

Source: torch7, File.lua.
"""

import math
import re
import struct
from typing import Any

import numpy as np

_TYPES = {
    "Byte": np.uint8, "Char": np.int8, "Short": np.int16, "Int": np.int32, "Long": np.int64,
    "Float": np.float32, "Double": np.float64, "Cuda": np.float32, "CudaDouble": np.float64,
}  # fmt: skip
_MAX_DEPTH = 200


class Torch7File:
    """A cursor over the bytes of a file, uint8 [N]; no read goes beyond the end of the file."""

    def __init__(self, content: np.ndarray) -> None:
        self.content = content
        self.at = 0
        self.objects: dict[int, Any] = {}

    def take(self, num_bytes: int) -> np.ndarray:
        """The next bytes."""
        if num_bytes < 0 or self.at + num_bytes > len(self.content):
            raise ValueError(f"ends within a value at byte {self.at}")
        self.at += num_bytes
        return self.content[self.at - num_bytes : self.at]

    def numbers(self, form: str) -> tuple[Any, ...]:
        """The next numbers, of a format of `struct`."""
        return struct.unpack(form, self.take(struct.calcsize(form)).tobytes())

    def integer(self) -> int:
        """The next 4-byte integer."""
        return self.numbers("<i")[0]

    def text(self) -> str:
        """The next text: its length, then its bytes."""
        return self.take(self.integer()).tobytes().decode("latin-1")

    def value(self, depth: int = 0) -> Any:
        """The next object: None, number, bool, str, dict (table or module) or array.

        Raises:
            ValueError: the file is damaged or nested too deeply, or holds an unknown type.
        """
        if depth > _MAX_DEPTH:
            raise ValueError("is nested too deeply")
        kind = self.integer()
        if kind == 0:
            return None
        if kind == 1:
            return self.numbers("<d")[0]
        if kind == 2:
            return self.text()
        if kind == 5:
            return self.integer() == 1
        if kind not in (3, 4, 6, 7, 8):
            raise ValueError(f"unknown Torch 7 type {kind} at byte {self.at}")
        index = self.integer()
        if index in self.objects:
            return self.objects[index]
        if kind == 3:
            return self.table(index, depth)
        if kind == 4:
            return self.torch_object(index, depth)
        self.text()  # a Lua function: its byte code and upvalues are passed over
        self.objects[index] = None
        self.value(depth + 1)
        return None

    def table(self, index: int, depth: int) -> dict[Any, Any]:
        """The entries of the table `index`; keys that are objects are left out."""
        table: dict[Any, Any] = {}
        self.objects[index] = table
        for _ in range(self.integer()):
            key, value = self.value(depth + 1), self.value(depth + 1)
            if isinstance(key, str | float | bool):
                table[key] = value
        return table

    def torch_object(self, index: int, depth: int) -> Any:
        """The module (dict), tensor or storage (array) `index`."""
        version = self.text()
        class_name = self.text() if version.startswith("V ") else version
        match = re.fullmatch(r"torch\.(\w+?)(Tensor|Storage)", class_name)
        value: Any
        if match is None:
            value = self.value(depth + 1)
        elif match[1] not in _TYPES and match[1] != "Cuda":
            raise ValueError(f"holds a {class_name}, which is not read")
        elif match[2] == "Storage":
            dtype = np.dtype(_TYPES[match[1]])
            (size,) = self.numbers("<q")
            value = np.frombuffer(self.take(size * dtype.itemsize).tobytes(), dtype)
        else:
            value = self.tensor(depth)
        self.objects[index] = value
        return value

    def tensor(self, depth: int) -> np.ndarray | None:
        """The next tensor; None if it is empty or not contiguous."""
        num_dims = self.integer()
        shape = self.numbers(f"<{num_dims}q")
        strides = self.numbers(f"<{num_dims}q")
        (first,) = self.numbers("<q")
        storage = self.value(depth + 1)
        contiguous = tuple(math.prod(shape[axis + 1 :]) for axis in range(num_dims))
        if not isinstance(storage, np.ndarray) or num_dims == 0 or strides != contiguous:
            return None
        return storage[first - 1 : first - 1 + math.prod(shape)].reshape(shape)
