"""What a variant is called, by its file's header."""

from __future__ import annotations

from hxd import ggml
from hxd.gguf import Header

# general.file_type of a GGUF header (llama_ftype in llama.h) to the variant's name.
FILE_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k",
    11: "q3_k_s", 12: "q3_k_m", 13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s",
    17: "q5_k_m", 18: "q6_k", 25: "iq4_nl", 30: "iq4_xs", 32: "bf16",
}  # fmt: skip
UNKNOWN = "unknown"


def variant_of(header: Header | ggml.Header) -> str:
    """`unknown` where the file does not say."""
    if isinstance(header, ggml.Header):
        return header.file_type
    kind = header.metadata.get("general.file_type")
    return FILE_TYPES.get(kind, UNKNOWN) if isinstance(kind, int) else UNKNOWN
