"""The target of a published drafter, as others find it: its hub id, its folder, its licence."""

from dataclasses import dataclass
from pathlib import Path

from draftopd.target import smollm2
from draftopd.target.model import Target


@dataclass(frozen=True)
class Base:
    hub_id: str | None
    place: str
    """what an engine loads: a folder, or the hub id"""
    loader: str
    """Python that loads it here, after `from draftopd.target import load`"""
    dtype: str
    licence: str | None = None
    note: str | None = None
    """sentences on what distinguishes it from the model of that hub id"""

    @classmethod
    def of(cls, target: Target, hub_id: str | None = None) -> "Base":
        """
        Args:
            hub_id: as the user names it; by default what the target was loaded from, where that is no folder.
        """
        source, dtype = target.model.config.name_or_path, str(target.model.dtype).removeprefix("torch.")
        folder = Path(source) if source and Path(source).is_dir() else None
        if folder is not None and smollm2.is_made(folder):
            place, loader = _short(folder), f'load.smollm2("{_short(folder.parent)}")'
            note = (
                f"Its weights are those that the Python package `{smollm2.REQUIREMENT}` carries: quantised to 4 bits "
                f"and turned back into float32. `python -c 'from draftopd.target import load; {loader}'` makes"
                f" `{place}`."
            )
            return cls(hub_id or smollm2.ORIGIN, place, loader, dtype, smollm2.LICENCE, note)
        known = hub_id or (None if folder is not None else source or None)
        place = known or (_short(folder) if folder is not None else "TARGET")
        precision = "" if dtype == "float32" else f', "{dtype}"'
        return cls(known, place, f'load.hf("{place}"{precision})', dtype)


def _short(path: Path) -> str:
    """With `~` for the home folder, which is nobody else's business."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
