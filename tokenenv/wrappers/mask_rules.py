"""Which tokens may come next: rules of the user, of a task's grammar and of the reference.

Axes: `N` episodes, `V` token ids, `T` response positions. In every mask, true means allowed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from tokenenv.mdp import TokenMDP
from tokenenv.user_code import user_code

__all__ = ["MaskRules", "checked_positions", "checked_tokens", "top_p_mask"]

_GRAMMAR_STATES = 4096
"""States whose grammatical tokens are remembered; each takes V bytes."""


class MaskRules:
    """The rules of an `ActionMask`, strongest first: forbid, force, grammar, top-p.

    A weaker rule selects among the tokens that stronger ones allow; a grammar that allows none of
    them is ignored at that state. So there is always a token left.

    Args:
        mdp: the token MDP, for the checks.
        top_p: 0 < p ≤ 1: the fewest likeliest allowed tokens that hold the share p of π_ref.
        forbid: token ids.
        force: response position → token id; −1 is the last position, T−1.
        grammar: whether the task's grammar decides.
        num_candidates: k where actions choose among the k likeliest tokens, else V.

    Raises:
        ValueError: an invalid rule; the message names the allowed values.
    """

    def __init__(
        self,
        mdp: TokenMDP,
        top_p: float = 1.0,
        forbid: Iterable[int] = (),
        force: Mapping[int, int] | None = None,
        grammar: bool = False,
        num_candidates: int | None = None,
    ) -> None:
        size = mdp.language_model.vocabulary_size
        if isinstance(top_p, bool) or not isinstance(top_p, int | float) or not 0 < top_p <= 1:
            raise ValueError(f"top_p={top_p!r} must lie in 0 < p ≤ 1; 1 leaves every token.")
        self.top_p = float(top_p)
        self.may_come = np.ones(size, dtype=bool)
        for token in forbid:
            self.may_come[_token(token, size, "forbid")] = False
        self._check_something_left(num_candidates or size)
        self.forced = self._checked_force(force or {}, mdp, size)
        if self.forced and num_candidates is not None:
            raise ValueError(
                "force names tokens that may not be among the k likeliest, which is all that "
                "TopKActions offers: put ActionMask on an environment without TopKActions, or "
                "raise k and forbid others instead."
            )
        self.uses_grammar = bool(grammar)
        if grammar:
            _check_grammar(mdp)
        self._grammatical: OrderedDict[tuple[bytes, bytes], np.ndarray] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the cache of the grammar, which can be filled again."""
        return {**self.__dict__, "_grammatical": OrderedDict()}

    def __deepcopy__(self, memo: dict[int, Any]) -> MaskRules:
        """Itself: rules don't change, and what is known of the grammar holds for copies too."""
        return self

    def _check_something_left(self, num_candidates: int) -> None:
        forbidden = int((~self.may_come).sum())
        if forbidden >= num_candidates:
            what = (
                "the whole vocabulary"
                if num_candidates == len(self.may_come)
                else f"as many as the k={num_candidates} likeliest that TopKActions offers"
            )
            raise ValueError(
                f"forbid names {forbidden} tokens, {what}: a state could be left without any "
                f"action. Forbid at most {num_candidates - 1}."
            )

    def _checked_force(self, force: Mapping[int, int], mdp: TokenMDP, size: int) -> dict[int, int]:
        last = mdp.max_new_tokens - 1
        forced = {}
        if not isinstance(force, Mapping):
            raise ValueError(
                f"force={force!r} must be a dict from positions of the response to token ids: "
                "{0: 17} makes 17 the first token."
            )
        for key, token in force.items():
            position = _position(key)
            if position is None or not -1 <= position <= last:
                raise ValueError(
                    f"force has position {key!r}: allowed are 0 … {last}, the positions of the "
                    "response, and -1 for the last of them."
                )
            forced[last if position == -1 else position] = _token(token, size, "force")
            if not self.may_come[int(token)]:
                raise ValueError(f"token {token} is both in force and in forbid: it can't be both.")
        return forced

    def masks(self, mdp: TokenMDP, candidates: np.ndarray | None = None) -> np.ndarray:
        """(N, V) bool: which tokens may come next; all of them where no episode runs.

        Args:
            mdp: whose states are judged.
            candidates: (N, k) the tokens that can be chosen at all; None: all V.
        """
        episodes = mdp.episodes
        allowed = np.tile(self.may_come, (mdp.num_envs, 1))
        if candidates is not None:
            can_be_chosen = np.zeros_like(allowed)
            np.put_along_axis(can_be_chosen, candidates, True, axis=1)
            allowed &= can_be_chosen
        is_free = episodes.running.copy()
        for row in np.flatnonzero(episodes.running).tolist():
            token = self.forced.get(int(episodes.response_lengths[row]))
            if token is not None:
                allowed[row], is_free[row] = False, False
                allowed[row, token] = True
            elif self.uses_grammar:
                grammatical = allowed[row] & self.grammatical(mdp, row)
                if grammatical.any():
                    allowed[row] = grammatical
        if self.top_p < 1.0 and is_free.any():
            is_last = episodes.response_lengths == mdp.max_new_tokens - 1
            # With its last token a response can still stop by itself: the rule spares EOS there.
            spared = allowed & episodes.is_eos & is_last[:, None]
            likely = top_p_mask(
                mdp.reference_decoder.log_probs(episodes.observations), allowed, self.top_p
            )
            allowed[is_free] &= (likely | spared)[is_free]
        allowed[~episodes.running] = True
        return allowed

    def grammatical(self, mdp: TokenMDP, row: int) -> np.ndarray:
        """(V,) bool: the tokens with which the text in `row` goes on, or stops, as the grammar may.

        It is asked once per token, so a new state costs V calls; states are remembered.
        """
        prompt, response = mdp.episodes.prompt(row), mdp.episodes.response(row)
        key = prompt.tobytes(), response.tobytes()
        mask = self._grammatical.get(key)
        if mask is None:
            mask = self._grammatical[key] = _grammatical(mdp, prompt, response)
            if len(self._grammatical) > _GRAMMAR_STATES:
                self._grammatical.popitem(last=False)
        self._grammatical.move_to_end(key)
        return mask


