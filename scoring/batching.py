"""Batches of a size that fits into memory."""

from collections.abc import Callable, Iterator, Sequence

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

CPU_BATCH_SIZE, ACCELERATOR_BATCH_SIZE = 16, 128  # what "auto" starts with: a CPU gains nothing from larger ones


class Batches:
    """
    Computes items in batches of `size`, which shrinks if it was given as `"auto"` and memory is short.

    Args:
        size: Items at once. `"auto"` starts with 16 on a CPU and 128 elsewhere.
        device: Where it is computed.
        largest: A limit of the model's; `None` for none.
        filled: Whether every batch must have the same size: the last ones are then filled up with repetitions.
    """

    def __init__(self, size: int | str, device: torch.device, largest: int | None = None, filled: bool = False):
        self.shrinks, self.filled = size == "auto", filled
        if self.shrinks:
            size = CPU_BATCH_SIZE if device.type == "cpu" else ACCELERATOR_BATCH_SIZE
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"batch_size must be 'auto' or at least 1, got {size!r}")
        self.size = min(size, largest or size)

    def map(self, compute: Callable[[list], Sequence], items: list) -> Iterator[tuple]:
        """Each item with what `compute` makes of it.

        Raises:
            MemoryError: if a batch, with `"auto"` even a single item, does not fit into memory.
        """
        start = 0
        while start < len(items):
            batch = items[start : start + self.size]
            size = self.size if self.filled else len(batch)
            try:
                computed = compute(batch + batch[-1:] * (size - len(batch)))[: len(batch)]
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if not self.shrinks or size == 1:
                    advice = "a smaller --batch-size" if size > 1 else "--dtype bfloat16"
                    raise MemoryError(f"not enough memory for batches of {size}: try {advice} ({error})") from None
                computed = None
            if computed is None:  # here, where no traceback holds the batch's tensors any more
                self.size = size // 2
                logger.warning(f"not enough memory for batches of {size}: going on with {self.size}")
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield from zip(batch, computed, strict=True)
            start += len(batch)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)
