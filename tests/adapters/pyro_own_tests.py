"""A pytest plugin: Pyro's own tests with every guide an AEF guide, h = 0 and sigma = 1, which is the guide itself.

    cd CHECKOUT; PYTHONPATH=HERE python -m pytest -p pyro_own_tests tests/infer/test_valid_models.py

Where model and guide have data, the losses get `aef_guide(model, guide, core="noise", core_flow="none")` in the place
of the guide; what h would read is the first observed value. Few of these guides see the data: their sites in a plate
are taken as if they did, which makes no difference to h = 0. What is refused runs with the plain guide, and is listed.
"""

import collections
import os
import re

import pyro
import pyro.poutine as poutine
import torch
from pyro.infer.elbo import ELBO
from pyro.infer.traceenum_elbo import TraceEnum_ELBO

import vae2aef
from vae2aef.svi import survey as survey_module

seen: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
kept: dict[tuple[int, int], tuple] = {}


def observed_value(model, args, kwargs):
    """The first observed value that has rows."""
    store = pyro.get_param_store()
    with torch.random.fork_rng(), store.scope(store.get_state()), poutine.block():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    for site in trace.nodes.values():
        if site["type"] == "sample" and site["is_observed"] and isinstance(site["value"], torch.Tensor):
            if site["value"].dim() and not (site["infer"] or {}).get("_deterministic"):
                return site["value"].detach().to(torch.get_default_dtype())
    return None


def in_its_place(model, guide, args, kwargs):
    test = os.environ.get("PYTEST_CURRENT_TEST", "").split("::")[-1].split("[")[0].split(" ")[0]
    key = (id(model), id(guide))
    if key not in kept:
        kept[key] = (model, guide, _made(test, model, guide, args, kwargs))
    return kept[key][2]


def _made(test, model, guide, args, kwargs):
    try:
        x = observed_value(model, args, kwargs)
    except Exception:
        x = None
    if x is None:
        seen[test]["no data are observed"] += 1
        return guide
    aef = vae2aef.aef_guide(model, guide, core="noise", core_flow="none", data=lambda *a, **k: x)
    try:
        survey_module.survey(aef.maps, model, guide, args, kwargs)
    except vae2aef.WrapError as error:
        seen[test][_short(str(error))] += 1
        return guide
    except Exception as error:  # a model that is wrong on purpose
        seen[test][f"the pair itself fails: {type(error).__name__}"] += 1
        return guide
    mapped = sum(m is not None for m in aef.maps.maps.values())
    seen[test]["AEF guide" if mapped else "nothing mapped"] += 1
    return aef


def _has_rows(site):
    """Whether a site is in a plate; one that is not sees no datum in the place of another."""
    return any(frame.vectorized for frame in site["cond_indep_stack"])


def _short(message):
    message = re.sub(r'"[^"]*" \(\w+\)(, )?', "", message.split(". ")[0])
    return "refused: " + re.sub(r'site "[^"]*"', "a site", message)[:110]


def _wrapped(original):
    def traces(self, model, guide, args, kwargs):
        return original(self, model, in_its_place(model, guide, args, kwargs), args, kwargs)

    return traces


def pytest_configure(config):
    survey_module._sees = lambda latent, *rest: {name: _has_rows(site) for name, site in latent.items()}
    for kind in (ELBO, TraceEnum_ELBO):
        kind._get_traces = _wrapped(kind._get_traces)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line("what became of the guides:")
    total = collections.Counter()
    for test, counts in sorted(seen.items()):
        for what, number in counts.items():
            total[what] += number
            terminalreporter.write_line(f"  {test}: {what} ({number})")
    for what, number in total.most_common():
        terminalreporter.write_line(f"  TOTAL {number:4d} {what}")
