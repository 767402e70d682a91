"""A random agent in the token environment: the loop that CartPole users know."""

import gymnasium as gym

env = gym.make("tokenenv:TokenRLHF-v0", render_mode="ansi")
env.action_space.seed(0)
for episode in range(3):
    observation, info = env.reset(seed=episode)
    done = False
    while not done:
        observation, reward, done, _, info = env.step(env.action_space.sample())
    print(env.render())
    print(f"score {info['score']:.2f}, gold reward {info['gold_reward']:.2f}\n")
