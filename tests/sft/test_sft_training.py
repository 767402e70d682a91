"""Supervised fine-tuning: its loss by hand and in another way, and what training changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support.models import save_language_model, small_model, word_tokenizer
from torch.nn.functional import cross_entropy

from agents.sft.config import SFTSettings
from agents.sft.encoding import EncodedExamples, TokenExample, encode_examples
from agents.sft.encoding_report import EncodingReport
from agents.sft.losses import held_out_loss, micro_batches, token_losses
from agents.sft.report import Evaluation
from agents.sft.training import _rate, train_sft
from tokenenv.data import Example
from tokenenv.models import LanguageModel, load_frozen

V = 40


def language_model(name: str = "llama", dtype: str = "float32", seed: int = 0) -> LanguageModel:
    return LanguageModel("small", small_model(name, seed, dtype), word_tokenizer(), (2,))


def examples(count: int = 6, seed: int = 0, longest: int = 12) -> list[TokenExample]:
    """Random sequences of different lengths, each a group of its own."""
    rng = np.random.default_rng(seed)
    return [
        TokenExample(
            rng.integers(3, V, size=rng.integers(1, longest)).astype(np.int32),
            rng.integers(3, V, size=rng.integers(1, longest)).astype(np.int32),
            group,
        )
        for group in range(count)
    ]


def encoded(listed: list[TokenExample]) -> EncodedExamples:
    return EncodedExamples(listed, EncodingReport(examples=len(listed)))


def alone(model: Any, example: TokenExample) -> torch.Tensor:
    """The losses of one example by transformers' own forward, its only row."""
    ids = torch.as_tensor(np.concatenate([example.prefix, example.targets]), dtype=torch.int64)
    logits = model(input_ids=ids[None, :]).logits[0, len(example.prefix) - 1 : -1]
    return cross_entropy(logits, ids[len(example.prefix) :], reduction="none")


# The loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral-window-6"])
def test_packed_losses_and_their_gradient_are_those_of_each_example_alone(name):
    model, listed = language_model(name, "float64").model, examples()
    packed = token_losses(model, listed)
    packed.sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    single = torch.cat([alone(model, example) for example in listed])
    single.sum().backward()
    assert torch.allclose(packed, single, rtol=0, atol=1e-10)
    for n, p in model.named_parameters():
        if p.grad is not None:
            assert torch.allclose(p.grad, gradients[n], rtol=0, atol=1e-9), n


def test_no_example_attends_to_another():
    model, (first, second, third, *_) = language_model(dtype="float64").model, examples()
    ahead = token_losses(model, [first, second])[len(first.targets) :]
    behind = token_losses(model, [second, third])[: len(second.targets)]
    # To the last bit only where the matrix products have one shape; rounding is all there is.
    assert torch.allclose(ahead, behind, rtol=0, atol=1e-12)


