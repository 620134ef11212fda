"""The tables of docs/wild.md: each row is measured by a test, what is counted is so, and the code runs."""

import re
from pathlib import Path

import test_scvi
import test_wild_checkouts as measured
import test_wild_refused as refused
from wild_scripts import MODELS

PAGE = (Path(__file__).parents[2] / "docs" / "wild.md").read_text(encoding="utf-8")


def rows_of(title: str) -> dict[str, list[str]]:
    """Return the rows of a section's table by their first cells."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [row.strip("|").split("|") for row in section.splitlines() if row.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells] for cells in rows[1:]}


FIRST = rows_of("The repositories that were looked at first")
MORE, REFUSED = rows_of("More repositories"), rows_of("What is refused")


def test_every_row_is_measured() -> None:
    one_line = {case.name.split(" ")[0] for case in measured.ONE_LINE}
    elsewhere = {"vq-vae-2-pytorch": measured.test_a_vq_vae_draws_nothing, "scvi-tools": test_scvi.test_its_own_loss,
                 "Sentence-VAE": measured.test_a_sentence_vae_is_led_to_the_true_reason,
                 "vae_vampprior": measured.test_two_outputs_like_the_data}  # fmt: skip
    for name, row in FIRST.items():
        repository = re.split(r"[ ,]", name.split("/")[1])[0]
        assert repository in (one_line if row[2] == "works" else measured.ENTERED.keys() | elsewhere.keys()), name
    assert len(FIRST) == 15
    kinds = {"EugenHotaj/pytorch-generative, as it is": refused.test_a_scripted_draw_is_named}
    by_script = {model.repository.removesuffix(", conditional") for model in MODELS}
    assert {name.removesuffix(", CNN") for name in MORE} == by_script
    tests = {
        "sylvester-flows, planar": refused.test_sylvester_flows, "Gumbel": refused.test_other_latents,
        "orthogonal": refused.test_an_orthogonal_sylvester_flow_fails_by_itself,
        "altosaar/variational-autoencoder, flow": refused.test_the_flow_of_variational_autoencoder,
        "andompesta": refused.test_noise_through_a_matrix, "disentanglement": refused.test_an_axis_of_samples,
        "von Mises": refused.test_other_latents, "ladder": refused.test_several_latents,
        "Recurrent": refused.test_several_latents, "pytorch-generative": kinds.popitem()[1],
        "vdvae": refused.test_the_scripted_draw_of_vdvae_and_its_remedy,
        "gae-pytorch": refused.test_nodes_of_one_graph_and_the_remedy_for_gae_pytorch,
        "vgae_pytorch": refused.test_nodes_of_one_graph_and_the_reason_for_vgae_pytorch,
        "geometric": refused.test_the_vgae_of_pytorch_geometric,
    }  # fmt: skip
    for name in REFUSED:
        assert any(part in name for part in tests), name
    assert len(REFUSED) == len(tests)


def test_what_is_counted() -> None:
    """Of thirty main models, twenty-eight in one line, whatever it says; from more than twenty repositories."""
    main = {name: row for name, row in FIRST.items() if ", grey" not in name}
    thirty = [*main.values(), *list(MORE.values())[: 30 - len(main)]]
    draws = [row for row in thirty if row[0].split(" ")[0] in ("rosinality/vq-vae-2-pytorch", "timbmg/Sentence-VAE")]
    assert len(thirty) == 30 and len(draws) == 2 and len({row[0].split(",")[0] for row in thirty}) == 30
    for row in thirty:
        one_line = row[2].startswith("works") or "`forward=" in row[4] or "forward=" in row[2] or "forward=" in row[4]
        assert one_line == (row not in draws), row


def test_the_page_says_what_is_counted() -> None:
    first = {re.split(r"[ ,]", name)[0] for name in FIRST}
    more = {re.split(r"[ ,]", name)[0] for name in MORE}
    wrapped = 30 - sum(row[4].startswith("none") for row in FIRST.values())  # for which nothing helps
    assert not first & more
    for said in (
        f"of each of {len(first)} repositories (and {len(FIRST) - len(first)} row of another model)",
        f"of each of {len(more)} more: {len(first | more)} repositories",
        f"Of 30 main models, the {len(first)} and the first {30 - len(first)} of the second table, {wrapped} are",
    ):
        assert said in " ".join(PAGE.split()), said


def test_the_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "docs/wild.md", "exec"), {"__name__": "page"})
