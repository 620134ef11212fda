"""Every adapter trains on real images: the loss falls, every parameter has a gradient, sampling and log_prob work."""

import pytest
import torch
from adapter_cases import Case, every_case
from adapter_images import images

import vae2aef


@pytest.mark.slow
@every_case
def test_fifty_steps_on_real_images(case: Case) -> None:
    data = images(case.shape, symmetric=case.symmetric)
    labels = torch.eye(case.classes)[torch.arange(len(data)) % case.classes] if case.classes else None

    def batch(rows: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return data[rows], {} if labels is None else {"labels": labels[rows]}

    x, cond = batch(torch.arange(16))
    residual = "decoder" if case.unused else "learned"  # a decoder's own scale has a part only there
    aef = vae2aef.wrap(case.make(), example=(x, cond) if cond else x, noise=0.3, residual=residual).train()
    optimizer = torch.optim.Adam(aef.parameters(), lr=2e-3)
    losses = []
    for step in range(50):
        x, cond = batch(torch.randint(len(data), (16,)))
        loss = aef(x, **cond)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            without = {
                name
                for name, parameter in aef.named_parameters()
                if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all())
            }
            assert not without
        optimizer.step()
        losses.append(loss.item())
    assert all(map(torch.isfinite, torch.tensor(losses)))
    assert sum(losses[-10:]) < sum(losses[:10])

    aef.eval()
    some = {name: value[:3] for name, value in cond.items()}
    assert aef.sample(3, **some).shape == (3, *case.shape)
    assert aef.reconstruct(x[:3], **some).shape == (3, *case.shape)
    result = aef.log_prob(x[:3], num_samples=8, proposal="tuned", **some)
    assert result.value.shape == (3,) and result.value.isfinite().all()
    assert not result.exact
