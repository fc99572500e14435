"""Run the repository's notebooks and store what they show: python -m support.notebooks [PATH…]

What is stored is light and shows without a kernel: no widget state, no times, no machine's names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"


def stored(notebook: Any) -> Any:
    """The notebook as it is kept: a widget's own view means nothing without its kernel."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data.pop(WIDGET, None)
    return notebook


def run(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=300, resources=place, coalesce_streams=True).execute()
    nbformat.write(stored(notebook), path)


if __name__ == "__main__":
    for each in [Path(name) for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        run(each)