def checked_tokens(forbid: Any) -> list[Any]:
    """The tokens of `forbid` as a list, numpy's integers as Python's, which JSON knows.

    Raises:
        ValueError: it is no collection.
    """
    is_single = isinstance(forbid, str) or not isinstance(forbid, Iterable)
    if is_single or (isinstance(forbid, np.ndarray) and forbid.ndim != 1):
        raise ValueError(f"forbid={forbid!r} must be a list of token ids, as forbid=[17].")
    return [_plain(token) for token in forbid]


def checked_positions(force: Any) -> Any:
    """`force` with numpy's integers as Python's, which JSON knows; `MaskRules` checks the rest."""
    if not isinstance(force, Mapping):
        return force
    return {_plain(position): _plain(token) for position, token in force.items()}


def _plain(number: Any) -> Any:
    return int(number) if isinstance(number, np.integer) else number


def top_p_mask(log_probs: torch.Tensor, allowed: np.ndarray, top_p: float) -> np.ndarray:
    """The fewest likeliest tokens that hold at least the share `top_p` of the allowed probability.

    Of equally likely tokens, those with the smaller ids are taken first.

    Args:
        log_probs: (N, V).
        allowed: (N, V) bool, at least one per row.
        top_p: 0 < p ≤ 1.

    Returns:
        (N, V) bool; never an empty row.
    """
    may_come = torch.as_tensor(allowed, device=log_probs.device)
    probs = log_probs.double().masked_fill(~may_come, -torch.inf).softmax(-1)
    ordered, order = probs.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # the share of the tokens that are likelier
    is_taken = torch.zeros_like(may_come).scatter(-1, order, before < top_p)
    return (is_taken & may_come).cpu().numpy()


def _grammatical(mdp: TokenMDP, prompt: np.ndarray, response: np.ndarray) -> np.ndarray:
    grammar, language_model = mdp.task.grammar, mdp.language_model
    assert grammar is not None
    text, so_far = language_model.decode(prompt), language_model.decode(response)
    size, is_eos = language_model.vocabulary_size, mdp.episodes.is_eos
    known = min(size, len(language_model.tokenizer))  # rows of padding have no text
    longer = language_model.tokenizer.batch_decode(
        [[*response.tolist(), token] for token in range(known)],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    mask = np.zeros(size, dtype=bool)
    with user_code(f"the grammar of task={mdp.settings.task!r}", grammar):
        for token in range(size):
            if is_eos[token]:
                mask[token] = grammar(text, so_far, True)
            elif token < known and longer[token] != so_far:  # a special token adds no text
                mask[token] = grammar(text, longer[token], False)
    return mask


def _check_grammar(mdp: TokenMDP) -> None:
    settings = mdp.settings
    if mdp.task.grammar is None:
        raise ValueError(
            f"task={settings.task!r} has no grammar: leave grammar=True out, or give the Task one "
            "(tokenenv.tasks.Task, argument grammar)."
        )
    if settings.prompts is not None and settings.prompts != settings.task:
        raise ValueError(
            f"the grammar of task={settings.task!r} judges continuations of the task's prompts "
            "and no others: leave prompts out, or grammar=True."
        )


def _position(key: Any) -> int | None:
    """The keys of a JSON object are strings."""
    try:
        return None if isinstance(key, bool | float | np.floating) else int(key)
    except (TypeError, ValueError):
        return None


def _token(token: Any, size: int, name: str) -> int:
    is_whole = isinstance(token, int | np.integer) and not isinstance(token, bool)
    if not is_whole or not 0 <= token < size:
        raise ValueError(f"{name} has {token!r}: allowed are the token ids 0 … {size - 1}.")
    return int(token)
