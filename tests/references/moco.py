"""MoCo: its steps on a stand-in encoder, and the loss against a queue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.references.case import Adapter, Case
from tests.references.contrast import lightly
from zoo.layers.outputs import Encoded
from zoo.models.base.image_encoder import ImageEncoder, PictureConfig
from zoo.registry.tasks import task_spec
from zoo.tasks.base import check_options
from zoo.tasks.views import MomentumContrast


@dataclass(frozen=True, kw_only=True)
class StandInConfig(PictureConfig):
    pixels: int = 10
    hidden_size: int = 14
    initializer_range: float = 0.02


class StandIn(ImageEncoder):
    """A linear layer, batch norm and ReLU over the flat pixels."""

    Config = StandInConfig

    def __init__(self, config: StandInConfig) -> None:
        super().__init__(config)
        self.lin1 = nn.Linear(config.pixels, config.hidden_size)
        self.bn1 = nn.BatchNorm1d(config.hidden_size)

    def forward(self, pixel_values: Tensor) -> Encoded:
        pooled = torch.relu(self.bn1(self.lin1(pixel_values.flatten(1))))
        return Encoded(pooled[:, None], pooled)


def pixels(first: Tensor, second: Tensor) -> Tensor:
    """Two views (batch, numbers) as two pictures (batch, 2, 1, 1, numbers)."""
    return torch.stack([first, second], 1)[:, :, None, None]


def momentum_model(task: type[MomentumContrast], encoder: ImageEncoder, **options: Any) -> MomentumContrast:
    spec = task_spec("momentum-contrast")
    built = task.build(encoder, check_options(spec, options), spec.name)
    assert isinstance(built, MomentumContrast)
    return built


def ours(name: str) -> str:
    """The name of a parameter of an encoder: ``fc`` is the projection, of one layer or of two (v2)."""
    if not name.startswith("fc."):
        return f"model.{name}"
    name = re.sub(r"^fc\.(\d)\.", lambda match: f"projection.layers.{int(match[1]) // 2}.", name)
    return re.sub(r"^fc\.", "projection.layers.0.", name)


def under(named: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """Our tensors of an encoder by the reference's names of them."""
    return {name: named[ours(name)].detach().clone() for name in names}


def steps(case: Case) -> Mapping[str, Any]:
    c, weights = case.config, case.weights
    names = [n.removeprefix("encoder_q.") for n in weights if n.startswith("encoder_q.")]
    last = weights["encoder_q.fc.2.weight" if c.get("mlp") else "encoder_q.fc.weight"]
    hidden, numbers = weights["encoder_q.lin1.weight"].shape
    model = momentum_model(
        MomentumContrast,
        StandIn(StandInConfig(pixels=numbers, hidden_size=hidden)),
        projection="mlp",
        projection_size=last.shape[0],
        projection_layers=2 if c.get("mlp") else 1,
        temperature=c["T"],
        queue_size=c["K"],
        momentum=c["m"],
    )
    encoder = model.encoder
    encoder.load_state_dict({ours(n): weights[f"encoder_q.{n}"] for n in names})
    model.train().start()
    model.twin.twin.load_state_dict({ours(n): weights[f"encoder_k.{n}"] for n in names})
    model.queue.keys.copy_(weights["queue"].T)
    model.queue.pointer.copy_(weights["queue_ptr"])
    trained = [n for n in names if "running" not in n and "num_batches" not in n]
    optimizer = torch.optim.SGD(model.parameters(), **c["sgd"])
    outputs: dict[str, Any] = {}
    for step in range(sum(name.startswith("im_q.") for name in case.inputs)):
        model.before_step()
        result = model(pixels(case.inputs[f"im_q.{step}"], case.inputs[f"im_k.{step}"]))
        optimizer.zero_grad()
        result.loss.backward()
        if step == 0:
            gradients = {name: p.grad for name, p in encoder.named_parameters()}
            outputs |= {f"grad.0.encoder_q.{n}": x for n, x in under(gradients, trained).items()}
        followed = dict(model.twin.twin.named_buffers())
        outputs |= {f"encoder_k.{step}.{n}": x for n, x in under(followed, trained).items()}
        optimizer.step()
        model.after_step([result])
        outputs |= {
            f"encoder_q_after_sgd.{step}.{n}": x for n, x in under(dict(encoder.named_parameters()), trained).items()
        }
        outputs |= {
            f"logits.{step}": result.logits,
            f"loss.{step}": result.loss,
            f"queue.{step}": model.queue.keys.T.clone(),
            f"queue_ptr.{step}": model.queue.pointer.clone(),
        }
    return outputs


ADAPTERS: dict[str, Adapter] = {"MoCo.forward": steps, "NTXentLoss": lightly}
