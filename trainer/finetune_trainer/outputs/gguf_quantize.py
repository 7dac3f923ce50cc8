"""GGUF files in the block formats that the package gguf writes and llama.cpp's converter does not: q4_0 to q5_1.

Matrices are rounded in blocks of 32; vectors stay as they are, and so does a matrix that cannot be divided so. The
embedding and the output head suffer most and get q8_0, as llama.cpp itself gives them more bits than the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_contract.output_spec import GgufType

_SENSITIVE = ("token_embd.weight", "output.weight")
_BLOCK = 32


def quantize_file(plain: Path, target: Path, *, kind: GgufType) -> None:
    """Copy an f32 GGUF file with its matrices in another type, one tensor in memory at a time."""
    import gguf
    from gguf.quants import quant_shape_to_byte_shape, quantize

    reader = gguf.GGUFReader(plain)
    writer = gguf.GGUFWriter(target, arch=reader.get_field("general.architecture").contents())
    _copy_metadata(reader, writer, file_type=gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    types = {tensor.name: _type_of(tensor, kind) for tensor in reader.tensors}
    for tensor in reader.tensors:
        shape, wanted = tensor.data.shape, types[tensor.name]
        row = quant_shape_to_byte_shape(shape, wanted)[-1]
        writer.add_tensor_info(
            tensor.name, shape, tensor.data.dtype, row * (tensor.data.size // shape[-1]), raw_dtype=wanted
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(quantize(tensor.data, types[tensor.name]))
    writer.close()


def _type_of(tensor: Any, kind: GgufType) -> Any:
    from gguf import GGMLQuantizationType as Types

    shape = tensor.data.shape
    if len(shape) == 1 or shape[-1] % _BLOCK or not tensor.name.endswith(".weight"):
        return tensor.tensor_type
    return Types.Q8_0 if tensor.name in _SENSITIVE else Types[kind.upper()]


def _copy_metadata(reader: Any, writer: Any, *, file_type: int) -> None:
    import gguf

    for field in reader.fields.values():
        # The writer has written the first two; those in capitals are the file's header, not metadata.
        if field.name in (gguf.Keys.General.ARCHITECTURE, gguf.Keys.General.FILE_TYPE) or field.name.startswith(
            "GGUF."
        ):
            continue
        is_list = field.types[0] == gguf.GGUFValueType.ARRAY
        writer.add_key_value(
            field.name, field.contents(), field.types[0], sub_type=field.types[-1] if is_list else None
        )
    writer.add_file_type(file_type)
