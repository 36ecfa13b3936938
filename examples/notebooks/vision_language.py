"""Train a small ViLBERT on pictures and their names. `python -m docs.notebooks vision_language` renders it."""

# %% [markdown]
# # Words and pictures
#
# You will draw pictures, cut each into regions, train a small ViLBERT on them and their names, and then ask it two
# things about pictures that it never saw: which of them a name belongs to, and which word of a name is missing.
#
# The pictures are emoji of people and hands from Debian's font Noto Color Emoji (SIL Open Font License):
# `apt-get install fonts-noto-color-emoji`, or name the file in the environment variable `EMOJI_FONT`. Their English
# names come from the package emoji on PyPI.

# %%
import json
import os
import textwrap

import numpy as np
import torch
from matplotlib import pyplot
from PIL import Image, ImageDraw, ImageFont

import zoo
from zoo.checkpoints.fetching.fetch import fetch
from zoo.data.collate import MaskedLMCollator
from zoo.data.regions.grid import grid_regions, patches
from zoo.tasks.metrics.vision import recall, retrieval_ranks
from zoo.tokenization.wordpiece import wordpiece

FONT = os.environ.get("EMOJI_FONT", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")

# %% [markdown]
# ## Pictures and names
#
# Take emoji that exist in all five skin tones. Of each, one tone is held out: the model sees the gesture and the tone
# in training, but never both together.

# %%
table = json.loads(fetch("package:emoji==2.16.0#emoji/unicode_codes/emoji.json").read_text(encoding="utf-8"))
by_name = {about["en"].strip(":").replace("_", " "): text for text, about in table.items()}
people = [name for name in by_name if all(f"{name} {tone} skin tone" in by_name for tone in TONES)]
people = [name for name in people if name.islower() and not any(word in name for word in ("couple", "kiss", "holding"))]
people = people[:: len(people) // 60][:60]
face = ImageFont.truetype(FONT, 109)  # the one size in which this font draws


def draw(name):
    """A picture of 64 x 64 pixels, (3, 64, 64) in 0..1."""
    picture = Image.new("RGB", (136, 128), (124, 116, 104))
    ImageDraw.Draw(picture).text((0, 0), by_name[name], font=face, embedded_color=True)
    return torch.from_numpy(np.array(picture.resize((64, 64)))).permute(2, 0, 1) / 255


generator = torch.Generator().manual_seed(0)
held_out = [f"{name} {TONES[int(torch.randint(len(TONES), (1,), generator=generator))]} skin tone" for name in people]
train = [name for base in people for tone in TONES if (name := f"{base} {tone} skin tone") not in held_out]
pictures = {name: draw(name) for name in (*train, *held_out)}
print(len(train), "pictures to train on,", len(held_out), "held out")

figure, axes = pyplot.subplots(2, 6, figsize=(9, 4))
for axis, name in zip(axes.flat, [*train[:6], *held_out[:6]], strict=True):
    axis.imshow(pictures[name].permute(1, 2, 0))
    axis.set_title(textwrap.fill(name.replace(" skin tone", ""), 16), fontsize=7)
    axis.axis("off")
figure.set_label("Twelve emoji of people and hands with their names, six to train on above six that are held out")

# %% [markdown]
# ## Regions
#
# Models of this kind read a picture as regions: a feature vector and a box for each. Usually a detector finds them.
# Here they are the cells of a 4 x 4 grid, and the feature is the cell's pixels. `for_model` brings features and boxes
# into the form that a model's config asks for; for ViLBERT it puts the whole picture first.

# %%
sizes = dict(hidden_size=96, num_layers=2, num_heads=4, intermediate_size=192, max_positions=32)
image_sizes = dict(image_hidden_size=96, image_num_layers=2, image_num_heads=4, image_intermediate_size=192)
joined = dict(co_hidden_size=96, co_num_heads=4, text_connections=(1,), image_connections=(1,))
regularization = dict(dropout=0.0, attention_dropout=0.0, image_dropout=0.0, image_attention_dropout=0.0)
texts = {name: name.replace(" skin tone", "").replace("-", "") for name in pictures}  # "medium-dark" is one word
words = sorted({word for text in texts.values() for word in text.split()})
vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
tokenizer = wordpiece({word: number for number, word in enumerate(vocabulary)}, max_length=32)
model = zoo.create(
    "vilbert-base",
    task="pretraining",
    generator=generator,
    **dict(vocab_size=len(vocabulary), visual_size=3 * 16 * 16, region_target_size=1, initializer_range=0.1),
    **sizes | image_sizes | joined | regularization,
)


def seen(names):
    """What the model reads of these pictures."""
    stacked = torch.stack([pictures[name] for name in names])
    return grid_regions(stacked, patches(16), size=None).for_model(model.config)


print(f"{model.num_parameters():,} parameters")
print({name: tuple(value.shape) for name, value in seen(train[:2]).items()})

# %% [markdown]
# ## Training
#
# Two of ViLBERT's objectives: say whether words and picture belong together (half of the names belong to another
# picture), and fill masked words (only where the name belongs to the picture, since another picture doesn't
# help). In this family, label 0 means that they belong together.

# %%
STEPS, BATCH = 900, 48
collate = MaskedLMCollator(mask_id=4, vocab_size=len(vocabulary), special_ids=(0, 2, 3, 4), probability=0.3)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98))
falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 30) * (1 - step / STEPS))
ids = [tokenizer.encode(texts[name]).ids for name in train]
history = []
model.train()
for _ in range(STEPS):
    picture = torch.randint(len(train), (BATCH,), generator=generator)
    other = torch.randint(len(train), (BATCH,), generator=generator)
    name = torch.where(torch.rand(BATCH, generator=generator) < 0.5, picture, other)
    batch = collate([{"input_ids": ids[n]} for n in name.tolist()], generator)
    batch["labels"] = batch["labels"].masked_fill((name != picture)[:, None], -100)
    output = model(**batch, **seen([train[n] for n in picture.tolist()]), match_labels=(name != picture).long())
    output.loss.backward()
    optimizer.step()
    falling.step()
    optimizer.zero_grad()
    history.append({key: float(value.detach()) for key, value in output.losses.items()})

