"""Run the notebook and keep it with its outputs: MNIST=path/to/mnist.npz python docs/tutorials/execute.py [STEPS].

The page of the documentation is what this wrote, so that building it needs neither data nor time. Needs the extra docs.
"""

import hashlib
import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

SOURCE = Path(__file__).with_name("mnist_to_report.py")
PAGE = Path(__file__).parents[1] / "mnist.ipynb"


def executed(source: Path) -> nbformat.NotebookNode:
    """Run the cells of a script in a folder that is thrown away; an error in one of them is raised."""
    os.environ["MNIST"] = str(Path(os.environ["MNIST"]).resolve())  # the cells run in another folder
    notebook = jupytext.read(source)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=3600, kernel_name="python3", record_timing=False, resources={"metadata": {"path": folder}}
        )
        client.execute()
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}  # the same file for the same outputs
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)  # Pillow offers both
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    notebook.metadata = {"source_sha256": digest, "language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


if __name__ == "__main__":
    if sys.argv[1:]:
        os.environ["STEPS"] = sys.argv[1]
    nbformat.write(executed(SOURCE), PAGE)
