"""The loops that people have: transformers.Trainer, accelerate, Lightning, plain PyTorch."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.utils.data import DataLoader

import zoo
from tests.training.test_loop import classifier, model_for, rows, tokenizer  # noqa: F401
from zoo.errors import TaskError
from zoo.training import for_trainer

NAMES = ["low", "high"]


def examples(tokenizer, count=32):  # noqa: F811
    found = []
    for row in rows(count):
        encoded = tokenizer(row["text"])
        found.append(
            {name: value[0].tolist() for name, value in encoded.items()} | {"labels": NAMES.index(row["label"])}
        )
    return found


def collate(found):
    width = max(len(example["input_ids"]) for example in found)
    batch = {
        name: torch.tensor([example[name] + [0] * (width - len(example[name])) for example in found])
        for name in found[0]
        if name != "labels"
    }
    return batch | {"labels": torch.tensor([example["labels"] for example in found])}


@pytest.fixture
def trainer_parts(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    def arguments(**more):
        return transformers.TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            learning_rate=1e-2,
            per_device_train_batch_size=8,
            **more,
        )

    return transformers.Trainer, arguments


def test_transformers_trainer_trains_evaluates_and_saves(tokenizer, trainer_parts, tmp_path):  # noqa: F811
    trainer_class, arguments = trainer_parts
    model = classifier(dropout=0.0, attention_dropout=0.0)
    frozen = model.config
    trainer = trainer_class(
        for_trainer(model),
        arguments(max_steps=24, gradient_checkpointing=True, save_steps=24, logging_steps=12),
        train_dataset=examples(tokenizer),
        eval_dataset=examples(tokenizer),
        data_collator=collate,
        compute_metrics=lambda found: {"accuracy": float((found.predictions.argmax(1) == found.label_ids).mean())},
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_accuracy"] >= 0.5
    assert model.config is frozen
    model.eval()
    batch = collate(examples(tokenizer))
    zoo.save(trainer.model, tmp_path / "saved", tokenizer)
    again = zoo.load(tmp_path / "saved")
    assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_trainer_goes_on_from_its_own_checkpoint(tokenizer, trainer_parts):  # noqa: F811
    trainer_class, arguments = trainer_parts
    model = classifier(dropout=0.0, attention_dropout=0.0)
    parts = {"train_dataset": examples(tokenizer), "data_collator": collate}
    trainer_class(for_trainer(model), arguments(max_steps=4, save_steps=2), **parts).train()
    fresh = classifier(dropout=0.0, attention_dropout=0.0)
    resumed = trainer_class(for_trainer(fresh), arguments(max_steps=4, save_steps=2), **parts)
    resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-2")
    for left, right in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_what_trainer_is_told_of_a_model(tokenizer):  # noqa: F811
    import inspect

    wrapped = for_trainer(classifier())
    names = list(inspect.signature(wrapped.forward).parameters)
    assert {"input_ids", "attention_mask", "token_type_ids", "labels"} <= set(names)
    assert wrapped.config.id2label == {0: "low", 1: "high"}
    wrapped.config.use_cache = False
    with pytest.raises(AttributeError):
        wrapped.module.config.use_cache = False
    answers = for_trainer(model_for("question-answering"))
    assert "QuestionAnswering" in type(answers).__name__
    assert {"start_positions", "end_positions"} <= set(inspect.signature(type(answers).forward).parameters)
    with pytest.raises(TaskError, match="a bare model"):
        for_trainer(classifier().model)


def test_accelerate_trains_a_model(tokenizer):  # noqa: F811
    accelerate = pytest.importorskip("accelerate")
    torch.manual_seed(0)
    model = classifier(dropout=0.0, attention_dropout=0.0)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(examples(tokenizer), batch_size=8, collate_fn=collate)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    losses = []
    for _ in range(6):
        for batch in loader:
            with accelerator.accumulate(prepared):
                loss = prepared(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                losses.append(float(loss.detach()))
    assert sum(losses[-4:]) < sum(losses[:4])
    assert accelerator.unwrap_model(prepared) is model


def test_lightning_trains_a_model(tokenizer, tmp_path):  # noqa: F811
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = classifier(dropout=0.0, attention_dropout=0.0)
            self.seen = []

        def training_step(self, batch, number):
            loss = self.model(**batch)["loss"]
            self.seen.append(float(loss.detach()))
            return {"loss": loss}

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    torch.manual_seed(0)
    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=6,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        ).fit(module, DataLoader(examples(tokenizer), batch_size=8, collate_fn=collate))
    assert sum(module.seen[-4:]) < sum(module.seen[:4])


def test_plain_pytorch_trains_a_model(tokenizer):  # noqa: F811
    model = classifier(dropout=0.0, attention_dropout=0.0).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    batch = collate(examples(tokenizer))
    losses = []
    for _ in range(6):
        loss, logits = model(**batch)[:2]
        assert logits.shape == (32, 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
