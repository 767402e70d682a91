"""`exact`: answer a note with a melody, so small a task that its optimum is known exactly.

The prompt is a call of one note, the response an answer of up to five notes and the EOS token that
stops it. The vocabulary is do, re, mi, fa, sol and EOS (V = 6), a response has at most T = 6
tokens, and there are five prompts: 19,531 finished responses to each, 97,655 in all. So π* and J*
are sums that can be written out (`tokenenv.optimum.solve("exact")`), and any policy can be judged
against them without sampling error.

Everything else is as in any other task: a real tokenizer, a transformers reference trained on
melodies of a Markov grammar (`grammar.py`), and a reward model learned by Bradley–Terry from
pairwise preferences. Humans prefer answers here that end in the full cadence `sol mi re do` and
stop (`gold.py`). The reference plays it once in 168 answers; under π* 95% of them have it
(the card counts them). The cadence is five tokens right together, so neither greedy decoding nor a
policy that looks one step ahead finds it.

The models know positions, not roles: a prompt of two notes is read as a call and the first note of
its answer.

Both splits are the same five prompts: where everything is enumerated, nothing is left to hold out.
`python -m tokenenv.tasks.exact.build` makes the models that ship with it.
"""

from __future__ import annotations

from tokenenv.tasks import ASSETS, Task, check_split
from tokenenv.tasks.exact.gold import gold_reward
from tokenenv.tasks.exact.grammar import NOTES, is_melody

__all__ = ["FOLDER", "TASK", "exact_prompts"]

FOLDER = ASSETS / "exact"
"""The shipped models and their card."""


def exact_prompts(split: str) -> list[str]:
    """The five single notes, whichever the split.

    Raises:
        ValueError: there is no such split.
    """
    check_split(split)
    return list(NOTES)


TASK = Task(
    name="exact",
    reference=str(FOLDER / "reference"),
    reward_model=str(FOLDER / "reward_model"),
    prompts=exact_prompts,
    max_prompt_tokens=2,
    max_new_tokens=6,
    kl_coef=1.1,
    gold_reward=gold_reward,
    card=FOLDER / "card.json",
    grammar=is_melody,
)
