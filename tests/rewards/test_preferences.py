"""Learning from preferences: the loss by hand, files, training, and whole checkpoints (trap 14)."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import save_classifier, save_language_model, word_tokenizer
from support.pairs import separable_pairs
from transformers import AutoModelForSequenceClassification

from tokenenv.data import read_pairs
from tokenenv.models.language_model import load_frozen
from tokenenv.rewards import pair_training, preferences
from tokenenv.rewards.pairs import PreferencePair, TokenPair
from tokenenv.rewards.preferences import (
    RewardTrainingSettings,
    evaluate_preferences,
    preference_loss,
    train_reward_model,
)
from tokenenv.rewards.reward_model import load_reward_model, new_reward_model
from tokenenv.tasks import load_task

LN2 = math.log(2.0)


def float64(*values):
    return torch.tensor(values, dtype=torch.float64)


# The loss and the report, by hand ----------------------------------------------------------------


def test_equal_rewards_cost_exactly_ln_2():
    rewards = float64(0.0, 3.7, -12.5, 1e4)
    assert abs(preference_loss(rewards, rewards).item() - LN2) <= 1e-15
    assert abs(evaluate_preferences(rewards.numpy(), rewards.numpy()).loss - LN2) <= 1e-15


def test_loss_margin_and_centring_by_hand():
    chosen, rejected = float64(1.0, -0.5), float64(0.25, 0.5)
    # differences .75 and −1: −log σ(.75) = .386871, −log σ(−1) = 1.313262
    assert preference_loss(chosen, rejected).item() == pytest.approx(
        (math.log1p(math.exp(-0.75)) + math.log1p(math.exp(1.0))) / 2, abs=1e-12
    )
    # margins .75 and −1 take both differences to 0: ln 2
    assert preference_loss(chosen, rejected, float64(0.75, -1.0)).item() == pytest.approx(
        LN2, abs=1e-15
    )
    # centring: (1.25² + 0²)/2 = .78125, times .1
    with_centring = preference_loss(chosen, rejected, centering_coef=0.1)
    assert with_centring.item() - preference_loss(chosen, rejected).item() == pytest.approx(
        0.078125, abs=1e-12
    )


def test_the_loss_stays_finite_and_has_a_gradient_far_out():
    chosen = torch.tensor([-1000.0], requires_grad=True)
    loss = preference_loss(chosen, torch.tensor([1000.0]))
    loss.backward()
    assert loss.item() == 2000.0 and chosen.grad.item() == -1.0


def test_the_report_by_hand():
    """Two wins, one loss, one tie (½): accuracy 2.5/4. Differences 2, 2, −2, 0."""
    report = evaluate_preferences(np.array([2.0, 3.0, 0.0, 1.0]), np.array([0.0, 1.0, 2.0, 1.0]))
    assert report.pairs == 4
    assert report.accuracy == 0.625
    assert report.mean_margin == 0.5
    expected = (2 * math.log1p(math.exp(-2)) + math.log1p(math.exp(2)) + LN2) / 4
    assert report.loss == pytest.approx(expected, abs=1e-12)
    # σ(2) = .880797: the bin [.8, .9) holds three predictions (two pairs as given, one turned
    # round), 2 of 3 won: |3·.880797 − 2| = .642391. Its mirror [.1, .2) has the same gap. The tie
    # gives ½ twice, won once: no gap. ECE = 2·.642391/8.
    sigma = 1 / (1 + math.exp(-2))
    assert report.calibration_error == pytest.approx(2 * abs(3 * sigma - 2) / 8, abs=1e-12)
    assert report.as_dict()["accuracy"] == 0.625


def test_margins_enter_the_loss_of_the_report_only():
    chosen, rejected = np.array([1.0, 2.0]), np.array([0.0, 0.0])
    report = evaluate_preferences(chosen, rejected, np.array([1.0, 2.0]))
    assert report.loss == pytest.approx(LN2, abs=1e-15)
    assert (report.accuracy, report.mean_margin) == (1.0, 1.5)


def test_a_calibrated_annotator_has_no_calibration_error(rng):
    differences = rng.normal(0.0, 1.5, size=200_000)
    won = rng.random(len(differences)) < 1 / (1 + np.exp(-differences))
    signed = np.where(won, differences, -differences)
    assert evaluate_preferences(signed, np.zeros_like(signed)).calibration_error < 0.005
    overconfident = evaluate_preferences(3 * signed, np.zeros_like(signed))
    assert overconfident.calibration_error > 0.05


# Files -------------------------------------------------------------------------------------------

GOOD = '{"prompt": "p", "chosen": "c", "rejected": "r"}'


def test_pairs_are_read_with_their_margins(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": "p", "chosen": "a\u2028b", "rejected": "r", "margin": 2},
        {"prompt": "q", "chosen": "c", "rejected": "d", "id": 7},
    ]
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    file.write_text("\ufeff" + text + "\r\n", encoding="utf-8")
    assert read_pairs(file) == [
        PreferencePair("p", "a\u2028b", "r", 2.0),
        PreferencePair("q", "c", "d", 0.0),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty: it needs at least one row"),
        ("\n\n", "is empty: it needs at least one row"),
        (f'{GOOD}\n{{"prompt": "p", "chosen": "c"}}', "line 2: the field 'rejected' is missing"),
        (f'{GOOD}\n\n{{"chosen": "c", "rejected": "r"}}', "line 3: the field 'prompt' is missing"),
        ('{"prompt": "p", "chosen": 5, "rejected": "r"}', "'chosen' is a int, it must be a string"),
        ('{"prompt": "p", "chosen": "c", "rejected": null}', "'rejected' is null"),
        (GOOD[:-1] + ', "margin": "1"}', "line 1: 'margin' is '1', it must be a finite number"),
        (GOOD[:-1] + ', "margin": NaN}', "line 1: NaN is no number in JSON"),
        (
            GOOD[:-1] + ', "margin": 1e39}',
            "line 1: 'margin' is 1e\\+39, it must be a finite number",
        ),
        (GOOD[:-1] + ', "margin": true}', "line 1: 'margin' is True"),
        (f"{GOOD}\n{GOOD[:-1]}", "line 2: not valid JSON"),
        (f"{GOOD}\n[1]", r"line 2: needs a JSON object, got '\[1\]'"),
    ],
)
def test_malformed_pairs_name_the_line(tmp_path, content, message):
    file = tmp_path / "pairs.jsonl"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_pairs(file)


def test_a_missing_file_of_pairs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"pairs='.*nowhere.jsonl' is no file, and no dataset"):
        read_pairs(tmp_path / "nowhere.jsonl")


# Training ----------------------------------------------------------------------------------------


FAST = RewardTrainingSettings(epochs=4, batch_size=32, learning_rate=3e-3, eval_fraction=0.2)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.model.parameters()])


def test_training_learns_a_separable_preference_and_normalises(reference_folder, rng):
    pairs = separable_pairs(rng)
    model = new_reward_model(reference_folder, seed=1)
    untrained = evaluate_preferences(
        model.raw_rewards([model.encode(p.prompt, p.chosen) for p in pairs]),
        model.raw_rewards([model.encode(p.prompt, p.rejected) for p in pairs]),
    )
    steps = []
    report = train_reward_model(pairs, model, FAST, on_step=lambda *step: steps.append(step))
    assert untrained.accuracy < 0.8 < 0.95 < report.accuracy
    assert report.loss < 0.2 < untrained.loss
    # A fifth of the prompts, a tenth of them, and the rest; five pairs for each.
    sizes = (report.selection_pairs, report.pairs, report.training_pairs)
    assert sizes == (60, 30, 210)
    assert [step for step, _, _ in steps] == list(range(1, len(steps) + 1))
    assert all(total == steps[0][1] >= len(steps) for _, total, _ in steps)
    raw = model.raw_rewards(
        [model.encode(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)]
    )
    normalized = model.normalize(raw)
    assert abs(normalized.mean()) < 1e-5 and abs(normalized.std() - 1) < 1e-5
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_the_report_is_on_pairs_that_neither_trained_nor_chose_the_weights(
    reference_folder, rng, monkeypatch
):
    pairs = separable_pairs(rng)
    reward_model = new_reward_model(reference_folder)
    chosen = [tuple(reward_model.encode(p.prompt, p.chosen).tolist()) for p in pairs]
    of_prompt = {ids: pair.prompt for ids, pair in zip(chosen, pairs, strict=True)}
    reported, selected = [], []
    judge, look = preferences.judged_pairs, pair_training.rewards_of_pairs

    def spy_on_report(model, judged):
        reported.extend(judged)
        return judge(model, judged)

    def spy_on_selection(model, looked_at, *more):
        selected.extend(looked_at)
        return look(model, looked_at, *more)

    monkeypatch.setattr(preferences, "judged_pairs", spy_on_report)
    monkeypatch.setattr(pair_training, "rewards_of_pairs", spy_on_selection)
    settings = RewardTrainingSettings(epochs=2, eval_fraction=0.2, report_fraction=0.1)
    report = train_reward_model(pairs, reward_model, settings)
    prompts = {of_prompt[tuple(p.chosen.tolist())] for p in reported}
    selection = {of_prompt[tuple(p.chosen.tolist())] for p in selected}
    assert len(prompts) == 6 and len(selection) == 12 and not prompts & selection
    assert report.pairs == sum(p.prompt in prompts for p in pairs)
    assert report.selection_pairs == sum(p.prompt in selection for p in pairs)
    assert report.training_pairs + report.selection_pairs + report.pairs == len(pairs)
    assert not report.chose_the_weights


def test_a_report_says_when_it_is_optimistic_or_of_few_pairs(reference_folder, rng):
    few = separable_pairs(rng, count=60, prompts=20)
    quick = {"epochs": 1, "batch_size": 32}
    found = train_reward_model(
        few, new_reward_model(reference_folder), RewardTrainingSettings(**quick)
    )
    assert found.pairs < 30 and not found.chose_the_weights
    (note,) = found.notes
    assert f"on {found.pairs} held-out pairs, fewer than 30" in note and "uncertain by ±" in note
    assert found.as_dict()["notes"] == [note]
    none = RewardTrainingSettings(**quick, report_fraction=0.0)
    found = train_reward_model(few, new_reward_model(reference_folder), none)
    assert found.chose_the_weights and found.pairs == found.selection_pairs
    assert "whose loss chose the weights: optimistic" in found.notes[0] and len(found.notes) == 2
    two = [pair for pair in few if pair.prompt in {few[0].prompt, few[1].prompt}]
    if len({pair.prompt for pair in two}) == 2:  # too few for a third part
        found = train_reward_model(
            two, new_reward_model(reference_folder), RewardTrainingSettings(**quick)
        )
        assert found.chose_the_weights
    many = separable_pairs(rng, count=400, prompts=60)
    found = train_reward_model(
        many,
        new_reward_model(reference_folder),
        RewardTrainingSettings(**quick, report_fraction=0.2),
    )
    assert found.pairs >= 30 and found.notes == []


def test_training_is_deterministic_in_its_seed(reference_folder, rng):
    pairs = separable_pairs(rng, count=60)
    short = RewardTrainingSettings(epochs=1, batch_size=16, seed=5)
    models = [new_reward_model(reference_folder, seed=5) for _ in range(2)]
    reports = [train_reward_model(pairs, model, short) for model in models]
    assert reports[0] == reports[1]
    assert torch.equal(weights(models[0]), weights(models[1]))
    other = new_reward_model(reference_folder, seed=5)
    train_reward_model(pairs, other, RewardTrainingSettings(epochs=1, batch_size=16, seed=6))
    assert not torch.equal(weights(models[0]), weights(other))


def test_training_stops_early_and_keeps_the_best_weights(reference_folder, rng):
    """Preferences drawn by lot: what is learned from them only hurts on held-out prompts."""
    pairs = separable_pairs(rng, count=200)
    pairs = [
        PreferencePair(p.prompt, *((p.chosen, p.rejected) if rng.random() < 0.5 else
                                   (p.rejected, p.chosen)))
        for p in pairs
    ]  # fmt: skip
    settings = RewardTrainingSettings(
        epochs=50, batch_size=16, learning_rate=3e-3, patience=2, evaluations_per_epoch=2
    )
    seen = []
    model = new_reward_model(reference_folder)
    report = train_reward_model(pairs, model, settings, lambda step, total, _: seen.append(total))
    assert len(seen) < seen[0] / 4
    assert report.loss < 1.0  # the weights of the best look, not of the last


def test_held_out_prompts_are_never_trained_on(reference_folder, rng, monkeypatch):
    splits = []
    split = preferences.split_pairs

    def spy(*args):
        splits.append(split(*args))
        return splits[-1]

    monkeypatch.setattr(preferences, "split_pairs", spy)
    pairs = separable_pairs(rng, count=100)
    train_reward_model(
        pairs, new_reward_model(reference_folder), RewardTrainingSettings(epochs=1, batch_size=64)
    )
    ((*parts,),) = [(one.training, one.selection, one.reported) for one in splits]
    assert len(parts) == 3 and sum(map(len, parts)) == 100 and all(parts)
    training, selection, reported = ({p.prompt for p in part} for part in parts)
    assert not training & selection and not training & reported and not selection & reported


def test_token_pairs_train_as_text_pairs_do(reference_folder, rng):
    pairs = separable_pairs(rng, count=40)
    settings = RewardTrainingSettings(epochs=1, batch_size=16)
    by_text, by_tokens = (new_reward_model(reference_folder) for _ in range(2))
    encode = by_tokens.encode
    as_tokens = [
        TokenPair(encode(p.prompt, p.chosen), encode(p.prompt, p.rejected), p.prompt, p.margin)
        for p in pairs
    ]
    assert train_reward_model(pairs, by_text, settings) == train_reward_model(
        as_tokens, by_tokens, settings
    )
    assert torch.equal(weights(by_text), weights(by_tokens))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "0 pairs have 0 prompt"),
        ([PreferencePair("w4", "w5", "w6")] * 5, r"5 pairs have 1 prompt\(s\)"),
        (
            [PreferencePair("w4", "w5", "w6"), PreferencePair("w7", "w5 " * 70, "w6")],
            "'w7' has 73 tokens, more than the 64 positions of the reward model",
        ),
    ],
    ids=["none", "one prompt", "too long"],
)
def test_pairs_that_can_not_be_trained_on_are_refused(reference_folder, pairs, message):
    with pytest.raises(ValueError, match=message):
        train_reward_model(pairs, new_reward_model(reference_folder))


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"eval_fraction": 1.0},
        {"report_fraction": -0.1},
        {"report_fraction": 0.9},
    ],
    ids=str,
)
def test_settings_that_can_not_train_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RewardTrainingSettings(**settings)


def test_rewards_that_do_not_vary_can_not_be_normalised(reference_folder):
    with pytest.raises(ValueError, match="the same reward to all 3 samples"):
        new_reward_model(reference_folder).measure_normalization(np.array([1.0, 1.0, 1.0]))


# Heads and checkpoints ---------------------------------------------------------------------------


def test_a_new_head_is_drawn_with_one_over_sqrt_h_plus_one(reference_folder):
    """32 weights × 60 seeds: the sample deviation has a relative error of 1/√(2·1920) = 1.6 %."""
    heads = [new_reward_model(reference_folder, seed=s).model.score for s in range(60)]
    drawn = torch.stack([head.weight.detach().flatten() for head in heads])
    assert drawn.shape == (60, 32)
    assert drawn.std().item() == pytest.approx(1 / math.sqrt(33), rel=0.065)
    assert abs(drawn.mean().item()) < 4 / math.sqrt(33) / math.sqrt(1920)
    again = new_reward_model(reference_folder, seed=7).model.score.weight
    assert torch.equal(again, heads[7].weight) and not torch.equal(again, heads[8].weight)
    for head in heads:
        assert head.bias is None or torch.all(head.bias == 0)


def test_a_head_with_a_bias_starts_it_at_zero(tmp_path):
    """BERT's classifier has a bias; it is a base too, as a sequence classifier."""
    config = {
        "model_type": "bert",
        "vocab_size": 40,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    from transformers import AutoConfig

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(**config, num_labels=1)
    )
    with torch.no_grad():
        model.classifier.bias.fill_(3.0)
    model.save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    made = new_reward_model(str(tmp_path))
    assert made.model.classifier.bias.tolist() == [0.0]
    sequences = [np.array([1, 4, 5, 2]), np.array([1, 6, 7, 8, 9, 10, 2])]
    alone = [made.raw_rewards([sequence])[0] for sequence in sequences]
    np.testing.assert_allclose(made.raw_rewards(sequences), alone, rtol=0, atol=1e-5)


