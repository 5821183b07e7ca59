"""What holds for every test: no look at the network, one thread (the models are tiny), a plain shell."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from hypothesis import Phase, settings

from tests.support.shell import be_a_plain_shell

be_a_plain_shell()

# The same examples every time, and no deadline: a busy machine is no failure.
settings.register_profile("project", derandomize=True, deadline=None, max_examples=50)
# To know that a test fails, its smallest failing example is not needed.
settings.register_profile("notice", settings.get_profile("project"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("project")
torch.set_num_threads(1)
