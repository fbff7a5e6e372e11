"""Convert list columns of Arrow tables to NumPy arrays and back."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def image_stack(images: pa.Array, size_pixels: int) -> np.ndarray:
    """Images uint8 [N, size, size, 3] as a view of a large_binary array, without a copy."""
    if not len(images):
        return np.zeros((0, size_pixels, size_pixels, 3), np.uint8)
    if isinstance(images, pa.ChunkedArray):
        images = images.combine_chunks()
    _, offsets, data = images.buffers()
    first = np.frombuffer(offsets, np.int64)[images.offset]
    num_bytes = len(images) * size_pixels * size_pixels * 3
    flat = np.frombuffer(data, np.uint8, count=num_bytes, offset=int(first))
    return flat.reshape(len(images), size_pixels, size_pixels, 3)


def vector_array(vectors: np.ndarray, is_null: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """[N, D] as N fixed-size lists, null where `is_null`."""
    values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    mask = pa.array(is_null) if is_null is not None and is_null.any() else None
    return pa.FixedSizeListArray.from_arrays(values, vectors.shape[1], mask=mask)


def flat_list(column: pa.ChunkedArray | pa.ListArray) -> tuple[pa.StructArray, pa.Array]:
    """The items of a list column end to end, and the offsets of each row's items from 0.

    One chunk's items are a view of it, several chunks' a copy.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    items: list[pa.Array] = [chunk.flatten() for chunk in chunks]
    lengths = np.concatenate(
        [chunk.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) for chunk in chunks]
        or [np.zeros(0, np.int32)]
    )
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    if len(items) == 1:
        return items[0], pa.array(offsets)
    flat = pa.concat_arrays(items) if items else pa.array([], column.type.value_type)
    return flat, pa.array(offsets)


def rows_of_items(offsets: pa.Array) -> np.ndarray:
    """Row of the list column that each item comes from, int64, by the offsets of `flat_list`."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets.to_numpy()))


def vectors_there(column: pa.FixedSizeListArray) -> tuple[np.ndarray, np.ndarray]:
    """The vectors [n, D] that are not null, as a view; for each row its place in them or -1."""
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    places = np.where(valid, np.cumsum(valid) - 1, -1)
    values = column.flatten().to_numpy(zero_copy_only=True)
    return values.reshape(-1, column.type.list_size), places


def numbers(column: pa.FixedSizeListArray, missing: float = 0.0) -> np.ndarray:
    """[N, D] of a fixed-size list column, in its own number type; null rows hold `missing`."""
    values, places = vectors_there(column)
    if not column.null_count:
        return values
    filled = np.full((len(column), column.type.list_size), missing, values.dtype)
    filled[places >= 0] = values
    return filled


def positions(values: pa.Array, known: pa.Array) -> np.ndarray:
    """Position of each value among the known ones, int64, or -1."""
    found = pc.fill_null(pc.index_in(values, value_set=known), -1)
    return found.to_numpy(zero_copy_only=False).astype(np.int64)


def joined_values(column: pa.ChunkedArray, kind: type) -> np.ndarray:
    """The values of all rows of a packed column, end to end."""
    parts: list[np.ndarray] = [np.frombuffer(value.as_buffer(), kind) for value in column]
    return np.concatenate([np.empty(0, kind), *parts])
