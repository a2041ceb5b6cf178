"""QLoRA: LoRA over a base whose frozen weights are stored in 4 bit."""

from __future__ import annotations

from typing import ClassVar, Literal

from studio.methods.lora import Lora


class QLora(Lora):
    """`y = dequant(W_NF4) x + s B A x`: LoRA whose frozen `W` is NF4, in blocks of 64 numbers with
    one scale each (double quantised), dequantised for each product.

    When to use it: when the base does not fit the device otherwise; slower than LoRA on a CPU.
    Cost: LoRA's parameters; the base takes about 0.55 bytes per parameter in place of 2 or 4.
    Source: arXiv:2305.14314.
    """

    title: ClassVar[str] = "QLoRA"
    paper: ClassVar[str] = "arXiv:2305.14314"
    quantization: ClassVar[str] = "nf4"

    name: Literal["qlora"] = "qlora"  # type: ignore[assignment]
