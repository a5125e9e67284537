"""Records the slider of examples/slider.ipynb: ``python docs/slider.py`` writes docs/pictures/slider.gif.

The frames are those of the notebook, by the notebook's own cells, at the places that a hand passes on the way up.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SCALES = [10 ** (-3 + 0.2 * k) for k in range(22)]  # variance times fan_in, from 0.001 to 16


def cells() -> dict[str, Any]:
    """The names that the notebook defines before it draws."""
    notebook = json.loads((ROOT / "examples" / "slider.ipynb").read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and "frames =" not in source and "ipywidgets" not in source:
            exec(compile(source, "slider.ipynb", "exec"), names)
    return names


def main() -> None:
    """Writes the recording."""
    frame, pictures = cells()["frame"], []
    for scale in SCALES:
        figure, _ = frame(scale)
        held = io.BytesIO()
        figure.savefig(held, dpi=60)
        pictures.append(Image.open(held).convert("P", palette=Image.Palette.ADAPTIVE, colors=16))
    path = ROOT / "docs" / "pictures" / "slider.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:] + pictures[-2:0:-1], duration=250, loop=0)


if __name__ == "__main__":
    main()
