from __future__ import annotations

import base64
import struct

import pytest

from mesh.vectors import pack, unpack


def test_a_vector_travels_as_little_endian_floats_of_32_bits() -> None:
    values = [0.5, -1.25, 3.0, 1e-3]
    assert pack(values) == struct.pack("<4f", *values)
    assert unpack(pack(values)) == [0.5, -1.25, 3.0, pytest.approx(1e-3)]
    assert base64.b64encode(pack([1.0])) == b"AACAPw=="


def test_bytes_that_are_no_vector_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of item size"):
        unpack(b"12345")
