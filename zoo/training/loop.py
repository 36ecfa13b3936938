"""`fit`: one loop, on rows of a table or on batches. It is short on purpose: read it, copy it, leave
it. `transformers.Trainer`, accelerate and Lightning train the same models.

    report = zoo.training.fit(model, "train.tsv", "dev.tsv", tokenizer=tokenizer, out="run", epochs=3)

An update: the gradients of ``accumulate`` batches are averaged, clipped, and AdamW takes a step at the
schedule's rate. The order of the rows is drawn from the seed and the number of the epoch; dropout from
torch's generator. Both are written down with the weights and the optimizer's state, so that a killed
run goes on with the curve it would have had. In several processes (torchrun) each takes its share of
every batch, and a model in DistributedDataParallel learns what it would learn in one.
"""

from __future__ import annotations

import csv
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import zoo.checkpoints.save as saving
from zoo.checkpoints.load import load
from zoo.data.batches import EpochBatches
from zoo.errors import ConfigError, InputError, TaskError
from zoo.formats.disk import write_atomically
from zoo.maps.layouts import BESIDE
from zoo.models.base.model import unwrapped
from zoo.models.base.outputs import TaskOutput
from zoo.tasks.base import TaskModel
from zoo.tasks.processes import rank, world
from zoo.training.adversarial import attacks
from zoo.training.cached_gradients import alone, check_cached, grad_cache
from zoo.training.evaluation import Examples, Table, TableReader, autocast, evaluate, grouped, moved
from zoo.training.fine_tuning import layerwise_groups_of
from zoo.training.optimizers import Group, Lars, clip_gradients, decay_groups
from zoo.training.parallel import gathered, is_share, mean_over_processes
from zoo.training.settings import Settings
from zoo.training.state import State, read_state, write_state
from zoo.training.supervision import Supervision

FOLDER = "training"  # below ``out``: the log, and what a killed run goes on from
Event = Callable[[Mapping[str, Any]], None]


@dataclass
class Fitted:
    """What became of a run. ``history``: the log's rows (``step``, ``epoch``, ``lr``, ``loss``,
    ``seconds``, and at an evaluation its figures as ``eval_...``). ``best``: the row of the best
    evaluation. ``steps``: updates done.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    steps: int = 0
    stopped_early: bool = False


def fit(
    model: nn.Module,
    train: Table | Iterable[Mapping[str, Any]] | EpochBatches,
    evaluate: Table | None = None,
    *,
    tokenizer: Any = None,
    columns: Mapping[str, str] | None = None,
    regions: Any = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    on_event: Event | None = None,
    **settings: Any,
) -> Fitted:
    """Train a task model, in place, and leave it in eval mode with the weights of its best
    evaluation (of the last update without one).

    train: a file of rows (csv, tsv, jsonl, parquet, txt), rows as dicts, a `MaskedCorpus`,
    `PictureTexts` or other `EpochBatches`, or a DataLoader (any sized iterable) of batches that
    ``model(**batch)`` takes, labels among them. evaluate: rows again, after each epoch or every
    ``evaluate_every`` updates. tokenizer, columns, regions: how rows are read, see `TableReader`.
    out: a folder; the best model is there as `zoo.save` writes it, at any time, and below
    ``training/`` the log as CSV. resume: go on where ``out`` says that a run stopped.
    settings: the fields of `Settings`.

    Raises TaskError for a model without a task or a loss, InputError for rows that can't be read,
    ConfigError for settings that make no sense.
    """
    chosen = Settings.of(settings)
    inner: Any = unwrapped(model)
    if not getattr(inner, "task", ""):
        raise TaskError("a bare model has no loss; build or load it with task=..., such as sequence-classification")
    device = next(model.parameters()).device
    reader = TableReader(tokenizer, columns, chosen.max_length, regions)
    data = _Data.of(train, model, reader, chosen)
    held_out = None if evaluate is None else reader.examples(evaluate, model)
    run = _Run(model, chosen, data, held_out, None if out is None else Path(out), tokenizer, on_event)
    torch.manual_seed(chosen.seed + rank())
    if resume and run.resumed():
        return run.report
    model.train()
    if run.step == 0:
        run.inner.prepare(moved(batch, device) for batch in data.batches(0, 0))
    while run.step < run.total and not run.report.stopped_early:
        epoch, done = divmod(run.step, run.per_epoch)
        for group in grouped(data.batches(epoch, done * chosen.accumulate), chosen.accumulate):
            run.update([moved(batch, device) for batch in group])
            if run.step >= run.total or run.report.stopped_early:
                break
    run.finish()
    return run.report


@dataclass
class _Data:
    """The batches of an epoch from some place on: rows in an order drawn anew, or what a loader gives."""

    batches: Callable[[int, int], Iterator[Any]]
    count: int
    run: Callable[[Any, Any], tuple[Tensor, Any]]

    @classmethod
    def of(cls, train: Any, model: Any, reader: TableReader, chosen: Settings) -> _Data:
        run = _plain_run
        if chosen.self_critical is not None:
            if reader.tokenizer is None:
                raise InputError("self-critical training reads what is written: pass tokenizer=")
            if world() > 1:
                raise ConfigError("self-critical training runs in one process")
            run = partial(chosen.self_critical.run, tokenizer=reader.tokenizer)
        if isinstance(train, str | os.PathLike) or _are_rows(train):
            examples = reader.examples(train, model)
            if chosen.self_critical is not None:
                examples = replace(examples, supervision=_Prompted(examples.supervision))
            else:
                run = examples.supervision.run

            def drawn(epoch: int, start: int) -> Iterator[Any]:
                generator = torch.Generator().manual_seed(chosen.seed * 1_000_003 + epoch)
                order = torch.randperm(len(examples), generator=generator).tolist()[start * chosen.batch_size :]
                return (batch for _, batch in examples.batches(order, chosen.batch_size, (rank(), world())))

            return cls(drawn, math.ceil(len(examples) / chosen.batch_size), run)
        try:
            count = len(train)
        except TypeError:
            raise InputError("a loader of batches must know how many there are: it has no len()") from None
        if not count:
            raise InputError("there are no batches to train on")
        if isinstance(train, EpochBatches):
            return cls(lambda epoch, start: train.epoch(epoch, start, (rank(), world())), count, run)
        return cls(lambda epoch, start: islice(iter(train), start, None), count, run)


class _Prompted(Supervision):
    """A task's examples as self-critical training takes them: what is read, and the right texts."""

    def __init__(self, supervision: Supervision) -> None:
        super().__init__(supervision.tokenizer, supervision.columns, supervision.options, supervision.max_length)
        self.supervision = supervision

    def batch(self, examples: Sequence[Any]) -> dict[str, Any]:
        inputs, references = self.supervision.prompts(examples)
        return {**inputs, "references": references}