def untie(folder, kept="lm_head.weight", dropped="model.embed_tokens.weight"):
    """Store tied embeddings under the output layer's name only, as many checkpoints do."""
    path = f"{folder}/model.safetensors"
    stored = load_file(path)
    tied = stored.pop(dropped) if dropped in stored else stored[kept]
    stored[kept] = tied
    save_file(stored, path, metadata={"format": "pt"})
    return tied


def tied_folder(folder):
    """A Llama with tied embeddings (its config says so)."""
    from support.models import ARCHITECTURES

    from tokenenv.models.language_model import build_language_model

    torch.manual_seed(4)
    model = build_language_model({**ARCHITECTURES["llama"], "tie_word_embeddings": True})
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return str(folder)


def test_tied_embeddings_stored_only_as_output_layer_reach_the_trunk(tmp_path):
    folder = tied_folder(tmp_path)
    tied = untie(folder)
    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    assert not torch.equal(plain.get_input_embeddings().weight, tied)  # the trap is real
    model = new_reward_model(folder)
    assert torch.equal(model.model.get_input_embeddings().weight, tied)
    frozen = load_frozen(folder)
    assert torch.equal(frozen.model.get_input_embeddings().weight, tied)
    trunk = frozen.model.base_model.state_dict()
    for name, value in model.model.base_model.state_dict().items():
        assert torch.equal(value, trunk[name]), name


