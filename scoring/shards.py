"""One table, several processes: each scores a share of the clips, and the last to finish puts the scores together."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from xacle.scoring.journal import differences, read_journal


@dataclass(frozen=True)
class Shard:
    """One of several processes that share a table: its number, from 0, and how many there are."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"{self.count} shards are numbered from 0 to {self.count - 1}, got {self.index}")

    @classmethod
    def of_environment(cls) -> "Shard":
        """This process' shard under `accelerate launch` and `torchrun`; elsewhere the whole table."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    def team(self) -> list["Shard"]:
        return [Shard(index, self.count) for index in range(self.count)]

    def part(self, output: Path) -> Path:
        """The journal of what this shard has scored so far."""
        return output.with_name(f"{output.name}.part") if self.count == 1 else Path(f"{self.finished(output)}.part")

    def finished(self, output: Path) -> Path:
        """Where its journal waits for the other shards."""
        return output.with_name(f"{output.name}.shard-{self.index}-of-{self.count}")

    def is_finished(self, output: Path, job: dict) -> bool:
        """Whether it has scored its part of this job; the sounds' times of change may differ between machines."""
        try:
            return set(differences(read_journal(self.finished(output))[0], job)) <= {"sounds"}
        except FileNotFoundError:
            return False


def device_of_process() -> str | None:
    """Under `torchrun` each of a machine's processes computes on an accelerator of its own; `None` where there is no choice."""
    if "LOCAL_RANK" not in os.environ or not torch.accelerator.is_available():
        return None
    return f"{torch.accelerator.current_accelerator().type}:{os.environ['LOCAL_RANK']}"
