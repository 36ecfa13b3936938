"""Trained weights that packages ship, against their authors' numbers and `transformers`; skipped
where they can't be had.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch

import zoo
from zoo.checkpoints.checkpoint import open_checkpoint
from zoo.checkpoints.locate import locate
from zoo.errors import FetchError
from zoo.formats.opening import open_archive
from zoo.maps import layouts

pytestmark = pytest.mark.weights

REACTIONS = [  # of rxnmapper's README and of rxnfp's
    "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F",
    "C1COCCO1.CC(C)(C)OC(=O)CONC(=O)NCc1cccc2ccccc12.Cl>>O=C(O)CONC(=O)NCc1cccc2ccccc12",
    "Nc1cccc2cnccc12.O=C(O)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1>>O=C(Nc1cccc2cnccc12)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1",
]
SHIPPED = {
    "minilm-l6-h384.all-minilm-l6-v2": "hf-bert",
    "albert-rxn.rxnmapper": "hf-albert",
    "bert-rxn.pretrained": "hf-bert",
    "bert-rxn.ft": "hf-bert",
    "bert-rxn.ft-10k-25s": "hf-bert",
    "roberta-antibody.sapiens-vh": "fairseq-roberta",
    "roberta-antibody.sapiens-vl": "fairseq-roberta",
    "efficientnet-lite0.ml-illustrated": "efficientnet-pytorch",
}
HEAVY_CHAIN = (  # of sapiens' README, * where a residue is unknown
    "**QLV*SGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYWGQGTTVTVSS"
)
LIGHT_CHAIN = (
    "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK"
)


@functools.cache
def folder(name: str) -> Path:
    """The fetched files, or a skip that says why."""
    try:
        return locate(name)[0]
    except FetchError as error:
        pytest.skip(f"{name} can't be had here: {error}")


def oracle(cls: str, config_cls: str, path: Path):
    import transformers

    config = getattr(transformers, config_cls).from_json_file(str(path / "config.json"))
    return getattr(transformers, cls).from_pretrained(str(path), config=config, attn_implementation="eager").eval()


def test_minilm_gives_the_published_similarities():
    folder("minilm-l6-h384.all-minilm-l6-v2")
    model = zoo.create("minilm-l6-h384.all-minilm-l6-v2", pretrained=True, task="sentence-embedding")
    texts = [
        "A man is playing a guitar.",
        "Someone plays an instrument.",
        "A woman is slicing onions.",
        "The senate passed the bill on Tuesday.",
        "Lawmakers approved the legislation.",
    ]
    with torch.inference_mode():
        vectors = model(**zoo.tokenizer("minilm-l6-h384.all-minilm-l6-v2")(texts)).embedding
    for a, b, cosine in [(0, 1, 0.667), (0, 2, 0.111), (3, 4, 0.600)]:
        assert float(vectors[a] @ vectors[b]) == pytest.approx(cosine, abs=1e-3)


def test_the_reaction_albert_predicts_token_by_token_what_transformers_does():
    path = folder("albert-rxn.rxnmapper")
    ours = zoo.create("albert-rxn.rxnmapper", pretrained=True, task="masked-lm")
    theirs = oracle("AlbertForMaskedLM", "AlbertConfig", path)
    tokenizer = zoo.tokenizer("albert-rxn.rxnmapper")
    hits = total = 0
    for reaction in REACTIONS[:2]:
        ids = tokenizer([reaction])["input_ids"]
        places = torch.arange(1, ids.shape[1] - 1)
        masked = ids.repeat(len(places), 1)
        masked[torch.arange(len(places)), places] = tokenizer.mask_token_id
        with torch.inference_mode():
            a, b = ours(masked).prediction_logits, theirs(masked).logits
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        mine, other = (x[torch.arange(len(places)), places].argmax(1) for x in (a, b))
        assert torch.equal(mine, other)
        hits += int((mine == ids[0, places]).sum())
        total += len(places)
    assert hits / total > 0.95  # trained: random weights hit none


def test_the_reaction_bert_gives_its_authors_fingerprint():
    folder("bert-rxn.ft")
    model = zoo.create("bert-rxn.ft", pretrained=True)
    with torch.inference_mode():
        vector = model(**zoo.tokenizer("bert-rxn.ft")([REACTIONS[2]])).last_hidden_state[0, 0]
    published = torch.tensor([-2.0174954, 1.7602034, -1.3323537, -1.1095020, 1.2254549])
    torch.testing.assert_close(vector[:5], published, rtol=0, atol=1e-5)


def test_a_classifier_whose_config_misnames_its_labels_takes_their_number_from_the_weights():
    path = folder("bert-rxn.ft-10k-25s")
    model = zoo.create("bert-rxn.ft-10k-25s", pretrained=True, task="sequence-classification")
    amides = [REACTIONS[2], "CC(=O)O.NCc1ccccc1>>CC(=O)NCc1ccccc1"]
    with torch.inference_mode(), open_archive(path) as archive:
        encoded = model(**zoo.tokenizer("bert-rxn.ft-10k-25s")(amides))
        head = torch.nn.functional.linear(
            encoded.encoded.pooler_output, archive.read("classifier.weight"), archive.read("classifier.bias")
        )
    assert encoded.logits.shape == (2, 50)
    torch.testing.assert_close(encoded.logits, head)
    assert encoded.logits.argmax(1).unique().numel() == 1  # both form an amide from an acid
    assert float(encoded.logits.softmax(1).amax(1).min()) > 0.99


def test_the_antibody_roberta_gives_its_authors_probabilities_to_six_digits():
    folder("roberta-antibody.sapiens-vh")
    model = zoo.create("roberta-antibody.sapiens-vh", pretrained=True, task="masked-lm")
    tokenizer = zoo.tokenizer("roberta-antibody.sapiens-vh")
    with torch.inference_mode():
        residues = model(**tokenizer([HEAVY_CHAIN.replace("*", "<mask>")])).prediction_logits[0, 1:-1].softmax(-1)
    published = torch.tensor(
        [
            [0.003272, 0.004147, 0.004011, 0.004590],
            [0.012038, 0.003854, 0.006803, 0.008174],
            [0.003384, 0.003895, 0.003726, 0.004068],
            [0.004612, 0.005325, 0.004443, 0.004641],
            [0.005519, 0.003664, 0.003555, 0.005269],
        ]
    )
    assert residues.shape == (len(HEAVY_CHAIN), 25)
    torch.testing.assert_close(
        residues[:5, [tokenizer.backend.token_to_id(letter) for letter in "ACDE"]], published, rtol=0, atol=6e-7
    )


def test_the_light_chain_s_roberta_knows_a_light_chain():
    folder("roberta-antibody.sapiens-vl")
    model = zoo.create("roberta-antibody.sapiens-vl", pretrained=True, task="masked-lm")
    ids = zoo.tokenizer("roberta-antibody.sapiens-vl")([LIGHT_CHAIN])["input_ids"]
    places = torch.arange(len(LIGHT_CHAIN))
    masked = ids.repeat(len(places), 1)
    masked[places, places + 1] = 24
    with torch.inference_mode():
        found = model(masked).prediction_logits[places, places + 1].argmax(1)
    assert int((found == ids[0, 1:-1]).sum()) == 101  # of 107, as transformers finds with the same tensors


@pytest.mark.parametrize(("picture", "label"), [("china.jpg", "palace"), ("flower.jpg", "daisy")])
def test_the_small_efficientnet_knows_what_pictures_show(picture, label):
    datasets = pytest.importorskip("sklearn.datasets")
    folder("efficientnet-lite0.ml-illustrated")
    model = zoo.create("efficientnet-lite0", pretrained=True, task="image-classification")
    with torch.inference_mode():
        shares = model(zoo.images("efficientnet-lite0")([datasets.load_sample_image(picture)])).logits.softmax(1)
    assert model.options["labels"][int(shares.argmax())] == label
    assert float(shares.max()) > 0.25


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_checkpoint_passes_every_check(name):
    folder(name)
    found = zoo.verify(name)
    assert [(check.name, check.passed) for check in found.results] == [
        *((check, True) for check in ("hash", "keys", "values", "ties", "contract")),
        ("binding", None),  # the zoo didn't write these files
        ("probe", True),
    ], str(found)


@pytest.mark.parametrize("name", SHIPPED)
def test_converted_and_taken_back_every_bit_is_there(name, tmp_path):
    path = folder(name)
    zoo.convert(name, tmp_path / "ours")
    zoo.convert(tmp_path / "ours", tmp_path / "back", to=SHIPPED[name])
    again = zoo.convert(tmp_path / "back", tmp_path / "again.safetensors")
    with (
        open_archive(path) as original,
        open_archive(tmp_path / "back") as back,
        open_archive(tmp_path / "ours") as ours,
    ):
        keymap = layouts.load(SHIPPED[name])
        with open_checkpoint(path, layout=SHIPPED[name]) as checkpoint:
            plan = checkpoint.plan()
        kept, copies = [source for step in plan.steps for source in step.sources], [copy for copy, _ in plan.ties]
        theirs = dict(zip(keymap.clean_names(kept + copies), kept + copies, strict=True))
        mine = dict(zip(keymap.clean_names(back.tensors), back.tensors, strict=True))
        assert (
            set(keymap.clean_names(kept)) <= set(mine) <= set(theirs)
        )  # some layouts store copies of tied tensors, some don't
        assert all(torch.equal(original.read(theirs[n]), back.read(mine[n])) for n in mine)
        with open_archive(tmp_path / "again.safetensors") as second:
            assert set(ours.tensors) == set(second.tensors)
            assert all(torch.equal(ours.read(n), second.read(n)) for n in ours.tensors)
    assert again.checks.ok


def test_saved_and_loaded_again_the_model_is_the_same(tmp_path):
    folder("albert-rxn.rxnmapper")
    model = zoo.create("albert-rxn.rxnmapper", pretrained=True, task="masked-lm")
    saved = zoo.save(model, tmp_path / "model", zoo.tokenizer("albert-rxn.rxnmapper"))
    again = zoo.load(saved)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    batch = zoo.tokenizer(saved)([REACTIONS[0]])
    with torch.inference_mode():
        assert torch.equal(model(**batch).logits, again(**batch).logits)
