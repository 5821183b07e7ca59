"""Out into the world: a run's policy as a plain Hugging Face folder with a model card, its rollouts as data."""
