"""Convert a public checkpoint and back. `python -m docs.notebooks convert` renders it."""

# %% [markdown]
# # Convert a checkpoint
#
# You will take a checkpoint as its authors published it (a pickle of PyTorch with a JSON config), look at it without
# executing anything, convert it to safetensors with every check on, and convert it back so that the
# library transformers reads it.
#
# The checkpoint is an ALBERT that learned chemical reactions
# ([Schwaller et al., 2021](https://doi.org/10.1126/sciadv.abe4166)); the package rxnmapper on PyPI ships it (3 MB).

# %%
import json
from pathlib import Path

import torch
from matplotlib import pyplot

import zoo
from zoo.checkpoints.fetching.fetch import fetch

folder = fetch("package:rxnmapper==0.4.3#rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k")
for path in sorted(folder.iterdir()):
    print(f"{path.stat().st_size:>9,}  {path.name}")

# %% [markdown]
# ## Look at it
#
# `zoo.inspect` reads names and shapes. Pickles are read by an interpreter that can only build tensors and plain
# containers.

# %%
seen = zoo.inspect(folder)
for key in ("format", "layout", "family", "tensors", "dtypes", "refused", "heads", "dropped", "missing", "problems"):
    print(f"{key:9}", seen[key])

# %% [markdown]
# ## Convert it
#
# The layout (whose tensor names these are) is recognized from the config and the keys. A missing tensor, one too
# many, a wrong shape, a value that is not finite or an unknown config key is an error, and nothing is written.

# %%
print(zoo.convert(folder, "albert-rxn"))

# %% [markdown]
# The output is a folder with our names, which `zoo.verify` can check again at any time.

# %%
print(sorted(path.name for path in Path("albert-rxn").iterdir()))
print(zoo.verify("albert-rxn"))

# %% [markdown]
# ## Use it
#
# Mask each token of a reaction in turn and predict it. An untrained model of the same size shows what chance is.

# %%
reaction = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F"
tokenizer = zoo.tokenizer("albert-rxn")
encoding = tokenizer.encode(reaction)
ids = torch.tensor(encoding.ids)
places = torch.arange(1, len(ids) - 1)  # all but [CLS] and [SEP]
masked = ids.repeat(len(places), 1)
masked[torch.arange(len(places)), places] = tokenizer.backend.token_to_id("[MASK]")


def right(model):
    """For each place, whether the model's first guess is the token that stood there."""
    with torch.inference_mode():
        logits = model.eval()(input_ids=masked, attention_mask=torch.ones_like(masked)).logits
    logits = logits.view(len(places), len(ids), -1)
    return logits[torch.arange(len(places)), places].argmax(-1) == ids[places]


trained = zoo.load("albert-rxn", task="masked-lm")
random = zoo.create("albert-rxn", task="masked-lm", generator=torch.Generator().manual_seed(0))
print(f"trained: {int(right(trained).sum())} of {len(places)}; random weights: {int(right(random).sum())}")

# %% [markdown]
# The paper reads the mapping from product atoms to reactant atoms off one attention head, the sixth of the
# eleventh layer. Each row is a token of the product.

# %%
with torch.inference_mode():
    attentions = zoo.load("albert-rxn")(ids[None], output_attentions=True).attentions
arrow = encoding.tokens.index(">>")
head = attentions[10][0, 5]  # (query, key)
figure, axis = pyplot.subplots(figsize=(9, 4))
axis.imshow(head[arrow + 1 : -1, 1:arrow], cmap="Blues", aspect="auto")
axis.set_xticks(range(arrow - 1), encoding.tokens[1:arrow], rotation=90, fontsize=8)
axis.set_yticks(range(len(ids) - arrow - 2), encoding.tokens[arrow + 1 : -1], fontsize=8)
axis.set(xlabel="reactants", ylabel="product")
figure.set_label("Attention of each product token to the reactants' tokens: most rows have one dark cell, its own atom")

# %% [markdown]
# ## Back again
#
# `to=` names a public layout. transformers reads the folder that is written.

# %%
print(zoo.convert("albert-rxn", "for-transformers", to="hf-albert"))

# %%
from transformers import AlbertForMaskedLM

theirs = AlbertForMaskedLM.from_pretrained("for-transformers").eval()
with torch.inference_mode():
    ours = trained.eval()(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).logits
    difference = (theirs(ids[None]).logits[0] - ours).abs().max()
print(f"largest difference of a logit: {difference:.0e}")

# %% [markdown]
# ## What is refused
#
# A config that contradicts the tensors is refused.

# %%
config = json.loads((folder / "config.json").read_text())
try:
    zoo.convert(folder / "pytorch_model.bin", "wrong.safetensors", config=config | {"num_attention_heads": 7})
except zoo.ZooError as error:
    print(error)
try:
    zoo.convert(folder / "pytorch_model.bin", "wrong.safetensors", config=config | {"intermediate_size": 1024})
except zoo.ZooError as error:
    print(error)
print("written:", Path("wrong.safetensors").exists())

# %% [markdown]
# Formats, layouts, and how to write a map for a layout of your own: [converting checkpoints](../guides/convert.md).
