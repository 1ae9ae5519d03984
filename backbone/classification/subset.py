"""Evaluation sets of a subset of the classes, such as ImageNet-A, ImageNet-R and ObjectNet, by a mapping file."""

from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data.readers.reader import Reader
from torch import Tensor

from vheatir.backbone.data.text_files import read_json, read_text


@dataclass
class Subset:
    """Classes of the model that each class of the set accepts.

    A prediction is right when it is any of them; the loss is that of their summed probability. With `only`, the
    model's other classes are left out of the comparison, as is usual for ImageNet-A and ImageNet-R.
    """

    accepted: list[tuple[int, ...]]

    def __len__(self) -> int:
        return len(self.accepted)

    @classmethod
    def read(cls, path: str, reader: Reader) -> "Subset":
        """The mapping of a file: lines `folder number[,number...]`, or a JSON table folder -> number or numbers.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a line that is none, a folder without an entry, or a reader without folders.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"val.subset {path}: no such file; expected lines `folder class[,class...]`")
        folders = getattr(reader, "class_to_idx", None)
        if folders is None:
            raise ValueError(f"val.subset {path} maps folders to classes; it needs data.reader folder")
        table = _entries(Path(path))
        missing = sorted(set(folders) - set(table))
        if missing:
            raise ValueError(
                f"val.subset {path}: no entry for {len(missing)} folders of the set, such as {missing[0]!r}"
            )
        return cls([table[name] for name, _ in sorted(folders.items(), key=lambda item: item[1])])

    def to(self, device: torch.device, classes: int, only: bool) -> "PlacedSubset":
        """The mapping as a table on a device.

        Args:
            device: of the table.
            classes: how many the model has.
            only: compare the classes of the mapping alone.

        Raises:
            ValueError: a class that the model does not have.
        """
        largest = max(max(numbers) for numbers in self.accepted)
        if largest >= classes:
            raise ValueError(f"val.subset names class {largest}, but the model has {classes}")
        table = torch.zeros(len(self), classes, dtype=torch.bool)
        for row, numbers in enumerate(self.accepted):
            table[row, list(numbers)] = True
        keep = table.any(0) if only else torch.ones(classes, dtype=torch.bool)
        return PlacedSubset(table.to(device), keep.to(device))


@dataclass
class PlacedSubset:
    """A mapping as tables on a device."""

    table: Tensor  # (classes of the set, classes of the model)
    keep: Tensor  # (classes of the model,)

    def score(self, scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of probabilities, and which of them count as right."""
        return scores[:, self.keep].log_softmax(1), self.table[targets][:, self.keep]


def _entries(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        if path.suffix == ".json":
            raw = read_json(path).items()
            table = {name: tuple(map(int, value if isinstance(value, list) else [value])) for name, value in raw}
        else:
            lines = [line.rsplit(None, 1) for line in read_text(path).splitlines() if line.strip()]
            table = {name: tuple(map(int, numbers.split(","))) for name, numbers in lines}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"val.subset {path}: expected lines `folder class[,class...]` ({error})") from error
    if not table or not all(table.values()):
        raise ValueError(f"val.subset {path}: expected lines `folder class[,class...]`, with a class for each folder")
    if any(number < 0 for numbers in table.values() for number in numbers):
        raise ValueError(f"val.subset {path}: classes are counted from 0")
    return table
