"""Stable-Baselines3's PPO on the small text environment behind OpenEnv's server and clients."""

import socket
import threading

import gymnasium as gym
import uvicorn
from judging import judge
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from tokenenv.serving.openenv import ClientEnv, create_openenv_app

ENV, TASK = "TokenRLHF-Features-TopK-v0", {"task": "exact", "k": 3}

listening = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(create_openenv_app(ENV, **TASK), log_level="warning"))
thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
thread.start()

url = f"http://127.0.0.1:{listening.getsockname()[1]}"
env = make_vec_env(lambda: ClientEnv(url), n_envs=8, seed=0)  # each with a session of its own
model = PPO(
    "MlpPolicy",
    env,
    n_steps=16,
    batch_size=64,
    learning_rate=3e-3,
    gamma=1.0,
    ent_coef=0.1,
    seed=0,
    device="cpu",
)
try:
    model.learn(1_024)
finally:
    env.close()
    server.should_exit = True
    thread.join()

judge(
    lambda observation: model.predict(observation, deterministic=True)[0],
    gym.make(f"tokenenv:{ENV}", split="eval", **TASK),
)