def test_real_checkpoint_with_only_lm_head_stored(shared):
    """TinyStories-656K is such a checkpoint: plain loading leaves its embeddings random."""
    folder = str(shared / "data" / "tinystories-656k")
    stored = load_file(f"{folder}/model.safetensors")
    assert "lm_head.weight" in stored and "model.embed_tokens.weight" not in stored
    model = new_reward_model(folder)
    assert torch.equal(model.model.get_input_embeddings().weight, stored["lm_head.weight"])
    assert model.num_embeddings == 2048
    own = set(model.model.base_model.state_dict()) - {"embed_tokens.weight"}
    for name in own:
        assert torch.equal(model.model.base_model.state_dict()[name], stored[f"model.{name}"])


def drop_a_trunk_weight(folder):
    path = f"{folder}/model.safetensors"
    stored = load_file(path)
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, path, metadata={"format": "pt"})
    return folder


def test_a_missing_trunk_weight_is_an_error_everywhere(tmp_path):
    causal = drop_a_trunk_weight(save_language_model(tmp_path / "causal"))
    classifier = drop_a_trunk_weight(save_classifier(tmp_path / "classifier"))
    missing = r"1 weights are missing.*layers\.1\.mlp\.up_proj\.weight"
    with pytest.raises(ValueError, match=missing):
        load_frozen(causal)
    with pytest.raises(ValueError, match=missing):
        new_reward_model(causal)
    with pytest.raises(ValueError, match=missing):
        new_reward_model(classifier)
    with pytest.raises(ValueError, match=missing):
        load_reward_model(classifier)


