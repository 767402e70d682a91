"""The captured decode step: same numbers as the eager one, whatever the machine it is tested on."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support.models import ARCHITECTURES, small_model
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tokenenv.episodes import EpisodeBatch
from tokenenv.models import decode_step
from tokenenv.models.decode_step import (
    CapturedSteps,
    CudaGraphCapture,
    StepCapture,
    StepInputs,
    attention_masks,
    bucket_width,
    graph_capture,
    no_capture,
    storage_addresses,
)
from tokenenv.models.language_model import build_language_model
from tokenenv.models.slot_decoder import SlotDecoder

# Where a model computes in float64, only its norms round to float32: a wrong mask is 1e-2 and more.
P, T, V, TOLERANCE = 9, 14, 40, 1e-6
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def narrow_buckets(monkeypatch):
    """Buckets of 8 columns: P+T = 23 has two borders, and a last bucket with the scratch in it."""
    monkeypatch.setattr(decode_step, "WIDTH_STEP", 8)


class RecordedCapture(StepCapture):
    """A stand-in for CUDA graphs on any device: a replay runs the step again."""

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        step()
        return step


def recorded_capture(device: torch.device) -> StepCapture:
    return RecordedCapture()


class CountingCapture(RecordedCapture):
    """The stand-in, which counts."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        again = super().capture(step)

        def replay() -> None:
            self.replays += 1
            again()

        return replay


class FailingCapture(CountingCapture):
    """Fails as CUDA does, after the warm-up."""

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        super().capture(step)
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")


def start(episodes: EpisodeBatch, row: int, rng: np.random.Generator) -> None:
    episodes.start(row, rng.integers(3, V, size=rng.integers(1, P + 1)))


def new_episodes(slots: int, rng: np.random.Generator) -> EpisodeBatch:
    episodes = EpisodeBatch(slots, P, T, V, eos_token_ids=[2])
    for row in range(slots):
        start(episodes, row, rng)
    return episodes


def advance(episodes: EpisodeBatch, step: int, rng: np.random.Generator) -> None:
    """One token for all or for some, ends at any age, refills, a reset in the middle."""
    for row in np.flatnonzero(~episodes.running):
        start(episodes, row, rng)
    slots = len(episodes.running)
    running = np.flatnonzero(episodes.response_lengths > 0) if step % 7 == 3 else np.arange(slots)
    actions = rng.integers(3, V, size=slots)
    actions[rng.random(slots) < 0.05] = 2  # EOS
    episodes.append(actions, running)
    for row in np.flatnonzero(~episodes.running):
        start(episodes, row, rng)
    if step == 11:
        start(episodes, slots - 1, rng)


def full_forward(model, observations: np.ndarray) -> torch.Tensor:
    rows = []
    with torch.no_grad():
        for row in observations:
            tokens = torch.as_tensor(row[row >= 0], device=model.device)[None]
            rows.append(
                model.base_model(input_ids=tokens, use_cache=False).last_hidden_state[0, -1]
            )
    return torch.stack(rows)


def largest_error(model, found: torch.Tensor, observations: np.ndarray) -> float:
    expected = full_forward(model, observations)
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))


# The static path ---------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("slots", [1, 5])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_captured_steps_equal_eager_ones_and_full_forwards(name, slots, attention, rng):
    model = small_model(name, dtype="float64")
    model.set_attn_implementation(attention)
    capture = CountingCapture()
    eager = SlotDecoder(model, slots, P + T)
    captured = SlotDecoder(model, slots, P + T, capture=lambda device: capture)
    episodes = new_episodes(slots, rng)
    for step in range(3 * T):
        observations = episodes.observations
        found = captured.hidden_states(observations)
        assert largest_error(model, found, observations) <= TOLERANCE, f"step {step}"
        assert (found - eager.hidden_states(observations)).abs().max() <= 5 * TOLERANCE, (
            f"step {step}"
        )
        advance(episodes, step, rng)
    assert captured.forwards == eager.forwards
    assert capture.captures == 3  # one for each bucket: 8, 16 and 24 columns
    assert capture.replays >= 2 * T


