"""pararl: on-policy alignment of unified multimodal models, with the offline DPO baseline in the same command."""

__version__ = "0.1.0"