figure, axis = pyplot.subplots(figsize=(7, 3.2))
for key in history[0]:
    values = torch.tensor([row[key] for row in history])
    axis.plot(range(10, STEPS, 20), values.unfold(0, 20, 20).mean(1), label=key.replace("_", " "))
axis.set(xlabel="update", ylabel="loss", ylim=(0, None))
axis.legend(frameon=False)
figure.set_label("The losses of matching and of masked words fall while the model is trained")

# %% [markdown]
# ## Find the picture
#
# Every held-out name with every held-out picture: with `all_pairs=True` each name and each picture runs through its
# own stream only once before the first co-attention. Guessing would find one in 60.

# %%
model.eval()
with torch.inference_mode():
    pooled = model.model(
        **tokenizer([texts[name] for name in held_out]), **seen(held_out), all_pairs=True
    ).pooler_output
    logits = model.heads["image_text_matching"](pooled).view(len(held_out), len(held_out), 2)
scores = logits[..., 0] - logits[..., 1]  # (names, pictures)
ranks = retrieval_ranks(scores, range(len(held_out)))
for direction, meaning in (("t2i", "name to picture"), ("i2t", "picture to name")):
    print(meaning, {k: f"{share:.0%}" for k, share in recall(ranks[direction]).items()})

# %%
figure, axes = pyplot.subplots(4, 5, figsize=(8, 6.6))
for line, number in zip(axes, range(0, 60, 15), strict=True):
    for axis, found in zip(line, scores[number].topk(5).indices.tolist(), strict=True):
        axis.imshow(pictures[held_out[found]].permute(1, 2, 0))
        axis.set(xticks=[], yticks=[])
        for edge in axis.spines.values():
            edge.set(color="tab:green" if found == number else "none", linewidth=3)
    line[0].set_title(held_out[number], fontsize=9, loc="left")
figure.set_label(
    "For four held-out names the five pictures that the model ranks first; the right one has a green frame"
)

# %% [markdown]
# ## Fill the missing word
#
# The question is the same for every picture, so the answer comes from the picture alone.

# %%
tones = [tone.replace("-", "") for tone in TONES]
for name in (name for base in people[:2] for name in pictures if name.startswith(f"{base} ")):
    asked = tokenizer([" ".join("[MASK]" if word in tones else word for word in texts[name].split())])
    with torch.inference_mode():
        logits = model(**asked, **seen([name])).prediction_logits[0]
    chances = logits[asked["input_ids"][0].tolist().index(4)].softmax(-1).topk(2)
    guesses = [
        f"{vocabulary[i]} {p:.2f}" for p, i in zip(chances.values.tolist(), chances.indices.tolist(), strict=True)
    ]
    print(f"{name:55}", ", ".join(guesses), "(held out)" if name in held_out else "")

# %% [markdown]
# Files of detector features, boxes, and how models read them: [regions of pictures](../guides/regions.md). The same
# with 2,140 pictures and VisualBERT too: [words and pictures, learned from emoji](../guides/emoji-retrieval.md).