def test_buckets_are_the_multiples_up_to_the_columns_that_slots_have():
    assert [bucket_width(n) for n in (1, 7, 8, 9, 16, 17, 23)] == [8, 8, 8, 16, 16, 24, 24]


def test_one_bucket_is_used_until_its_last_column(rng):
    capture = CountingCapture()
    decoder = SlotDecoder(
        small_model("gpt2", dtype="float64"), 2, P + T, capture=lambda device: capture
    )
    episodes = EpisodeBatch(2, P, T, V, eos_token_ids=[])
    for row in range(2):
        episodes.start(row, np.array([5, 6, 7]))
    found = []
    for _ in range(T):
        decoder.hidden_states(episodes.observations)
        found.append(capture.captures)
        episodes.append(rng.integers(0, V, size=2), np.arange(2))
    # lengths 3 (prefill), 4 … 8 in the first bucket, 9 … 16 in the second
    assert found == [0] + 5 * [1] + 8 * [2]


def test_masks_agree_with_their_definition(rng):
    positions = torch.as_tensor(rng.integers(0, 12, size=(6, 1)))
    masks = attention_masks(positions, 12, {"full": None, "window": 4}, torch.float32)
    column = torch.arange(12)
    for row, position in enumerate(positions[:, 0].tolist()):
        assert ((masks["full"][row, 0, 0] == 0) == (column <= position)).all()
        inside = (column <= position) & (column > position - 4)
        assert ((masks["window"][row, 0, 0] == 0) == inside).all()
        assert masks["window"][row, 0, 0][~inside].max() == torch.finfo(torch.float32).min
    only = attention_masks(positions, 12, {"full": None}, torch.bfloat16)
    assert only.shape == (6, 1, 1, 12)
    assert only.dtype == torch.bfloat16


# What a graph demands ----------------------------------------------------------------------------


class CountUploads(TorchFunctionMode):
    """Counts what would move data from the host to the device."""

    MOVES = (torch.as_tensor, torch.tensor, torch.from_numpy, torch.Tensor.copy_)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.MOVES:
            self.calls.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_one_upload_per_decode_step(rng):
    decoder = SlotDecoder(small_model("llama", dtype="float64"), 5, P + T, capture=recorded_capture)
    episodes = EpisodeBatch(5, P, T, V, eos_token_ids=[])
    for row in range(5):
        start(episodes, row, rng)
    decoder.hidden_states(episodes.observations)
    for step in range(T - 1):  # of all slots and of some
        episodes.append(rng.integers(0, V, size=5), np.arange(5 if step % 2 else 3))
        with CountUploads() as uploads:
            decoder.hidden_states(episodes.observations)
        assert uploads.calls == ["copy_"]
    with CountUploads() as uploads:
        decoder.hidden_states(episodes.observations)  # nothing new
    assert uploads.calls == []


class RefuseSyncs(TorchDispatchMode):
    """Raises where a step would wait for the device, or read a constant from the host."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "item", "lift_fresh", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        is_boolean_index = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in self.WAITS or is_boolean_index:
            raise RuntimeError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class StrictCapture(RecordedCapture):
    """The stand-in, as strict as CUDA's capture about waits."""

    def capture(self, step: Callable[[], None]) -> Callable[[], None]:
        with RefuseSyncs():
            return super().capture(step)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_architecture_waits_for_the_device_within_a_step(name, attention, rng):
    model = small_model(name, dtype="float64")
    model.set_attn_implementation(attention)
    decoder = SlotDecoder(model, 3, P + T, capture=lambda device: StrictCapture())
    episodes = new_episodes(3, rng)
    for step in range(T):
        decoder.hidden_states(episodes.observations)
        advance(episodes, step, rng)
    assert decoder._steps.works


