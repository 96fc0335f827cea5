"""What the settings of a language model may say; without torch, which takes seconds to import."""

from typing import Final

POOLINGS: Final = ("mean", "last")
BACKENDS: Final = ("transformers", "vllm")
DTYPES: Final = ("float32", "bfloat16", "float16")
