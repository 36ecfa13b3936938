"""Q-BERT: the top eigenvalues of a Hessian (PyHessian, on a small network)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tests.references.case import Adapter, Case, Output
from zoo.techniques.quantization.hessian import hessian_trace, top_eigenvalues


def eigenvalues(case: Case) -> Mapping[str, Any]:
    matrices = [
        case.weights[name]
        for name in sorted(case.weights, key=lambda name: int(name.split(".")[0]))
        if name.endswith("weight")
    ]
    layers = [part for matrix in matrices for part in (nn.Linear(matrix.shape[1], matrix.shape[0]), nn.Tanh())]
    network = nn.Sequential(*layers[:-1]).double()
    network.load_state_dict(case.weights)
    loss = F.cross_entropy(network(case.inputs["x"].double()), case.inputs["targets"])
    parameters = list(network.parameters())
    generator = torch.Generator().manual_seed(0)
    config = case.config
    found = top_eigenvalues(
        loss, parameters, config["top_n"], steps=config["maxIter"], tolerance=config["tol"], generator=generator
    )
    exact = hessian_trace(loss, parameters)
    return {
        "eigenvalues": Output(
            torch.tensor(found), tolerance=1e-4, reason="both start at random and stop near the limit"
        ),
        "exact_trace": exact,
    }


ADAPTERS: dict[str, Adapter] = {"pyhessian.hessian.eigenvalues": eigenvalues}