def test_inputs_keep_their_addresses():
    inputs = StepInputs(4, torch.device("cpu"))
    tensors = (inputs.tokens, inputs.positions, inputs.columns)
    before = storage_addresses(tensors)
    arrays = [np.arange(4) + 10 * i for i in range(3)]
    inputs.upload(*arrays)
    for tensor, array in zip(tensors, arrays, strict=True):
        assert tensor.shape == (4, 1)
        assert tensor.dtype == torch.int64
        assert (tensor[:, 0].numpy() == array).all()
    assert storage_addresses(tensors) == before


# Failures ----------------------------------------------------------------------------------------


def run_along(model, decoder, rng, steps: int = T) -> float:
    """The largest error against full forwards over some steps."""
    episodes = new_episodes(decoder.num_slots, rng)
    errors = []
    for step in range(steps):
        found = decoder.hidden_states(episodes.observations)
        errors.append(largest_error(model, found, episodes.observations))
        advance(episodes, step, rng)
    return float(np.max(errors))  # NaN where one is


def test_a_failed_capture_falls_back_once_and_for_good(rng, caplog):
    model = small_model("qwen2", dtype="float64")
    made: list[FailingCapture] = []

    def make(device: torch.device) -> StepCapture:
        made.append(FailingCapture())
        return made[-1]

    decoder = SlotDecoder(model, 4, P + T, capture=make)
    with caplog.at_level(logging.WARNING, logger="tokenenv"):
        assert run_along(model, decoder, rng) <= TOLERANCE
        decoder.drop()
        assert run_along(model, decoder, rng) <= TOLERANCE
        model.float().double()  # moves all weights: captures that work would begin anew
        decoder.drop()
        assert run_along(model, decoder, rng) <= TOLERANCE
    assert [capture.captures for capture in made] == [1]
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "operation not permitted" in message
    assert "\n" not in message


def test_a_model_that_asks_the_device_mid_way_is_run_eagerly(rng, caplog):
    model = small_model("gpt2", dtype="float64")

    def ask(module, arguments):
        arguments[0].sum().item()

    model.transformer.h[1].register_forward_pre_hook(ask)
    decoder = SlotDecoder(model, 3, P + T, capture=lambda device: StrictCapture())
    with caplog.at_level(logging.WARNING, logger="tokenenv"):
        assert run_along(model, decoder, rng) <= TOLERANCE
    assert ["waits for the device" in record.getMessage() for record in caplog.records] == [True]


def test_rotary_embeddings_that_grow_run_eagerly_and_still_train(rng, caplog):
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = {**ARCHITECTURES["llama"], "max_position_embeddings": 4, "rope_parameters": scaling}
    model = build_language_model(config)
    decoder = SlotDecoder(model, 3, P + T, capture=lambda device: StrictCapture())
    episodes = new_episodes(3, rng)
    with caplog.at_level(logging.WARNING, logger="tokenenv"):
        for step in range(T):
            decoder.hidden_states(episodes.observations)
            advance(episodes, step, rng)
    assert len(caplog.records) == 1
    model(input_ids=torch.arange(P)[None]).logits.sum().backward()  # no inference tensor is left
    assert all(not buffer.is_inference() for buffer in model.buffers())


def test_a_models_own_error_is_raised_and_leaves_a_decoder_that_works(rng):
    model = small_model("gpt2", dtype="float64")
    decoder = SlotDecoder(model, 3, P + T, capture=recorded_capture)
    episodes = EpisodeBatch(3, P, T, V, eos_token_ids=[])
    for row in range(3):
        start(episodes, row, rng)
    decoder.hidden_states(episodes.observations)
    episodes.append(np.array([5, 6, 7]), np.arange(3))

    def fail(module, arguments):
        raise MemoryError("no memory")

    handle = model.transformer.h[1].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        decoder.hidden_states(episodes.observations)
    handle.remove()
    found = decoder.hidden_states(episodes.observations)
    assert largest_error(model, found, episodes.observations) <= TOLERANCE


