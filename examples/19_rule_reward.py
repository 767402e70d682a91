"""A rule as reward: sums whose answers stand in a column (of reasoning-gym where it is there)."""

import importlib.util
import random
import re

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agents import LMActorCriticPolicy, RLHFCallback, TokenPPO, make_vec_env


def questions(count: int) -> list[dict[str, str]]:
    """Rows of prompts: sums of two digits; what is not `prompt` reaches the reward by its name."""
    if importlib.util.find_spec("reasoning_gym"):  # pip install reasoning-gym
        import reasoning_gym

        digits = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
        tasks = reasoning_gym.create_dataset("chain_sum", size=count, seed=0, **digits)
        return [{"prompt": t["metadata"]["expression"], "answer": t["answer"]} for t in tasks]
    rng = random.Random(0)
    sums = [(rng.randint(0, 9), rng.randint(0, 9)) for _ in range(count)]
    return [{"prompt": f"{a} + {b}", "answer": str(a + b)} for a, b in sums]


def is_right(prompts, responses, answer):
    """1 for the right number, and 0 for anything else: of a text that says more, its last one."""
    numbers = [re.findall(r"-?\d+", response) for response in responses]
    return [float(found[-1:] == [a]) for found, a in zip(numbers, answer, strict=True)]


def is_near(completions, answer, **columns):
    """A step towards it, in TRL's shape: up to 1, the nearer the number. None: not a number."""
    numbers = [re.fullmatch(r"-?\d+", text.strip()) for text in completions]
    pairs = zip(numbers, answer, strict=True)
    return [1 - abs(int(found[0]) - int(a)) / 9 if found else None for found, a in pairs]


words = ["<unk>", "<eos>", "+", "-", *map(str, range(-9, 19))]
inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", eos_token="<eos>")
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
config = LlamaConfig(vocab_size=len(words), eos_token_id=1, num_attention_heads=4, **sizes)
LlamaForCausalLM(config).save_pretrained("sums")  # it knows nothing yet
tokenizer.save_pretrained("sums")

env = make_vec_env(
    n_envs=256, seed=0, scoring="deferred", reference="sums", prompts=questions(500),
    reward_model=[is_right, is_near], reward_weights=[1.0, 0.5],
    max_prompt_tokens=4, max_new_tokens=2, kl_coef=0.001,
)  # fmt: skip
policy = {"actor": "sums"}
model = TokenPPO(LMActorCriticPolicy, env, policy_kwargs=policy, learning_rate=2e-3, n_steps=8,
                 batch_size=512, seed=0, ent_coef=0.003)  # fmt: skip
for _ in range(5):
    model.learn(16_384, callback=(callback := RLHFCallback()), reset_num_timesteps=False)
    print({name: round(callback.metrics[f"reward/{name}"], 3) for name in ("is_right", "is_near")})
