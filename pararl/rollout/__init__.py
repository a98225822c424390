"""Where rollouts and scores come from: rollout workers, reward workers, and the Ray actors that hold them.

May import: the ground floor, policies, rewards.
"""