def test_steps_without_a_capture_say_so():
    steps = CapturedSteps()
    assert not steps.run(8, lambda: pytest.fail("nothing to capture with"))
    assert steps.works


# Weights that change -----------------------------------------------------------------------------


def counted_decoder(model, slots: int = 4) -> tuple[SlotDecoder, list[CountingCapture]]:
    made: list[CountingCapture] = []

    def make(device: torch.device) -> StepCapture:
        made.append(CountingCapture())
        return made[-1]

    return SlotDecoder(model, slots, P + T, capture=make), made


def cache_addresses(decoder: SlotDecoder):
    return storage_addresses(
        t for layer in decoder._cache.layers for t in (layer.keys, layer.values)
    )


def train_a_little(model) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(input_ids=torch.arange(8)[None]).logits.square().mean().backward()
    optimizer.step()


def load_other_weights(model) -> None:
    model.load_state_dict(small_model("llama", seed=5, dtype="float64").state_dict())


@pytest.mark.parametrize("change", [train_a_little, load_other_weights])
def test_weights_changed_in_place_keep_graphs_and_memory(change, rng):
    model = small_model("llama", dtype="float64")
    decoder, made = counted_decoder(model)
    run_along(model, decoder, rng, steps=3 * T)
    captures, storage = made[0].captures, cache_addresses(decoder)
    change(model)
    decoder.drop()
    assert (
        run_along(model, decoder, rng, steps=3 * T) <= TOLERANCE
    )  # and with the weights as they are
    assert [capture.captures for capture in made] == [captures]
    assert cache_addresses(decoder) == storage


def test_weights_that_moved_are_captured_anew(rng):
    model = small_model("llama", dtype="float64")
    decoder, made = counted_decoder(model)
    run_along(model, decoder, rng, steps=2 * T)
    for parameter in model.parameters():  # what `.to(device)` does
        parameter.data = parameter.data.clone() + 0.01
    decoder.drop()
    assert run_along(model, decoder, rng, steps=2 * T) <= TOLERANCE
    assert len(made) == 2
    assert made[1].captures >= 2
    assert decoder._steps._capture is made[1]


def test_weights_that_diverged_leave_nothing_behind(rng):
    model = small_model("llama", dtype="float64")
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    decoder = SlotDecoder(model, 4, P + T, capture=recorded_capture)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    episodes = new_episodes(4, rng)
    for step in range(2 * T):
        assert decoder.hidden_states(episodes.observations).isnan().all()
        advance(episodes, step, rng)
    model.load_state_dict(kept)
    decoder.drop()
    assert run_along(model, decoder, rng) <= TOLERANCE


def test_another_autocast_is_another_step(rng):
    model = small_model("gpt2")
    decoder, made = counted_decoder(model)
    episodes = new_episodes(4, rng)
    for step in range(6):
        plain = decoder.hidden_states(episodes.observations).clone()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse = decoder.hidden_states(episodes.observations).clone()
        assert 1e-4 <= (plain - coarse).abs().max() <= 0.3
        assert largest_error(model, plain, episodes.observations) <= 1e-5
        advance(episodes, step, rng)
    assert len(made) == 12


@pytest.mark.parametrize("capture", [no_capture, recorded_capture])
def test_inference_mode_may_come_and_go(capture, rng):
    model = small_model("llama", dtype="float64")
    decoder = SlotDecoder(model, 4, P + T, capture=capture)
    episodes = new_episodes(4, rng)
    for step in range(T):
        with torch.inference_mode(step % 3 != 1):
            found = decoder.hidden_states(episodes.observations)
        assert not found.is_inference()
        assert not found.requires_grad
        assert largest_error(model, found, episodes.observations) <= TOLERANCE
        advance(episodes, step, rng)