def test_a_trunk_weight_of_another_shape_is_an_error_that_names_it(tmp_path):
    causal, classifier = save_language_model(tmp_path / "c"), save_classifier(tmp_path / "k")
    for folder in (causal, classifier):
        path = f"{folder}/model.safetensors"
        stored = load_file(path)
        stored["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 32)
        save_file(stored, path, metadata={"format": "pt"})
    named = r"1 weights are missing.*of another shape \(model\.layers\.1\.mlp\.up_proj\.weight\)"
    for load, folder in (
        (load_frozen, causal),
        (new_reward_model, causal),
        (new_reward_model, classifier),
        (load_reward_model, classifier),
    ):
        with pytest.raises(ValueError, match=named):
            load(folder)


def test_a_missing_head_is_an_error_for_a_reward_model_and_redrawn_for_a_new_one(tmp_path):
    folder = save_classifier(tmp_path)
    path = f"{folder}/model.safetensors"
    stored = load_file(path)
    del stored["score.weight"]
    save_file(stored, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing.*score"):
        load_reward_model(folder)
    assert new_reward_model(folder, seed=3).model.score.weight.std() > 0.05


def test_a_classifier_with_several_outputs_is_a_base_like_any_other(tmp_path):
    folder = save_classifier(tmp_path, num_labels=3)
    model = new_reward_model(folder)
    assert model.model.score.weight.shape == (1, 32)
    kept = load_file(f"{folder}/model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.model.get_input_embeddings().weight, kept)


@pytest.mark.parametrize("base", ["/no/such/folder", "no-such-model", 5])
def test_a_base_that_is_no_model_is_refused(base):
    with pytest.raises(ValueError, match="base="):
        new_reward_model(base)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_saved_reward_model_loads_in_plain_transformers(reference_folder, tmp_path, dtype, rng):
    model = new_reward_model(reference_folder, seed=2)
    sequences = [rng.integers(3, 40, size=n) for n in (4, 9, 6)]
    model.measure_normalization(model.raw_rewards(sequences))
    model.save_pretrained(tmp_path, dtype)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert plain.config.num_labels == 1
    assert plain.config.reward_mean == model.mean and plain.config.reward_std == model.std
    pad = plain.config.pad_token_id
    assert pad == 0 != plain.config.eos_token_id
    batch = torch.full((3, 9), pad)
    for row, sequence in enumerate(sequences):
        batch[row, : len(sequence)] = torch.as_tensor(sequence)
    with torch.no_grad():
        logits = plain(input_ids=batch, attention_mask=(batch != pad).long()).logits[:, 0].numpy()
    tolerance = 1e-5 if dtype is None else 5e-3
    np.testing.assert_allclose(logits, model.raw_rewards(sequences), rtol=0, atol=tolerance)
    ours = load_reward_model(str(tmp_path))
    np.testing.assert_allclose(ours.raw_rewards(sequences), logits, rtol=0, atol=1e-5)
    assert (ours.mean, ours.std) == (model.mean, model.std)
    assert next(model.model.parameters()).dtype == torch.float32  # saving changed nothing


def test_a_pad_that_is_eos_never_hides_the_final_eos_in_plain_transformers(
    pad_is_eos_folder, tmp_path
):
    """Plain transformers reads at the last token that is no pad: with pad == EOS, one too early."""
    model = new_reward_model(pad_is_eos_folder, seed=2)
    sequence = np.array([1, 4, 5, 9, 2])
    model.save_pretrained(tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.no_grad():
        logit = plain(input_ids=torch.as_tensor(sequence)[None]).logits.item()
    assert logit == pytest.approx(model.raw_rewards([sequence])[0], abs=1e-5)
    assert abs(logit - model.raw_rewards([sequence[:-1]])[0]) > 1e-2


def test_a_shared_reward_model_is_not_trained():
    """The one in the process-level cache belongs to every environment."""
    shared = load_reward_model(load_task("reviews").reward_model)
    pairs = [PreferencePair(f"prompt {i}", "good", "bad") for i in range(4)]
    before = [p.clone() for p in shared.model.parameters()]
    with pytest.raises(ValueError, match="new_reward_model"):
        train_reward_model(pairs, shared)
    assert all(map(torch.equal, before, shared.model.parameters()))