def _are_rows(train: Any) -> bool:
    """Rows are dicts without a tensor in them."""
    if not isinstance(train, list | tuple) or not train:
        return False
    return isinstance(train[0], Mapping) and not any(isinstance(value, Tensor) for value in train[0].values())


def _plain_run(model: Any, batch: Any) -> tuple[Tensor, Any]:
    output = model(**batch)
    if output.loss is None:
        raise TaskError(f"the batch made no loss; it has {', '.join(batch)}, and needs the task's labels")
    return output.loss, output


class _Run:
    """The state of a run, and what happens at an update."""

    def __init__(
        self,
        model: nn.Module,
        chosen: Settings,
        data: _Data,
        held_out: Examples | None,
        out: Path | None,
        tokenizer: Any,
        on_event: Event | None,
    ) -> None:
        self.model, self.chosen, self.data, self.held_out = model, chosen, data, held_out
        self.out, self.tokenizer, self.on_event = out, tokenizer, on_event
        self.per_epoch = math.ceil(data.count / chosen.accumulate)
        self.total = chosen.steps or chosen.epochs * self.per_epoch
        self.inner = cast(Any, unwrapped(model))
        self.inner.start(chosen.seed)
        self.looks_back = type(self.inner).after_step is not TaskModel.after_step
        self.parameters = {name: p for name, p in self.inner.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ConfigError("no parameter is trained; all of them are frozen")
        if any(is_share(p) for p in self.parameters.values()):
            raise ConfigError("fit trains whole copies of a model; one in shares takes a loop of its own, see the docs")
        groups = (
            decay_groups(self.parameters.items(), chosen.weight_decay)
            if chosen.layer_decay == 1
            else layerwise_groups_of(self.inner, chosen.lr, chosen.layer_decay, chosen.weight_decay)
        )
        self.optimizer = _optimizer(chosen, groups, self.parameters.values())
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule = chosen.schedule(self.total)
        if chosen.grad_cache:
            check_cached(self.inner, chosen)
        self.metric, self.least = self._metric()
        self.step, self.report = 0, Fitted()
        self.best: dict[str, Tensor] = {}
        self.since_best, self.losses, self.begun = 0, [], time.perf_counter()  # type: ignore[var-annotated]
        self.columns: list[str] = []

    def _metric(self) -> tuple[str, bool]:
        if self.held_out is None:
            if self.chosen.patience is not None or self.chosen.metric is not None:
                raise ConfigError("patience and metric choose among evaluations; give rows to evaluate on")
            return "loss", True
        supervision = self.held_out.supervision
        name = self.chosen.metric or supervision.measure
        return name, name in ("loss", "perplexity", "mean_squared_error") or (supervision.least and name == "loss")

    def update(self, group: list[Any]) -> None:
        """One step of the optimizer over a group of batches, then what is due after it."""
        share = self.schedule(self.step)
        for rate, each in zip(self.rates, self.optimizer.param_groups, strict=True):
            each["lr"] = rate * share
        self.optimizer.zero_grad(set_to_none=True)
        total, outputs = 0.0, []
        device = next(iter(self.parameters.values())).device
        self.inner.before_step()
        if self.chosen.grad_cache:
            total = grad_cache(self.model, group, partial(autocast, device, self.chosen.precision))
        else:
            for number, batch in enumerate(group, 1):
                with alone(self.model, number < len(group)):
                    loss, output = self._learned(batch, device, len(group))
                total += loss
                outputs.append(output)
        total = mean_over_processes(total, device)
        if not math.isfinite(total):
            raise ConfigError(f"the loss is {total} at update {self.step + 1}; a lower lr or float32 may help")
        if self.chosen.clip:
            clip_gradients(self.parameters.values(), self.chosen.clip)
        self.optimizer.step()
        self.inner.after_step(outputs)
        self.losses.append(total)
        self.step += 1
        self.report.steps = self.step
        chosen, last = self.chosen, self.step == self.total
        due = self.step % (chosen.evaluate_every or self.per_epoch) == 0 or last
        row: dict[str, Any] = {}
        if due or self.step % chosen.log_every == 0:
            row = {
                "step": self.step,
                "epoch": round(self.step / self.per_epoch, 4),
                "lr": chosen.lr * share,
                "loss": sum(self.losses) / len(self.losses),
                "seconds": round(time.perf_counter() - self.begun, 3),
            }
            self.losses = []
        if due and self.held_out is not None:
            row |= self._evaluated(row)
        if row:
            self.report.history.append(row)
            self._log(row)
        if self.out is not None and not last and (self.step % chosen.save_every == 0 if chosen.save_every else due):
            self._write_state()

    def _learned(self, batch: Any, device: torch.device, share: int) -> tuple[float, Any]:
        """A batch's gradients, of one pass or of the steps of adversarial training -> its part of the loss, and
        what `TaskModel.after_step` sees of its result.
        """
        chosen, total = self.chosen, 0.0
        if chosen.adversarial is None:
            with autocast(device, chosen.precision):
                loss, output = self.data.run(self.model, batch)
            (loss / share).backward()
            return float(loss.detach()) / share, self._seen(output)
        context = partial(autocast, device, chosen.precision)
        for attack in attacks(self.data.run, self.model, batch, chosen.adversarial, context):
            (attack.loss / share).backward(retain_graph=not attack.last)
            total += float(attack.loss.detach()) / share
            output = attack.outputs[0]
        return total, self._seen(output)

    def _seen(self, output: Any) -> Any:
        """The scores alone, and only where the task looks at them, so that little is held over an update."""
        return TaskOutput(scores={n: x.detach() for n, x in output.scores.items()}) if self.looks_back else None

    def _evaluated(self, row: Mapping[str, Any]) -> dict[str, float]:
        assert self.held_out is not None
        figures = evaluate(
            self.model, self.held_out, batch_size=2 * self.chosen.batch_size, precision=self.chosen.precision
        )
        if self.metric not in figures:
            raise ConfigError(f"the evaluation gives no {self.metric!r}; it gives {', '.join(figures)}")
        found = {f"eval_{name}": value for name, value in figures.items()}
        value, best = figures[self.metric], self.report.best
        held = math.nan if best is None else best[f"eval_{self.metric}"]
        better = best is None or math.isnan(held) or (value < held if self.least else value > held)
        self.since_best = 0 if better else self.since_best + 1
        if better:
            self.report.best = {**row, **found}
            kept = self._kept().items()
            self.best = {n: p.detach().to("cpu", copy=True) for n, p in kept if not n.startswith(BESIDE)}
            self._save()
        self.report.stopped_early = self.chosen.patience is not None and self.since_best >= self.chosen.patience
        return found

    def _kept(self) -> dict[str, Tensor]:
        """What training changes: trained parameters and buffers."""
        return {**self.parameters, **dict(self.inner.named_buffers())}

    def finish(self) -> None:
        """The best weights back into the model, and the model to disk."""
        if self.best:
            with torch.no_grad():
                for name, tensor in self._kept().items():
                    if name in self.best:
                        tensor.copy_(self.best[name])
        else:
            self._save()
        self.model.eval()
        self._write_state(finished=True)

    def _save(self) -> None:
        if self.out is not None and rank() == 0:
            saving.save(self.inner, self.out, self.tokenizer)

    def _log(self, row: Mapping[str, Any]) -> None:
        if self.on_event is not None:
            self.on_event({**row, "total": self.total})
        if self.out is None or rank():
            return
        path = self.out / FOLDER / "log.csv"
        if path.exists() and set(row) <= set(self.columns):
            with path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(row)
            return
        self.columns = list(dict.fromkeys(name for each in self.report.history for name in each))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.report.history)
        write_atomically(path, text.getvalue(), durable=False)

    def _write_state(self, finished: bool = False) -> None:
        if self.out is not None:
            state = self._state(finished)  # of every process: their generators
            if rank() == 0:
                write_state(self.out / FOLDER, state)

    def _state(self, finished: bool) -> State:
        about = {
            "step": self.step,
            "since_best": self.since_best,
            "losses": self.losses,
            "seconds": time.perf_counter() - self.begun,
            "settings": self.chosen.to_dict(),
            "total": self.total,
            "report": asdict(self.report),
            "finished": finished,
        }
        if finished:
            return State(about, {})
        tensors = {f"model.{name}": tensor for name, tensor in self._kept().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        for number, held in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in held.items()}
        tensors |= {f"generator.{n}": state for n, state in enumerate(gathered(torch.get_rng_state()))}
        if torch.cuda.is_available():
            tensors |= {f"cuda.{n}": state for n, state in enumerate(gathered(torch.cuda.get_rng_state()))}
        return State(about, tensors)

    def resumed(self) -> bool:
        """Take up a run where it was written down; True where it was finished already."""
        state = None if self.out is None else read_state(self.out / FOLDER)
        if state is None:
            return False
        about = state.about
        settings = Settings().to_dict() | about["settings"]  # a run of an earlier version had what is the default now
        differ = [name for name, value in self.chosen.to_dict().items() if settings[name] != value]
        if differ or about["total"] != self.total:
            what = ", ".join(differ) if differ else f"the number of rows ({about['total']} updates, now {self.total})"
            raise ConfigError(f"the run in {self.out} had other settings: {what}; go on with the same, or begin anew")
        self.step, self.since_best, self.losses = about["step"], about["since_best"], about["losses"]
        self.begun = time.perf_counter() - about["seconds"]
        self.report = Fitted(**about["report"])
        with torch.no_grad():
            if about["finished"]:
                trained = load(str(self.out), task=self.inner.task).state_dict()
                own = self.inner.state_dict()
                for name, tensor in trained.items():
                    own[name].copy_(tensor)
                self.model.eval()
                return True
            for name, tensor in self._kept().items():
                tensor.copy_(state.tensors[f"model.{name}"])
        self.best = {n[5:]: tensor for n, tensor in state.tensors.items() if n.startswith("best.")}
        held = self.optimizer.state_dict()
        held["state"] = {}
        for name, tensor in state.tensors.items():
            if name.startswith("optimizer."):
                _, number, key = name.split(".", 2)
                held["state"].setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict(held)
        if f"generator.{rank()}" in state.tensors:  # with more processes than before the new ones begin anew
            torch.set_rng_state(state.tensors[f"generator.{rank()}"])
        if torch.cuda.is_available() and f"cuda.{rank()}" in state.tensors:
            torch.cuda.set_rng_state(state.tensors[f"cuda.{rank()}"])
        return False


def _optimizer(chosen: Settings, groups: list[Group], parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    if chosen.optimizer == "lars":
        return Lars(groups, lr=chosen.lr)
    if chosen.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=chosen.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=chosen.lr, fused=_fused(parameters))


def _fused(parameters: Iterable[Tensor]) -> bool:
    """One kernel for all parameters, where they lie on a device that has it."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