def test_steps_are_captured_on_a_cpu_only_where_asked_for(rng):
    model = small_model("gpt2", dtype="float64")
    default = SlotDecoder(model, 2, P + T)
    run_along(model, default, rng, steps=3)
    assert not default._steps._replays
    for capture, expected in (
        (graph_capture, False),
        (no_capture, False),
        (recorded_capture, True),
    ):
        decoder = SlotDecoder(model, 2, P + T, capture=capture)
        run_along(model, decoder, rng, steps=3)
        assert bool(decoder._steps._replays) == expected


# On a GPU ----------------------------------------------------------------------------------------


@NEEDS_CUDA
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cuda_graphs_equal_eager_steps_and_wait_for_nothing(name, rng):
    model = small_model(name).cuda()
    captured, eager = SlotDecoder(model, 5, P + T), SlotDecoder(model, 5, P + T, capture=no_capture)
    episodes = EpisodeBatch(5, P, T, V, eos_token_ids=[])
    for round_ in range(3):
        for row in range(5):  # of the same lengths in every round: all buckets are captured in one
            episodes.start(row, rng.integers(3, V, size=row + 1))
        for _ in range(T):
            before = episodes.observations.copy()
            if round_ == 2 and episodes.response_lengths.min() > 0:  # captured, nothing refilled
                torch.cuda.set_sync_debug_mode("error")
            try:
                found = captured.hidden_states(before)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert (found - eager.hidden_states(before)).abs().max() <= 1e-4
            assert largest_error(model, found, before) <= 1e-4
            episodes.append(rng.integers(0, V, size=5), np.arange(5))
        if round_ == 0:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(0.9)
            captured.drop()
            eager.drop()
    assert captured._steps.works
    assert captured._steps._replays


@NEEDS_CUDA
def test_cuda_graphs_cast_weights_themselves_under_autocast(rng):
    model = small_model("gpt2").cuda()
    decoder = SlotDecoder(model, 4, P + T)
    episodes = EpisodeBatch(4, P, T, V, eos_token_ids=[])
    for round_ in range(2):
        for row in range(4):
            start(episodes, row, rng)
        for _ in range(T):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                found = decoder.hidden_states(episodes.observations)
                torch.cuda.empty_cache()
            assert largest_error(model, found.float(), episodes.observations) <= 0.15
            episodes.append(rng.integers(0, V, size=4), np.arange(4))
        if round_ == 0:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(0.5)
            decoder.drop()


@NEEDS_CUDA
@pytest.mark.parametrize("fails_at", [3, 4])  # in the last warm-up, and within the capture itself
def test_a_broken_cuda_capture_leaves_stream_and_generator_usable(fails_at):
    device = torch.device("cuda", torch.cuda.current_device())
    value, runs = torch.ones(8, device="cuda"), 0
    stream = torch.cuda.current_stream()

    def step() -> None:
        nonlocal runs
        runs += 1
        value.mul_(2.0)
        if runs >= fails_at:
            value.sum().item()

    with pytest.raises(RuntimeError):
        CudaGraphCapture(device).capture(step)
    assert torch.cuda.current_stream() == stream
    assert torch.cuda.get_sync_debug_mode() == 0
    assert torch.rand(4, device="cuda").isfinite().all()

    def fill() -> None:
        value.fill_(3.0)

    replay = CudaGraphCapture(device).capture(fill)
    value.zero_()
    replay()
    assert (value == 3.0).all()


def test_a_state_is_loaded_into_the_tensor_that_captured_steps_write_to(rng):
    model = small_model("gpt2")
    decoder, _ = counted_decoder(model)
    run_along(model, decoder, rng, steps=3)
    state, hidden = decoder.state_dict(), decoder._hidden
    wanted = state["hidden"].clone()
    hidden.zero_()
    decoder.load_state_dict(state)
    assert decoder._hidden is hidden and hidden.equal(wanted)