def test_the_loss_of_a_model_that_computes_by_hand():
    """Two tokens that the logits (0, ln 3) of the last layer's bias make 1/4 and 3/4 likely."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=2, n_positions=8, n_embd=4, n_layer=1, n_head=1))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        # Hidden states become the last norm's bias, (1, 0, 0, 0); logits its products with rows.
        model.transformer.ln_f.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        model.lm_head.weight[1, 0] = math.log(3.0)
    model.eval()
    batch = [
        TokenExample(np.array([0]), np.array([1, 1]), 0),
        TokenExample(np.array([0, 1]), np.array([0]), 1),
    ]
    losses = token_losses(model, batch).tolist()
    assert losses == pytest.approx([-math.log(3 / 4)] * 2 + [-math.log(1 / 4)], abs=1e-6)
    # Every token weighs the same, not every example: −(2·ln ¾ + ln ¼)/3.
    expected = -(2 * math.log(3 / 4) + math.log(1 / 4)) / 3
    assert held_out_loss(model, batch, 64) == pytest.approx(expected, abs=1e-6)


def test_the_loss_of_a_uniform_model_is_ln_v():
    model = language_model().model
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    losses = token_losses(model, examples())
    assert torch.allclose(losses, torch.full_like(losses, math.log(V)), atol=1e-5)
    assert len(losses) == sum(len(example.targets) for example in examples())


def test_prompt_tokens_have_no_gradient_of_their_own():
    """The loss depends on a prompt token only as what is read: its own prediction adds nothing."""
    model = language_model().model
    output = model.get_output_embeddings().weight
    example = TokenExample(np.array([5, 6, 7, 8]), np.array([9]), 0)
    token_losses(model, [example]).sum().backward()
    hidden = model.base_model(input_ids=torch.tensor([[5, 6, 7, 8]])).last_hidden_state[0]
    to_logits = torch.softmax(hidden[-1] @ output.T, dim=-1)
    to_logits[9] -= 1.0
    # By the last state alone: an outer product, of rank 1.
    assert torch.allclose(output.grad, torch.outer(to_logits, hidden[-1]), atol=1e-5)


# A step -------------------------------------------------------------------------------------------


def one_step(micro_batch_tokens: int, **settings: Any) -> dict[str, torch.Tensor]:
    of = language_model(dtype="float64")
    how = {"epochs": 1, "batch_tokens": 10**6, "eval_fraction": 0.0, "optimizer": "sgd"}
    how |= {"learning_rate": 0.1, "warmup_fraction": 0.0, "schedule": "constant"}
    train_sft(
        encoded(examples(12)),
        of,
        SFTSettings(**{**how, "micro_batch_tokens": micro_batch_tokens, **settings}),
    )
    return {name: weight.detach().clone() for name, weight in of.model.named_parameters()}


def test_micro_batches_and_checkpointing_change_nothing():
    whole = one_step(10**6)
    for other in (one_step(1), one_step(30), one_step(30, gradient_checkpointing=True)):
        assert all(torch.allclose(whole[n], other[n], rtol=0, atol=1e-9) for n in whole)
    assert any(
        not torch.allclose(whole[n], p, atol=1e-4)
        for n, p in language_model(dtype="float64").model.named_parameters()
    )


def test_a_step_is_the_rate_times_the_gradient_of_the_mean_over_all_tokens():
    of = language_model(dtype="float64")
    losses = torch.cat([alone(of.model, example) for example in examples(12)])
    losses.mean().backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in of.model.parameters()))
    stepped = one_step(30, max_grad_norm=norm / 2)
    for name, weight in of.model.named_parameters():
        expected = weight.detach() - 0.1 * weight.grad / 2  # clipped to half its length
        assert torch.allclose(stepped[name], expected, rtol=0, atol=1e-6), name


def test_micro_batches_hold_every_sequence_once_and_little_padding():
    lengths = np.random.default_rng(0).integers(5, 60, size=200)
    parts = list(micro_batches(lengths, 512, 64))
    assert sorted(np.concatenate(parts).tolist()) == list(range(200))
    padded = [len(part) * int(lengths[part].max()) for part in parts]
    assert max(padded) <= 512
    assert 1 - lengths.sum() / sum(padded) < 0.12
    assert [part.tolist() for part in micro_batches(np.array([3, 900]), 512, 64)] == [[1], [0]]


def test_the_rate_rises_linearly_and_falls_to_0():
    for schedule, middle in (("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)):
        settings = SFTSettings(schedule=schedule, warmup_fraction=0.2)
        rates = [_rate(step, 10, settings) for step in range(10)]
        assert rates[:3] == [0.5, 1.0, 1.0] and rates[6] == pytest.approx(middle)
    quarter = _rate(4, 10, SFTSettings(warmup_fraction=0.2))
    assert quarter == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert _rate(0, 3, SFTSettings(warmup_fraction=0.0)) == 1.0


def test_adamw_decays_matrices_and_nothing_else():
    of = language_model()
    zero = TokenExample(np.array([4]), np.array([5]), 0)
    before = {name: weight.detach().clone() for name, weight in of.model.named_parameters()}
    with torch.no_grad():  # the gradient of a uniform model's trunk is 0
        of.model.get_output_embeddings().weight.zero_()
    settings = SFTSettings(epochs=1, eval_fraction=0.0, weight_decay=0.5, learning_rate=0.1)
    train_sft(encoded([zero]), of, settings)
    after = dict(of.model.named_parameters())
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.allclose(after[name], before[name] * (1 - 0.05), atol=1e-6)
    gain = "model.layers.0.input_layernorm.weight"
    assert torch.equal(after[gain], before[gain])


# A training ---------------------------------------------------------------------------------------


def test_eight_examples_are_learned_by_heart():
    of, listed = language_model(), examples(8)
    prefixes = {example.prefix.tobytes() for example in listed}
    assert len(prefixes) == 8
    settings = SFTSettings(epochs=60, batch_tokens=64, learning_rate=1e-2, eval_fraction=0.0)
    report = train_sft(encoded(listed), of, settings)
    assert held_out_loss(of.model, listed, 512) < 0.02 < 2 < report.history[1].train_loss
    assert report.train_loss < 0.05 and not report.stopped
    assert report.steps == report.all_steps == report.kept_step
    assert report.tokens == 60 * sum(map(len, listed))
    assert report.learned_tokens == 60 * sum(len(e.targets) for e in listed)


def test_the_same_seed_gives_the_same_weights_and_another_one_others():
    def train(seed: int) -> torch.Tensor:
        of = language_model()
        settings = SFTSettings(epochs=2, batch_tokens=50, seed=seed, early_stopping=False)
        train_sft(encoded(examples(12)), of, settings)
        return of.model.get_output_embeddings().weight

    assert torch.equal(train(0), train(0)) and not torch.equal(train(0), train(1))


def test_what_shares_a_prompt_is_held_out_together_and_never_trained_on():
    of, listed = language_model(), examples(40)
    listed = [TokenExample(e.prefix, e.targets, e.group // 4) for e in listed]
    seen: list[list[int]] = []

    def note(_: Any, examples: list[TokenExample]) -> torch.Tensor:
        seen.append([example.group for example in examples])
        return torch.cat([alone(of.model, example) for example in examples])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.sft.training.token_losses", note)
        report = train_sft(encoded(listed), of, SFTSettings(epochs=1, eval_fraction=0.3))
    trained = {group for groups in seen for group in groups}
    assert len(trained) == 7 and report.held_out_examples == 12 and report.training_examples == 28


def overfitting(early_stopping: bool) -> tuple[Any, LanguageModel, list[Evaluation]]:
    of, looks = language_model(seed=3), []
    settings = SFTSettings(
        epochs=12, batch_tokens=60, learning_rate=2e-2, eval_fraction=0.3, seed=1,
        early_stopping=early_stopping,
    )  # fmt: skip
    report = train_sft(encoded(examples(20)), of, settings, on_evaluation=looks.append)
    return report, of, looks


def test_training_stops_early_with_the_best_weights_or_goes_on_with_the_last():
    """Random targets: what is learned of some says nothing about others."""
    report, _, looks = overfitting(True)
    losses = [look.eval_loss for look in looks]
    best = int(np.argmin(losses))
    assert report.stopped == "early" and "--no-early-stopping" in report.reason
    assert report.steps < report.all_steps and len(losses) - 1 - best == 3
    assert report.eval_loss == min(losses) and report.kept_step == looks[best].step
    last, _, looks = overfitting(False)
    assert not last.stopped and last.steps == last.all_steps == last.kept_step
    assert last.eval_loss == looks[-1].eval_loss > report.eval_loss
    assert last.eval_perplexity == pytest.approx(math.exp(last.eval_loss))


def test_a_loss_that_is_not_finite_ends_training_with_the_weights_of_the_last_evaluation():
    of, calls = language_model(), 0

    def losses(model: Any, batch: list[TokenExample]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        found = torch.cat([alone(model, example) for example in batch])
        return found * math.nan if calls == 4 else found

    settings = SFTSettings(
        epochs=5, batch_tokens=10**6, eval_fraction=0.2, early_stopping=False, learning_rate=1e-2
    )  # a step per epoch
    kept = {}

    def keep(look: Evaluation) -> None:
        kept[look.step] = {n: p.detach().clone() for n, p in of.model.named_parameters()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agents.sft.training.token_losses", losses)
        patch.setattr("agents.sft.training.FEW_TOKENS", 10**6)  # a forward per step
        report = train_sft(encoded(examples(12)), of, settings, on_evaluation=keep)
    assert report.stopped == "not finite" and report.is_diverged
    assert "loss of step 4 is nan" in report.reason and report.steps == report.kept_step == 3
    assert all(torch.equal(p, kept[3][n]) for n, p in of.model.named_parameters())


def test_weights_that_explode_are_not_kept():
    of = language_model()
    settings = SFTSettings(
        epochs=5, batch_tokens=60, eval_fraction=0.0, learning_rate=1e38, optimizer="sgd",
        max_grad_norm=1e30, warmup_fraction=0.0,
    )  # fmt: skip
    report = train_sft(encoded(examples(12)), of, settings)
    assert report.is_diverged
    assert all(bool(torch.isfinite(p).all()) for p in of.model.parameters())


# What is refused ----------------------------------------------------------------------------------


def test_what_cannot_be_trained_is_refused(tmp_path):
    frozen = load_frozen(save_language_model(tmp_path / "model"))
    with pytest.raises(ValueError, match="load_trainable"):
        train_sft(encoded(examples()), frozen)
    with pytest.raises(ValueError, match="eval_fraction 0"):
        train_sft(encoded(examples(1)), language_model())
    with pytest.raises(ValueError, match="SFTSettings"):
        train_sft(encoded(examples()), language_model(), {"epochs": 1})  # type: ignore[arg-type]
    for wrong in ([], ["text"], [Example("w4", "")][:0]):
        with pytest.raises(ValueError, match="example"):
            train_sft(wrong, language_model())


def test_text_examples_are_encoded_on_the_way():
    listed = [Example(f"w{i}", f"w{i + 1} w{i + 2}") for i in range(4, 16)]
    one, other = language_model(), language_model()
    settings = SFTSettings(epochs=1)
    train_sft(listed, one, settings)
    train_sft(encode_examples(listed, other), other, settings)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(*(dict(of.model.named_parameters())[name] for of in (one, other)))
