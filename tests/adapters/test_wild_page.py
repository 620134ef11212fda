"""The table of docs/wild.md: each row is measured by a test, and its code runs."""

import re
from pathlib import Path

import test_scvi
import test_wild_checkouts as measured

PAGE = (Path(__file__).parents[2] / "docs" / "wild.md").read_text(encoding="utf-8")


def test_every_row_is_measured() -> None:
    rows = {
        row.split("|")[1].strip(): row for row in PAGE.splitlines() if row.startswith("| ") and "/" in row.split("|")[1]
    }
    one_line = {case.name.split(" ")[0] for case in measured.ONE_LINE}
    elsewhere = {"vq-vae-2-pytorch": measured.test_a_vq_vae_draws_nothing, "scvi-tools": test_scvi.test_its_own_loss,
                 "Sentence-VAE": measured.test_a_sentence_vae_is_led_to_the_true_reason,
                 "sylvester-flows": measured.test_the_remedy_of_a_posterior_flow_works,
                 "vae_vampprior": measured.test_two_outputs_like_the_data}  # fmt: skip
    for name, row in rows.items():
        repository = re.split(r"[ ,]", name.split("/")[1])[0]
        works = row.split("|")[3].strip() == "works"
        assert repository in (one_line if works else measured.ENTERED.keys() | elsewhere.keys()), name
    assert len(rows) == 16


def test_the_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/wild.md", "exec"), {"__name__": "page"})
